//! The other version's blocks, and how they lie over the current content. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use bytes::Bytes;
use dfs_common::BlockIndex;
use dfs_common::units::{BLOCK_SIZE_BYTES, MAX_IO_SIZE_BYTES};

const BLOCK: u64 = BLOCK_SIZE_BYTES as u64;

/// Blocks of one read: a whole I/O.
const MAX_BLOCKS: u32 = (MAX_IO_SIZE_BYTES / BLOCK_SIZE_BYTES) as u32;

/// What is kept of the other version: at most a chunk, so at most 64 MiB.
///
/// A piece starts where a block starts, and only its last block may be short; what a block lacks reads as zeros, or ends the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherVersion {
    pieces: Vec<(u64, Bytes)>,
}

impl OtherVersion {
    /// `pieces`: offset in the file and bytes, in file order.
    #[must_use]
    pub fn new(pieces: Vec<(u64, Bytes)>) -> Self {
        Self { pieces }
    }

    /// Offset in the file and bytes as they were written, in file order.
    #[must_use]
    pub fn pieces(&self) -> &[(u64, Bytes)] {
        &self.pieces
    }

    /// How long the file is in the other version, if it is `current` bytes long now. Who wrote the block in which the file ends also
    /// said where that is.
    #[must_use]
    pub fn length(&self, current: u64) -> u64 {
        self.end(current).unwrap_or(current)
    }

    /// Where the file ends in the other version, if that is for it to say: it has the block in which a file of `current` bytes
    /// ends, or one behind it.
    #[must_use]
    pub fn end(&self, current: u64) -> Option<u64> {
        let (offset, bytes) = self.pieces.last()?;
        let end = offset + bytes.len() as u64;
        (block_end(end) >= current).then_some(end)
    }

    /// The pieces with the zeros that short blocks read as, within a file of `length` bytes.
    pub fn filled(&self, length: u64) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        self.pieces.iter().map(move |(offset, bytes)| {
            let end = offset + bytes.len() as u64;
            let upto = block_end(end).min(length);
            if upto <= end {
                return (*offset, bytes.clone());
            }
            let mut filled = bytes.to_vec();
            filled.resize((upto - offset) as usize, 0);
            (*offset, Bytes::from(filled))
        })
    }

    /// Lays what is of the other version over `content`, which stands at `offset` in the file.
    pub fn lay_over(&self, offset: u64, content: &mut [u8]) {
        let end = offset + content.len() as u64;
        for (start, piece) in &self.pieces {
            let piece_end = start + piece.len() as u64;
            let (from, upto) = ((*start).max(offset), block_end(piece_end).min(end));
            if from >= upto {
                continue;
            }
            let data_end = piece_end.clamp(from, upto);
            let at = |position: u64| (position - offset) as usize;
            if data_end > from {
                let part = (from - start) as usize..(data_end - start) as usize;
                content[at(from)..at(data_end)].copy_from_slice(&piece[part]);
            }
            content[at(data_end)..at(upto)].fill(0);
        }
    }
}

const fn block_end(offset: u64) -> u64 {
    offset.div_ceil(BLOCK) * BLOCK
}

/// Runs cut into reads of at most one I/O.
pub(super) fn reads(runs: &[(BlockIndex, u32)]) -> impl Iterator<Item = (BlockIndex, u32)> + '_ {
    runs.iter().flat_map(|&(first, count)| {
        let starts = (0..count).step_by(MAX_BLOCKS as usize);
        starts.map(move |at| (BlockIndex(first.0.saturating_add(at)), (count - at).min(MAX_BLOCKS)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(pieces: &[(u64, usize)]) -> OtherVersion {
        let filled = |&(offset, length): &(u64, usize)| (offset, Bytes::from(vec![b'o'; length]));
        OtherVersion::new(pieces.iter().map(filled).collect())
    }

    #[test]
    fn runs_are_cut_into_reads() {
        let cut: Vec<_> = reads(&[(BlockIndex(3), 1), (BlockIndex(10), 600)]).collect();
        let expected = [(3, 1), (10, 256), (266, 256), (522, 88)];
        assert_eq!(cut, expected.map(|(first, count)| (BlockIndex(first), count)));
    }

    #[test]
    fn blocks_lie_over_content_wherever_it_is_cut() {
        // A full block, a hole, two blocks of which the second is short, and something behind them.
        let other = other(&[(4096, 4096), (12_288, 4096 + 10)]);
        let mut whole = vec![b'c'; 30_000];
        other.lay_over(0, &mut whole);
        let byte = |at: usize| match at {
            4096..8192 | 12_288..16_394 => b'o',
            16_394..20_480 => 0,
            _ => b'c',
        };
        assert!((0..30_000).all(|at| whole[at] == byte(at)));
        for step in [1_000, 4096, 7_777, 30_000] {
            let mut cut = Vec::new();
            for start in (0..30_000).step_by(step) {
                let mut part = vec![b'c'; step.min(30_000 - start)];
                other.lay_over(start as u64, &mut part);
                cut.extend(part);
            }
            assert!(cut == whole, "in steps of {step}");
        }
    }

    #[test]
    fn who_wrote_the_last_block_says_where_the_file_ends() {
        let short = other(&[(4096, 10)]);
        assert_eq!(short.length(4_200), 4_106, "shorter than now");
        assert_eq!(short.length(100), 4_106, "longer than now");
        assert_eq!(short.length(8_193), 8_193, "it ends elsewhere");
        assert_eq!((short.end(8_192), short.end(8_193)), (Some(4_106), None));
        assert_eq!(OtherVersion::default().length(5), 5);
        let filled = |length| short.filled(length).map(|(_, bytes)| bytes.len()).collect::<Vec<_>>();
        assert_eq!(filled(4_106), [10]);
        assert_eq!(filled(5_000), [904]);
        assert_eq!(filled(1 << 20), [4096]);
    }
}
