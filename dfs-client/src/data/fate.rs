//! What became of acknowledged writes that may have to be sent again: what their blocks should
//! have, and what was found there. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use dfs_common::planted::{self, Bug};
use dfs_common::units::BLOCK_SIZE_BYTES;
use dfs_common::{BlockIndex, ChunkIndex, ChunkVersion, Epoch};

use super::acknowledged::{Entry, WrittenRun};
use super::dirty::{Slab, SlabIndex};
use crate::routing::KeptSpans;

/// Several writes as one: the bytes of each slab, newer ones on top, whatever order they overlap
/// in; `None` if bytes are missing.
pub(crate) fn merged(entries: &[Entry], slab_size_bytes: u64) -> Option<BTreeMap<SlabIndex, Slab>> {
    let mut slabs: BTreeMap<SlabIndex, Slab> = BTreeMap::new();
    let oldest_wins = planted::is(Bug::OldestWins);
    for at in 0..entries.len() {
        let entry = &entries[if oldest_wins { entries.len() - 1 - at } else { at }];
        for (&offset, bytes) in &entry.slab.as_ref()?.extents {
            slabs.entry(offset / slab_size_bytes).or_default().write(offset, bytes);
        }
    }
    Some(slabs)
}

/// What is known of a block that acknowledged writes have touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// The newest version at which one of them left it.
    pub(crate) newest: ChunkVersion,
    /// The oldest epoch in which one of them wrote what was not written over as a whole since.
    pub(crate) oldest: Epoch,
    /// One of them was lost before another wrote.
    pub(crate) lost: bool,
    /// Somebody else's version between two of them. Nobody can tell whether the earlier one had
    /// been lost before it.
    pub(crate) between: Option<ChunkVersion>,
}

impl Touched {
    /// Whether the block is as this mount left it last, with all that it wrote there before.
    pub(crate) fn is_newest(&self, version: ChunkVersion) -> bool {
        version == self.newest && !self.lost && self.between.is_none()
    }

    /// Whether somebody who left the block at this version wrote on top of all that this mount had
    /// written there before. A chain applies writes in the order of their versions, so this holds
    /// where it had lost nothing by then; what became of it later does not matter, since the
    /// version is there.
    pub(crate) fn is_under(&self, version: ChunkVersion, spans: &KeptSpans) -> bool {
        let had_all = spans.cover(self.oldest, version.epoch);
        version > self.newest && had_all && !self.lost && self.between.is_none()
    }
}

/// The blocks of these writes. `uncut_bytes`: how many bytes at the beginning of a block no cut has
/// touched since.
pub(crate) fn touched(
    entries: &[Entry],
    uncut_bytes: impl Fn(ChunkIndex, BlockIndex) -> usize,
    spans: &KeptSpans,
) -> BTreeMap<(ChunkIndex, BlockIndex), Touched> {
    // What was sent again belongs to several writes, and came after all of them.
    let mut runs: Vec<&WrittenRun> = entries.iter().flat_map(|entry| &entry.runs).collect();
    runs.sort_by_key(|run| (run.chunk, run.version));
    runs.dedup();
    let mut blocks: BTreeMap<_, Touched> = BTreeMap::new();
    for run in runs {
        for block in (run.first.0..run.first.0 + run.blocks).map(BlockIndex) {
            let touched = blocks.entry((run.chunk, block)).or_default();
            let base = run.bases.iter().find(|base| base.block == block);
            match base.filter(|_| touched.newest != ChunkVersion::NONE) {
                // All of it was written, or nothing of this mount was there.
                None => {
                    *touched = Touched {
                        oldest: run.version.epoch,
                        ..Touched::default()
                    };
                }
                Some(base) if base.version < touched.newest => touched.lost = true,
                Some(base) if base.version == touched.newest => {}
                Some(base) if touched.is_under(base.version, spans) => {
                    let uncut = uncut_bytes(run.chunk, block);
                    if uncut >= BLOCK_SIZE_BYTES {
                        // Somebody wrote on top of it; `Kept::found` has put that in its place.
                    } else if base.length_bytes <= uncut {
                        // It was cut, and nothing was written there until this mount went on.
                        touched.lost = true;
                    } else {
                        touched.between = Some(base.version);
                    }
                }
                Some(base) => touched.between = Some(base.version),
            }
            touched.newest = run.version;
        }
    }
    blocks
}

/// What a write gave from an offset on and the newer ones did not write over. `None`: bytes are
/// missing.
pub(crate) fn uncovered(entry: &Entry, newer: &[Entry], from: u64) -> Option<Slab> {
    let mut left = Slab::clone(entry.slab.as_ref()?);
    left.erase(0, from);
    for entry in newer {
        for (&at, bytes) in &entry.slab.as_ref()?.extents {
            left.erase(at, at + bytes.len() as u64);
        }
    }
    Some(left)
}

