//! Chains with writes of one file that no sync covers yet.
//!
//! Invariant: from before a write without the sync flag is sent until a sync that began after its acknowledgement has ended, its chain
//! is here, with the first epoch and the lowest level of what was acknowledged. A chain that lost all who had it since then says
//! so to the sync, instead of making durable what it has.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dfs_common::{ChainId, Epoch, Level};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::dirty::Slab;

/// What one chain has of this file, unsynced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owing {
    /// Of the last start or acknowledgement.
    number: u64,
    /// Epochs of the acknowledgements; `None`: there were none.
    acknowledged: Option<(Epoch, Epoch)>,
    lowest: Level,
    /// Not all of it is kept.
    gaps: bool,
}

impl Owing {
    /// What a sync vouches for.
    pub(crate) fn since(&self) -> (Epoch, Level) {
        let first = self.acknowledged.map_or(Epoch(u64::MAX), |(first, _)| first);
        (first, self.lowest)
    }
}

/// Bytes that are kept of one file until they are synced. Who writes more without a sync is told of a loss instead.
const MAX_KEPT_BYTES: usize = 4 << 20;

/// The same for all files of a mount.
pub(crate) const MAX_KEPT_BYTES_OF_MOUNT: usize = 64 << 20;

#[derive(Debug)]
struct Kept {
    chain: ChainId,
    number: u64,
    slab: Arc<Slab>,
    /// In the mount's bound.
    _room: OwnedSemaphorePermit,
}

#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    chains: BTreeMap<ChainId, Owing>,
    numbers: u64,
    /// What was written, oldest first.
    kept: VecDeque<Kept>,
    kept_bytes: usize,
}

impl Unsynced {
    fn touch(&mut self, chain: ChainId) -> &mut Owing {
        self.numbers += 1;
        let owing = self.chains.entry(chain).or_insert(Owing {
            number: 0,
            acknowledged: None,
            lowest: Level::All,
            gaps: false,
        });
        owing.number = self.numbers;
        owing
    }

    /// A write is about to be sent.
    pub(crate) fn starts(&mut self, chain: ChainId) {
        self.touch(chain);
    }

    /// It was acknowledged in this epoch or after it.
    pub(crate) fn acknowledged(&mut self, chain: ChainId, epoch: Epoch, level: Level) {
        let owing = self.touch(chain);
        let (first, last) = owing.acknowledged.unwrap_or((epoch, epoch));
        owing.acknowledged = Some((first.min(epoch), last.max(epoch)));
        owing.lowest = owing.lowest.min(level);
    }

    /// What was acknowledged is kept until it is synced, so that it can be written again; unless the mount keeps enough already.
    pub(crate) fn keep(&mut self, chain: ChainId, slab: Arc<Slab>, room: &Arc<Semaphore>) {
        let number = self.touch(chain).number;
        let size = u32::try_from(slab.size_bytes).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(room).try_acquire_many_owned(size) else {
            return self.gap(chain);
        };
        self.kept_bytes += slab.size_bytes;
        self.kept.push_back(Kept {
            chain,
            number,
            slab,
            _room: room,
        });
        while self.kept_bytes > MAX_KEPT_BYTES
            && let Some(kept) = self.kept.pop_front()
        {
            self.kept_bytes -= kept.slab.size_bytes;
            self.gap(kept.chain);
        }
    }

    /// Something was acknowledged, or may have been, that can not be written again: a truncation, or what was not kept.
    pub(crate) fn gap(&mut self, chain: ChainId) {
        if let Some(owing) = self.chains.get_mut(&chain) {
            owing.gaps = true;
        }
    }

    /// All that is unsynced on the chain, oldest first; `None` if not all of it is kept.
    pub(crate) fn kept(&self, chain: ChainId) -> Option<Vec<Arc<Slab>>> {
        let owing = self.chains.get(&chain)?;
        let of_chain = self.kept.iter().filter(|kept| kept.chain == chain);
        (!owing.gaps).then(|| of_chain.map(|kept| Arc::clone(&kept.slab)).collect())
    }

    /// Drops what is kept; who has closed a file no longer waits for it.
    pub(crate) fn keep_nothing(&mut self) {
        let chains: Vec<_> = self.kept.drain(..).map(|kept| kept.chain).collect();
        self.kept_bytes = 0;
        for chain in chains {
            self.gap(chain);
        }
    }

    pub(crate) fn contains(&self, chain: ChainId) -> bool {
        self.chains.contains_key(&chain)
    }

