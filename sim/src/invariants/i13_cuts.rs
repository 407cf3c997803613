//! I13, I3: a cut takes nothing that came after it, and what comes from before it takes effect no more; whatever a member forgets or is
//! given on the way. And a removed file has no holes: reads of it fail.
//!
//! Every version of a chunk has one history, so its newest truncation epoch follows from the version before and its mutation. The
//! watch keeps that for itself and compares: with what each mutation comes with, and with what each store then says.

use dfs_common::wire::storage::Origin;
use dfs_common::{ChunkId, ChunkVersion, CutEpoch};

use super::Watch;
use crate::world::World;

impl World {
    /// A mutation has been carried out on the version `before`.
    pub(crate) fn watch_cut(
        &mut self,
        at: usize,
        chunk: ChunkId,
        (before, version): (ChunkVersion, ChunkVersion),
        origin: Origin,
    ) {
        let Some(store) = &self.nodes[at].store else { return };
        let says = store.cut(chunk);
        if let Err(detail) = self.watch.cut(chunk, (before, version), origin, says) {
            self.fail("I13", format!("storage-{}: {detail}", at + 1));
        }
    }
}

impl Watch {
    fn cut(
        &mut self,
        chunk: ChunkId,
        (before, version): (ChunkVersion, ChunkVersion),
        origin: Origin,
        says: CutEpoch,
    ) -> Result<(), String> {
        let seen = if before.is_none() {
            CutEpoch::NONE
        } else {
            let Some(&seen) = self.cuts.get(&(chunk, before)) else {
                return Ok(());
            };
            seen
        };
        let now = seen.max(origin.cut);
        self.cuts.insert((chunk, version), now);
        if origin.cut < seen {
            return Err(format!(
                "chunk {chunk} had seen truncation epoch {seen} at {before}, and {:?} of epoch {} took effect on it",
                origin.id, origin.cut
            ));
        }
        if says != now {
            return Err(format!(
                "chunk {chunk} has seen truncation epoch {now} at {version}, and the store remembers {says}"
            ));
        }
        Ok(())
    }

    /// The removal of a chunk's file was acknowledged.
    pub(crate) fn removed(&mut self, chunk: u64, tick: u64) {
        self.gone.entry(chunk).or_insert(tick);
    }

    /// Whether a read that began at `called` may be answered with data or holes.
    pub(crate) fn read_of_removed(&self, chunk: u64, called: u64) -> Result<(), String> {
        match self.gone.get(&chunk) {
            Some(&since) if called > since => Err(format!(
                "chunk {chunk} is of a file that was removed before the read began, and was read all the same"
            )),
            _ => Ok(()),
        }
    }
}
