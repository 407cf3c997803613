//! What this mount has seen of each chunk, so that reads at ONE never take it back in time.
//!
//! Bounded: two generations, of which the older is dropped when the younger is full. From then on a chunk that is not known may be one
//! that was forgotten, and the caller asks the head.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use dfs_common::{ChunkId, ChunkIndex, ChunkVersion, InodeId};

/// Chunks in a generation; some 40 bytes each.
const GENERATION: usize = 32 << 10;

#[derive(Debug, Default)]
pub(crate) struct Seen {
    young: BTreeMap<ChunkId, ChunkVersion>,
    old: BTreeMap<ChunkId, ChunkVersion>,
    forgotten: bool,
}

impl Seen {
    pub(crate) fn note(&mut self, chunk: ChunkId, version: ChunkVersion) {
        let known = self.of(chunk).unwrap_or_default();
        if self.young.len() >= GENERATION && !self.young.contains_key(&chunk) {
            self.forgotten |= !self.old.is_empty();
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(chunk, version.max(known));
    }

    pub(crate) fn of(&self, chunk: ChunkId) -> Option<ChunkVersion> {
        self.young.get(&chunk).or_else(|| self.old.get(&chunk)).copied()
    }

    /// All chunks of a file that are known here.
    pub(crate) fn of_inode(&self, inode: InodeId) -> Vec<(ChunkIndex, ChunkVersion)> {
        let all = ChunkId::new(inode, ChunkIndex(0))..=ChunkId::new(inode, ChunkIndex(u32::MAX));
        let known = self.old.range(all.clone()).chain(self.young.range(all));
        let newest: BTreeMap<_, _> = known.map(|(chunk, &version)| (chunk.index, version)).collect();
        newest.into_iter().collect()
    }

    pub(crate) fn forget(&mut self, chunk: ChunkId) {
        self.young.remove(&chunk);
        self.old.remove(&chunk);
    }

    pub(crate) const fn has_forgotten(&self) -> bool {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::Epoch;

    use super::*;

    #[test]
    fn the_newest_counts_and_forgetting_is_known() {
        let chunk = |n: usize| ChunkId::new(InodeId(n as u64), ChunkIndex(0));
        let version = |counter| ChunkVersion {
            epoch: Epoch(1),
            counter,
        };
        let mut seen = Seen::default();
        seen.note(chunk(0), version(5));
        seen.note(chunk(0), version(3));
        assert_eq!(seen.of(chunk(0)), Some(version(5)));
        for n in 1..2 * GENERATION {
            seen.note(chunk(n), version(1));
        }
        assert_eq!((seen.of(chunk(0)), seen.has_forgotten()), (Some(version(5)), false));
        // Seen again it is young again.
        seen.note(chunk(0), version(2));
        for n in 2 * GENERATION..3 * GENERATION {
            seen.note(chunk(n), version(1));
        }
        assert_eq!((seen.of(chunk(0)), seen.has_forgotten()), (Some(version(5)), true));
        assert_eq!(seen.of(chunk(1)), None);
        seen.forget(chunk(0));
        assert_eq!(seen.of(chunk(0)), None);
    }
}