/// What became of a block of acknowledged writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It has their bytes.
    There,
    /// It is older than they are: they are to be sent again.
    Lost,
    /// It was cut, and nobody has written there since: what they had from there on is to be sent
    /// again.
    Cut,
    /// Somebody wrote to it after them, and may not have known of them: nobody can tell whose bytes
    /// are which.
    Mixed,
}

/// A block as it was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundBlock {
    /// NONE: a hole.
    pub(crate) version: ChunkVersion,
    pub(crate) length_bytes: usize,
    /// It has all of the writes' bytes.
    pub(crate) is_whole: bool,
    /// Its first bytes, which no cut has touched since the writes.
    pub(crate) uncut_bytes: usize,
}

/// Who wrote a part of a block after this mount may have read the rest when it was lost.
pub(crate) fn fate(found: FoundBlock, ours: Touched, spans: &KeptSpans) -> Fate {
    let is_under = ours.is_under(found.version, spans);
    if found.is_whole || (is_under && found.uncut_bytes >= BLOCK_SIZE_BYTES) {
        Fate::There
    } else if is_under && found.length_bytes <= found.uncut_bytes {
        Fate::Cut
    } else if found.version > ours.newest || ours.between.is_some_and(|between| found.version >= between) {
        Fate::Mixed
    } else {
        Fate::Lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(counter: u64) -> ChunkVersion {
        let epoch = Epoch(1);
        ChunkVersion { epoch, counter }
    }

    #[test]
    fn every_fate() {
        let ours = |between| Touched {
            newest: version(5),
            oldest: Epoch(1),
            lost: false,
            between,
        };
        let found = |version, is_whole, uncut_bytes| FoundBlock {
            version,
            length_bytes: 100,
            is_whole,
            uncut_bytes,
        };
        let (uncut, cut) = (BLOCK_SIZE_BYTES, 0);
        let spans = KeptSpans::default();
        let fate = |found, ours| super::fate(found, ours, &spans);
        for version in [ChunkVersion::NONE, version(1), version(5), version(6)] {
            assert_eq!(
                fate(found(version, true, cut), ours(Some(self::version(4)))),
                Fate::There
            );
        }
        assert_eq!(fate(found(ChunkVersion::NONE, false, uncut), ours(None)), Fate::Lost);
        assert_eq!(fate(found(version(4), false, uncut), ours(None)), Fate::Lost);
        // Its own later write took the place of what was lost without knowing of it.
        assert_eq!(fate(found(version(5), false, uncut), ours(None)), Fate::Lost);
        // Somebody else's did, or wrote over what was there.
        assert_eq!(
            fate(found(version(5), false, uncut), ours(Some(version(4)))),
            Fate::Mixed
        );
        assert_eq!(
            fate(found(version(3), false, uncut), ours(Some(version(4)))),
            Fate::Lost
        );
        // In the same epoch nothing can have been lost in between, but it may have been cut.
        assert_eq!(fate(found(version(6), false, uncut), ours(None)), Fate::There);
        assert_eq!(fate(found(version(6), false, cut), ours(None)), Fate::Mixed);
        // Whoever cut it has written its rest anew, and nobody anything behind that.
        assert_eq!(fate(found(version(6), false, 100), ours(None)), Fate::Cut);
        assert_eq!(fate(found(version(6), false, 99), ours(None)), Fate::Mixed);
        assert_eq!(fate(found(version(4), false, 100), ours(None)), Fate::Lost);
        let later = ChunkVersion {
            epoch: Epoch(2),
            counter: 1,
        };
        assert_eq!(fate(found(later, false, uncut), ours(None)), Fate::Mixed);
        assert_eq!(fate(found(later, false, 100), ours(None)), Fate::Mixed);
        // Unless the chain is known to have lost nothing until then.
        let mut spans = KeptSpans::default();
        spans.learn(Epoch(1), Epoch(2));
        assert_eq!(super::fate(found(later, false, uncut), ours(None), &spans), Fate::There);
        assert_eq!(super::fate(found(later, false, 100), ours(None), &spans), Fate::Cut);
        let lost = Touched {
            lost: true,
            ..ours(None)
        };
        assert_eq!(
            fate(found(version(6), false, uncut), lost),
            Fate::Mixed,
            "it had been lost before"
        );
        assert_eq!(fate(found(version(5), false, uncut), lost), Fate::Lost);
    }
}
