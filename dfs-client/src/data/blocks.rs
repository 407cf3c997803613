//! From dirty extents to runs of blocks that one request writes, and the merge of half-written blocks. Pure.
//!
//! Only the client can open a block, so a write that covers part of one needs the rest of it: from the chain, from what
//! this mount last wrote there, or nothing where the file had no such block. Each such block carries a condition on the
//! version that its base was read at; another writer's block makes the request fail instead of losing bytes.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use dfs_common::units::BLOCK_SIZE_BYTES;
use dfs_common::{BlockIndex, ChunkIndex, Layout};

/// Bytes of a block that the writer gave, `from..to`.
type Given = Vec<(usize, usize)>;

/// Contiguous blocks of one chunk. All are full but the last, which may be short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedRun {
    pub(crate) chunk: ChunkIndex,
    pub(crate) first: BlockIndex,
    pub(crate) data: Vec<u8>,
    /// Blocks that the writer gave only in part.
    pub(crate) partial: BTreeMap<BlockIndex, Given>,
}

impl PlannedRun {
    pub(crate) fn blocks(&self) -> u32 {
        self.data.len().div_ceil(BLOCK_SIZE_BYTES) as u32
    }

    pub(crate) fn last_length_bytes(&self) -> u32 {
        match self.data.len() % BLOCK_SIZE_BYTES {
            0 => BLOCK_SIZE_BYTES as u32,
            rest => rest as u32,
        }
    }

    /// The content of one block of the run.
    pub(crate) fn block(&self, block: BlockIndex) -> &[u8] {
        let start = (block.0 - self.first.0) as usize * BLOCK_SIZE_BYTES;
        let end = (start + BLOCK_SIZE_BYTES).min(self.data.len());
        &self.data[start..end]
    }

    /// Whether a block that holds `base`, and zeros behind it, has all that the writer gave of it.
    pub(crate) fn is_in(&self, block: BlockIndex, base: &[u8]) -> bool {
        let content = self.block(block);
        let whole = vec![(0, content.len())];
        let given = self.partial.get(&block).unwrap_or(&whole);
        let has = |&(from, to): &(usize, usize)| {
            (from..to.min(content.len())).all(|at| base.get(at).copied().unwrap_or(0) == content[at])
        };
        given.iter().all(has)
    }

    /// Whether a block that holds `base` also reaches as far as what the writer gave of it.
    pub(crate) fn reaches(&self, block: BlockIndex, base: &[u8]) -> bool {
        let whole = self.block(block).len();
        let given = self.partial.get(&block);
        let end = given.and_then(|given| given.iter().map(|&(_, to)| to).max());
        base.len() >= end.unwrap_or(whole)
    }

    /// Some of its blocks, which follow each other, as a run of their own that nothing has to be merged into.
    pub(crate) fn part(&self, blocks: impl Iterator<Item = BlockIndex> + Clone) -> Self {
        Self {
            chunk: self.chunk,
            first: blocks.clone().next().unwrap_or(self.first),
            data: blocks.flat_map(|block| self.block(block)).copied().collect(),
            partial: BTreeMap::new(),
        }
    }

    /// Takes the first bytes of a block for not given.
    pub(crate) fn leave(&mut self, block: BlockIndex, bytes: usize) {
        let whole = vec![(0, self.block(block).len())];
        let given = self.partial.entry(block).or_insert(whole);
        given.retain_mut(|(from, to)| {
            *from = bytes.max(*from);
            from < to
        });
    }

    /// Fills in what the writer did not give of a partial block. May be called again with a newer base.
    pub(crate) fn merge(&mut self, block: BlockIndex, base: &[u8]) {
        let Some(given) = self.partial.get(&block) else { return };
        let start = (block.0 - self.first.0) as usize * BLOCK_SIZE_BYTES;
        let is_last = block.0 + 1 == self.first.0 + self.blocks();
        if is_last {
            let given_end = given.iter().map(|&(_, to)| to).max().unwrap_or(0);
            self.data.resize(start + given_end.max(base.len()), 0);
        }
        let end = (start + BLOCK_SIZE_BYTES).min(self.data.len());
        let target = &mut self.data[start..end];
        let mut at = 0;
        let mut fill = |from: usize, to: usize| {
            for (i, byte) in target.iter_mut().enumerate().take(to).skip(from) {
                *byte = base.get(i).copied().unwrap_or(0);
            }
        };
        for &(from, to) in given {
            fill(at, from);
            at = to;
        }
        fill(at, end - start);
    }
}

