//! Mending: rotten blocks of a chunk, replaced by a neighbour's copy of them while writes go on.
//!
//! One mutation wrote the same bytes of a block on every replica, so a neighbour's block of the same version is what stood here.
//! The copy is appended, and takes the place of whatever part of the chunk still has that version when its record is made: a
//! block that was written, cut off or removed meanwhile stays what it became.

use bytes::Bytes;
use dfs_common::units::{BLOCK_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::wire::storage::BlockRun;
use dfs_common::{BlockIndex, ChunkId, ChunkVersion};

use super::error::StoreError;
use super::format::{CHECKSUM_BYTES, block_checksum, blocks_of, payload_bytes};
use super::index::{Effect, Extent, Health, SegmentFile};
use super::log::{Draft, Log, Urgency};
use super::read::{locate, read_unchecked};

/// Blocks checked at a time: bounds the memory.
const CHECK_BLOCKS: u32 = 256;

/// Bad blocks of one chunk that are looked for at a time; more are found when those are mended.
const MAX_BAD_BLOCKS: usize = 4_096;

/// Blocks of one extent that do not match their checksums.
fn bad_in(chunk: ChunkId, extent: &Extent, file: &SegmentFile, bad: &mut Vec<BlockRun>) -> Result<(), StoreError> {
    let mut payload = vec![0; extent.payload_bytes()];
    let sums = read_unchecked(extent, file, &mut payload)?;
    let blocks = blocks_of(&payload, u32::from(extent.blocks));
    for ((seal, ciphertext), (index, sum)) in blocks.zip((extent.first.0..).zip(sums.chunks_exact(CHECKSUM_BYTES))) {
        let block = BlockIndex(index);
        if block_checksum(chunk, extent.version, block, seal, ciphertext).to_le_bytes() == sum {
            continue;
        }
        let length = ciphertext.len() as u32;
        match bad.last_mut() {
            Some(run)
                if run.version == extent.version
                    && run.first.0 + run.blocks == index
                    && run.blocks < CHECK_BLOCKS
                    && run.last_length_bytes == BLOCK_SIZE_BYTES as u32 =>
            {
                run.blocks += 1;
                run.last_length_bytes = length;
            }
            _ => bad.push(BlockRun {
                first: block,
                blocks: 1,
                last_length_bytes: length,
                version: extent.version,
            }),
        }
    }
    Ok(())
}

impl Log {
    /// Blocks of a chunk that can not be read, with the version that each should have. `Corrupt` when a mutation of the chunk was lost, so that
    /// nobody knows what it should be.
    pub(super) fn bad_blocks(&self, chunk: ChunkId) -> Result<Vec<BlockRun>, StoreError> {
        let located = locate(&self.index.read(), chunk, 0, u32::MAX)?;
        let mut bad = Vec::new();
        for (whole, file) in &located.extents {
            let mut from = whole.first.0;
            while let Some(extent) = whole.cut(from, from.saturating_add(CHECK_BLOCKS)) {
                from = extent.end();
                bad_in(chunk, &extent, file, &mut bad)?;
                if bad.len() >= MAX_BAD_BLOCKS {
                    return Ok(bad);
                }
            }
        }
        Ok(bad)
    }

    /// Puts a neighbour's blocks in the place of those of the same version. Returns how many took it.
    pub(super) fn mend(&self, chunk: ChunkId, runs: &[BlockRun], payload: &Bytes) -> Result<u64, StoreError> {
        // No segment is given up while blocks stand in it that nothing points to yet.
        let _staging = self.staging.read();
        let mut rest = payload.clone();
        let mut copies = Vec::new();
        let chain = self.index.read().chain_of(chunk);
        let Some(chain) = chain else { return Ok(0) };
        for run in runs {
            let length = payload_bytes(run.blocks, run.last_length_bytes);
            if rest.len() < length {
                return Err(StoreError::Invalid {
                    chunk,
                    reason: format!("a neighbour's copy is {} bytes short", length - rest.len()),
                });
            }
            let bytes = rest.split_to(length);
            for (index, (seal, ciphertext)) in (run.first.0..).zip(blocks_of(&bytes, run.blocks)) {
                if !self.has_block(chunk, index, run.version, ciphertext.len()) {
                    continue;
                }
                let one = BlockRun {
                    first: BlockIndex(index),
                    blocks: 1,
                    last_length_bytes: ciphertext.len() as u32,
                    version: run.version,
                };
                let mut block = Vec::with_capacity(SEAL_SIZE_BYTES + ciphertext.len());
                block.extend_from_slice(seal);
                block.extend_from_slice(ciphertext);
                copies.push(self.append_data(chain, chunk, &one, &block, Urgency::Essential)?);
            }
        }
        if copies.is_empty() {
            return Ok(0);
        }
        let mut mended = 0;
        let mut left = Vec::new();
        self.append_state(Draft::state(chain, chunk, ChunkVersion::NONE), |draft, _, index| {
            let mut entry = index.get(chunk)?.clone();
            for copy in copies {
                let (first, end) = (copy.first.0, copy.end());
                let same = entry
                    .within(first, end)
                    .next()
                    .filter(|there| there.version == copy.version && there.last_length_bytes == copy.last_length_bytes);
                if let Some(there) = same {
                    left.push(there.sequence);
                    entry.replace(first, end, Some(copy));
                    mended += 1;
                }
            }
            if mended == 0 {
                return None;
            }
            if entry.health == Health::Rotten {
                entry.health = Health::Sound;
            }
            draft.version = entry.version;
            draft.chain = index.chain_of(chunk).unwrap_or(chain);
            Some((entry.seal_state(), Effect::State(entry)))
        })?;
        // What was bad in them is not theirs any more: they may be emptied.
        let mut index = self.index.write();
        for sequence in left {
            if let Some(segment) = index.segments.get_mut(&sequence) {
                segment.rotten = false;
            }
        }
        Ok(mended)
    }

    /// Whether the chunk has this block of this version and length.
    fn has_block(&self, chunk: ChunkId, block: u32, version: ChunkVersion, length: usize) -> bool {
        let index = self.index.read();
        let there = index
            .get(chunk)
            .filter(|entry| entry.health != Health::Incomplete)
            .and_then(|entry| entry.within(block, block.saturating_add(1)).next());
        there.is_some_and(|there| there.version == version && usize::from(there.last_length_bytes) == length)
    }
}
