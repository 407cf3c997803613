//! Writes that a chain has acknowledged, as the mount that made them remembers them. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use dfs_common::{BlockIndex, ChainId, ChunkIndex, ChunkVersion, CutEpoch};

use super::dirty::Slab;

/// Contiguous blocks of a chunk as one acknowledged mutation left them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WrittenRun {
    pub(crate) chunk: ChunkIndex,
    pub(crate) first: BlockIndex,
    pub(crate) blocks: u32,
    pub(crate) version: ChunkVersion,
    /// What its half-written blocks were merged with.
    pub(crate) bases: Vec<Base>,
}

/// What a half-written block was merged with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) block: BlockIndex,
    pub(crate) version: ChunkVersion,
    pub(crate) length_bytes: usize,
}

/// What a write still lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lacks {
    /// A sync of its chain.
    pub(crate) sync: bool,
    /// A commit of the length that it gave the file.
    pub(crate) commit: bool,
}

/// One acknowledged write.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) chain: ChainId,
    pub(crate) number: u64,
    /// `None`: there was no room for its bytes.
    pub(crate) slab: Option<Arc<Slab>>,
    pub(crate) runs: Vec<WrittenRun>,
    /// The truncation epoch in which it was acknowledged.
    pub(crate) cut: CutEpoch,
    /// The group's epoch was still that after the acknowledgement, so every later cut came after
    /// this write.
    pub(crate) precedes_cuts: bool,
    /// Where it ends in the file.
    pub(crate) end: u64,
    /// When it was first sent, on the mount's clock.
    pub(crate) since_ms: u64,
    pub(crate) lacks: Lacks,
}

impl Entry {
    /// It has lost what it had beyond `length`.
    pub(crate) fn truncate(&mut self, length: u64) {
        if self.end <= length {
            return;
        }
        self.end = length;
        match &mut self.slab {
            Some(slab) => {
                let slab = Arc::make_mut(slab);
                slab.erase(length, u64::MAX);
                if slab.extents.is_empty() {
                    self.lacks = Lacks {
                        sync: false,
                        commit: false,
                    };
                }
            }
            // Which of it is left nobody knows, but all of it was there before.
            None => self.lacks.commit &= length > 0,
        }
    }

    /// Whether this write's bytes are in the block as `run`, one of its runs, left it. They are if
    /// the run is the write itself, or was made from what the run before it had left. A truncation
    /// also counts as a run of the write; if it was made from another mount's version, the bytes
    /// may have been gone by then.
    pub(crate) fn is_held_by<'a>(&'a self, mut run: &'a WrittenRun, block: BlockIndex) -> bool {
        while let Some(base) = run.bases.iter().find(|base| base.block == block) {
            let earlier = self
                .runs
                .iter()
                .filter(|earlier| earlier.chunk == run.chunk && earlier.has(block) && earlier.version < run.version);
            match earlier.max_by_key(|earlier| earlier.version) {
                None => return true,
                Some(earlier) if earlier.version == base.version => run = earlier,
                Some(_) => return false,
            }
        }
        true
    }

    /// The version at which this write left a block, before anything of it was written anew.
    pub(crate) fn written_as(&self, chunk: ChunkIndex, block: BlockIndex) -> Option<ChunkVersion> {
        let runs = self.runs.iter().filter(|run| run.chunk == chunk && run.has(block));
        runs.map(|run| run.version).min()
    }

    /// Its last block.
    pub(crate) fn last_block(&self) -> Option<(ChunkIndex, BlockIndex)> {
        let ends = self
            .runs
            .iter()
            .map(|run| (run.chunk, BlockIndex(run.first.0 + run.blocks.saturating_sub(1))));
        ends.max()
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.slab.as_ref().map_or(0, |slab| slab.size_bytes)
    }

    pub(super) fn chunks(&self) -> impl Iterator<Item = ChunkIndex> + '_ {
        self.runs.iter().map(|run| run.chunk)
    }
}

impl WrittenRun {
    pub(super) fn has(&self, block: BlockIndex) -> bool {
        (self.first.0..self.first.0 + self.blocks).contains(&block.0)
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let ends = |run: &Self| run.first.0 + run.blocks;
        self.chunk == other.chunk && self.first.0 < ends(other) && other.first.0 < ends(self)
    }
}
