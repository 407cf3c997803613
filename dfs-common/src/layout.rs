//! Where a file's bytes are: byte -> chunk -> chain, computed, never looked up.

use serde::{Deserialize, Serialize};

use crate::chain::ChainTable;
use crate::error::{Error, ErrorCode};
use crate::id::{BlockIndex, ChainId, ChainTableId, ChunkIndex};
use crate::units::{BLOCK_SIZE_BYTES, DEFAULT_CHUNK_SIZE_BYTES, MAX_CHUNK_SIZE_BYTES};

/// Layout of one file; stands in its inode and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Layout {
    /// A power of two between one block and [`MAX_CHUNK_SIZE_BYTES`].
    pub chunk_size_bytes: u32,
    pub table: ChainTableId,
    /// Spreads files over the table: chunk i lives on chain (seed + i) mod chains.
    pub seed: u32,
}

/// A byte range within one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSpan {
    pub index: ChunkIndex,
    /// First byte, counted from the chunk's start.
    pub offset_bytes: u32,
    pub length_bytes: u32,
}

impl Layout {
    #[must_use]
    pub const fn new(table: ChainTableId, seed: u32) -> Self {
        Self {
            chunk_size_bytes: DEFAULT_CHUNK_SIZE_BYTES,
            table,
            seed,
        }
    }

    /// # Errors
    /// `InvalidArgument` for a chunk size that is no power of two within the limits.
    pub fn check(&self) -> Result<(), Error> {
        let size = self.chunk_size_bytes;
        if size.is_power_of_two() && size as usize >= BLOCK_SIZE_BYTES && size <= MAX_CHUNK_SIZE_BYTES {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("chunk size {size} is not a power of two from 4 KiB to 64 MiB"),
        ))
    }

    #[must_use]
    pub const fn blocks_per_chunk(&self) -> u32 {
        self.chunk_size_bytes / BLOCK_SIZE_BYTES as u32
    }

    /// Longest file that this layout can address, in bytes.
    #[must_use]
    pub const fn max_length_bytes(&self) -> u64 {
        self.chunk_size_bytes as u64 * u32::MAX as u64
    }

    /// Chunk that holds this byte.
    #[must_use]
    pub const fn chunk_of(&self, offset_bytes: u64) -> ChunkIndex {
        ChunkIndex((offset_bytes / self.chunk_size_bytes as u64) as u32)
    }

    /// First byte of a chunk, in the file.
    #[must_use]
    pub const fn chunk_start(&self, index: ChunkIndex) -> u64 {
        index.0 as u64 * self.chunk_size_bytes as u64
    }

    /// First byte of a block, in the file.
    #[must_use]
    pub const fn block_start(&self, index: ChunkIndex, block: BlockIndex) -> u64 {
        self.chunk_start(index) + block.0 as u64 * BLOCK_SIZE_BYTES as u64
    }

    /// Block of its chunk that holds this byte of the file.
    #[must_use]
    pub const fn block_of(&self, offset_bytes: u64) -> BlockIndex {
        BlockIndex((offset_bytes % self.chunk_size_bytes as u64 / BLOCK_SIZE_BYTES as u64) as u32)
    }

    /// Chain of a chunk; `None` for an empty table, which no committed table is.
    #[must_use]
    pub fn chain_of(&self, table: &ChainTable, index: ChunkIndex) -> Option<ChainId> {
        let at = (u64::from(self.seed) + u64::from(index.0)).checked_rem(table.chains.len() as u64)?;
        table.chains.get(usize::try_from(at).ok()?).copied()
    }

    /// Cuts a byte range of the file at chunk borders.
    pub fn spans(&self, offset_bytes: u64, length_bytes: u64) -> impl Iterator<Item = ChunkSpan> + use<> {
        let layout = *self;
        let end = offset_bytes.saturating_add(length_bytes);
        let mut at = offset_bytes;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let size = u64::from(layout.chunk_size_bytes);
            let within = at % size;
            let length = (size - within).min(end - at);
            let span = ChunkSpan {
                index: layout.chunk_of(at),
                offset_bytes: within as u32,
                length_bytes: length as u32,
            };
            at += length;
            Some(span)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_the_range_without_gap_or_overlap() {
        let layout = Layout {
            chunk_size_bytes: 8192,
            table: ChainTableId(1),
            seed: 5,
        };
        for (offset, length) in [(0_u64, 0_u64), (0, 1), (8191, 2), (5000, 40_000), (8192, 8192)] {
            let mut at = offset;
            for span in layout.spans(offset, length) {
                assert_eq!(layout.chunk_start(span.index) + u64::from(span.offset_bytes), at);
                assert!(span.offset_bytes + span.length_bytes <= 8192);
                at += u64::from(span.length_bytes);
            }
            assert_eq!(at, offset + length);
        }
    }

    #[test]
    fn chunks_walk_the_table() {
        let table = ChainTable {
            id: ChainTableId(1),
            chains: vec![ChainId(10), ChainId(11), ChainId(12)],
        };
        let layout = Layout::new(table.id, u32::MAX);
        let chains: Vec<_> = (0..4).filter_map(|i| layout.chain_of(&table, ChunkIndex(i))).collect();
        assert_eq!(chains, [ChainId(10), ChainId(11), ChainId(12), ChainId(10)]);
        assert_eq!(
            layout.chain_of(
                &ChainTable {
                    id: table.id,
                    chains: vec![]
                },
                ChunkIndex(0)
            ),
            None
        );
    }
}