    /// What there is now: who syncs all of it says so with [`Unsynced::synced`].
    pub(crate) fn all(&self) -> Vec<(ChainId, Owing)> {
        self.chains.iter().map(|(&chain, &owing)| (chain, owing)).collect()
    }

    /// A sync that began when `owing` was all has ended well, or has found it lost, which is told once.
    pub(crate) fn synced(&mut self, chain: ChainId, owing: &Owing) {
        let Some(now) = self.chains.get_mut(&chain) else {
            return;
        };
        let kept_bytes = &mut self.kept_bytes;
        self.kept.retain(|kept| {
            let covered = kept.chain == chain && kept.number <= owing.number;
            if covered {
                *kept_bytes -= kept.slab.size_bytes;
            }
            !covered
        });
        if now.number == owing.number {
            self.chains.remove(&chain);
        } else if let (Some((first, last)), Some((_, covered))) = (&mut now.acknowledged, owing.acknowledged) {
            // What came since was acknowledged by a chain that had reached this epoch.
            *first = covered.min(*last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: ChainId = ChainId(3);

    #[test]
    fn a_write_acknowledged_during_a_sync_is_not_covered_by_it() {
        let mut unsynced = Unsynced::default();
        unsynced.starts(CHAIN);
        unsynced.acknowledged(CHAIN, Epoch(4), Level::Quorum);
        unsynced.starts(CHAIN);
        let (_, owing) = unsynced.all()[0];
        assert_eq!(owing.since(), (Epoch(4), Level::Quorum));
        unsynced.acknowledged(CHAIN, Epoch(7), Level::One);
        unsynced.synced(CHAIN, &owing);
        let (_, owing) = unsynced.all()[0];
        assert_eq!(owing.since(), (Epoch(4), Level::One));
        unsynced.synced(CHAIN, &owing);
        assert!(!unsynced.contains(CHAIN));
    }

    #[test]
    fn what_is_kept_is_what_no_sync_covers() {
        let slab = |size_bytes| {
            Arc::new(Slab {
                size_bytes,
                ..Slab::default()
            })
        };
        let room = Arc::new(Semaphore::new(2 * MAX_KEPT_BYTES));
        let mut unsynced = Unsynced::default();
        unsynced.starts(CHAIN);
        unsynced.acknowledged(CHAIN, Epoch(4), Level::Quorum);
        unsynced.keep(CHAIN, slab(1), &room);
        let (_, owing) = unsynced.all()[0];
        unsynced.keep(CHAIN, slab(2), &room);
        unsynced.synced(CHAIN, &owing);
        let sizes = |unsynced: &Unsynced| {
            let kept = unsynced.kept(CHAIN)?;
            Some(kept.iter().map(|slab| slab.size_bytes).collect::<Vec<_>>())
        };
        assert_eq!(sizes(&unsynced), Some(vec![2]));
        unsynced.keep(CHAIN, slab(MAX_KEPT_BYTES), &room);
        assert_eq!(sizes(&unsynced), None, "not all of it is kept");
        let (_, owing) = unsynced.all()[0];
        unsynced.synced(CHAIN, &owing);
        unsynced.keep(CHAIN, slab(3), &room);
        assert_eq!(sizes(&unsynced), Some(vec![3]));
        unsynced.keep_nothing();
        assert_eq!((sizes(&unsynced), unsynced.kept_bytes), (None, 0));
        assert_eq!(room.available_permits(), 2 * MAX_KEPT_BYTES, "all of it is given back");
        let (_, owing) = unsynced.all()[0];
        unsynced.synced(CHAIN, &owing);
        let _others = room.try_acquire_many(2 * MAX_KEPT_BYTES as u32).expect("it is free");
        unsynced.keep(CHAIN, slab(4), &room);
        assert_eq!(sizes(&unsynced), None, "the mount keeps enough already");
    }

    #[test]
    fn a_write_that_set_out_before_a_sync_and_arrives_after_it_is_still_owed() {
        let mut unsynced = Unsynced::default();
        unsynced.starts(CHAIN);
        let (_, owing) = unsynced.all()[0];
        unsynced.synced(CHAIN, &owing);
        unsynced.acknowledged(CHAIN, Epoch(9), Level::Quorum);
        assert!(unsynced.contains(CHAIN));
        assert_eq!(unsynced.all()[0].1.since(), (Epoch(9), Level::Quorum));
    }
}