/// Cuts extents (by file offset, not touching each other, all within one chunk) into runs of blocks.
pub(crate) fn plan(layout: &Layout, extents: &BTreeMap<u64, Vec<u8>>) -> Vec<PlannedRun> {
    let block = BLOCK_SIZE_BYTES as u64;
    let mut runs: Vec<PlannedRun> = Vec::new();
    for (&offset, bytes) in extents {
        if bytes.is_empty() {
            continue;
        }
        let chunk = layout.chunk_of(offset);
        let start = offset - layout.chunk_start(chunk);
        let end = start + bytes.len() as u64;
        let first = BlockIndex((start / block) as u32);
        let joins = runs
            .last()
            .is_some_and(|run| run.chunk == chunk && first.0 <= run.first.0 + run.blocks());
        if !joins {
            runs.push(PlannedRun {
                chunk,
                first,
                data: Vec::with_capacity(bytes.len() + BLOCK_SIZE_BYTES),
                partial: BTreeMap::new(),
            });
        }
        let Some(run) = runs.last_mut() else { continue };
        let base = u64::from(run.first.0) * block;
        run.data.resize((start - base) as usize, 0);
        run.data.extend_from_slice(bytes);
        for index in [first.0, ((end - 1) / block) as u32] {
            let block_start = u64::from(index) * block;
            let from = start.max(block_start) - block_start;
            let to = end.min(block_start + block) - block_start;
            if to - from < block {
                let given = run.partial.entry(BlockIndex(index)).or_default();
                let piece = (from as usize, to as usize);
                if given.last() != Some(&piece) {
                    given.push(piece);
                }
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use dfs_common::ChainTableId;
    use proptest::prelude::*;

    use super::*;

    fn layout() -> Layout {
        Layout {
            chunk_size_bytes: 16_384,
            table: ChainTableId(1),
            seed: 0,
        }
    }

    #[test]
    fn zeros_that_were_written_are_no_hole() {
        let runs = plan(&layout(), &BTreeMap::from([(10, vec![0; 20])]));
        let is_there = |base: &[u8]| runs[0].is_in(BlockIndex(0), base) && runs[0].reaches(BlockIndex(0), base);
        assert!(!is_there(&[]) && !is_there(&[0; 29]));
        assert!(is_there(&[0; 30]) && is_there(&[0; 40]));
    }

    proptest! {
        #[test]
        fn runs_over_their_bases_are_the_oracle(
            writes in proptest::collection::vec((0_usize..16_384, 1_usize..6_000, any::<u8>()), 1..8),
            base_length in 0_usize..16_384,
        ) {
            let base: Vec<u8> = (0..base_length).map(|i| (i % 251) as u8 + 1).collect();
            let mut oracle = base.clone();
            oracle.resize(16_384, 0);
            let mut buffer = super::super::dirty::DirtyBuffer::new(16_384);
            for (offset, length, fill) in writes {
                let length = length.min(16_384 - offset);
                buffer.write(32_768 + offset as u64, &vec![fill; length], 0);
                oracle[offset..offset + length].fill(fill);
            }
            let mut result = base.clone();
            result.resize(16_384, 0);
            for index in buffer.ready(0, 0, 0) {
                let slab = buffer.take(index).unwrap();
                for mut run in plan(&layout(), &slab.extents) {
                    prop_assert_eq!(run.chunk, ChunkIndex(2));
                    let partial: Vec<_> = run.partial.keys().copied().collect();
                    // A first, wrong base must leave nothing behind.
                    for &block in &partial {
                        run.merge(block, &[0xee; BLOCK_SIZE_BYTES]);
                    }
                    for &block in &partial {
                        let start = (block.0 as usize * BLOCK_SIZE_BYTES).min(base.len());
                        let end = (start + BLOCK_SIZE_BYTES).min(base.len());
                        run.merge(block, &base[start..end]);
                    }
                    let at = run.first.0 as usize * BLOCK_SIZE_BYTES;
                    // Every block is written whole: the rest of a short last one reads as zeros.
                    let end = at + run.blocks() as usize * BLOCK_SIZE_BYTES;
                    result[at..end].fill(0);
                    result[at..at + run.data.len()].copy_from_slice(&run.data);
                }
            }
            prop_assert_eq!(result, oracle);
        }
    }

    #[test]
    fn a_block_is_compared_where_it_was_given() {
        let extents = BTreeMap::from([(10, b"abc".to_vec()), (4096, vec![7; 4096])]);
        let runs = plan(&layout(), &extents);
        let first = &runs[0];
        assert!(first.is_in(BlockIndex(0), b"0123456789abcdef"));
        assert!(!first.is_in(BlockIndex(0), b"0123456789abX"));
        assert!(!first.is_in(BlockIndex(0), b"0123456789ab"), "the rest are zeros");
        assert!(first.is_in(BlockIndex(1), &[7; 4096]) && !first.is_in(BlockIndex(1), &[7; 4095]));
    }

    #[test]
    fn what_is_left_of_a_block_comes_from_its_base() {
        let extents = BTreeMap::from([(2, b"cdef".to_vec()), (4094, vec![7; 4098])]);
        let runs = plan(&layout(), &extents);
        let merged = |left, base: &[u8]| {
            let mut run = runs[0].clone();
            run.leave(BlockIndex(0), left);
            run.merge(BlockIndex(0), base);
            (
                run.block(BlockIndex(0))[..8].to_vec(),
                run.block(BlockIndex(0))[4094..].to_vec(),
            )
        };
        assert_eq!(merged(4, b"WXYZ"), (b"WXYZef\0\0".to_vec(), vec![7; 2]));
        assert_eq!(merged(6, b"WXYZ"), (b"WXYZ\0\0\0\0".to_vec(), vec![7; 2]));
        let mut whole = runs[0].clone();
        whole.leave(BlockIndex(1), 4095);
        whole.merge(BlockIndex(1), &[9; 4095]);
        assert_eq!(whole.block(BlockIndex(1))[4094..], [9, 7]);
    }

    #[test]
    fn aligned_writes_need_no_base() {
        let extents = BTreeMap::from([(4096, vec![1; 8192]), (16_384 - 100, vec![2; 100])]);
        let runs = plan(&layout(), &extents);
        assert_eq!(runs.len(), 1);
        assert_eq!((runs[0].first, runs[0].blocks()), (BlockIndex(1), 3));
        assert_eq!(runs[0].partial.keys().copied().collect::<Vec<_>>(), vec![BlockIndex(3)]);
    }
}
