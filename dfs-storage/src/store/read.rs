//! Reading: extents from the index, bytes from their segments, every block against its checksum.

use std::sync::Arc;

use bytes::Bytes;
use dfs_common::planted::{self, Bug};
use dfs_common::units::{BLOCK_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::wire::storage::ChunkSummary;
use dfs_common::{BlockIndex, ChunkId, ChunkVersion};

use super::error::StoreError;
use super::format::{CHECKSUM_BYTES, RECORD_HEADER_BYTES, blocks_of, data_bytes, first_rotten, payload_bytes};
use super::index::{Extent, Health, Index, SegmentFile};
use super::log::segment_name;
use super::types::ChunkRead;

/// Blocks hashed at a time by a deep summary: bounds its memory.
const SUMMARY_BLOCKS: u32 = 256;

/// Extents of a chunk with the segments they are in. Holding it keeps those segments from being recycled.
pub(super) struct Located {
    version: ChunkVersion,
    pub(super) extents: Vec<(Extent, Arc<SegmentFile>)>,
}

pub(super) fn locate(index: &Index, chunk: ChunkId, first: u32, end: u32) -> Result<Located, StoreError> {
    let Some(entry) = index.get(chunk) else {
        return Ok(Located {
            version: ChunkVersion::NONE,
            extents: Vec::new(),
        });
    };
    let corrupt = |block| StoreError::Corrupt { chunk, block };
    if entry.health == Health::Incomplete {
        return Err(corrupt(BlockIndex(first)));
    }
    let extents = entry
        .within(first, end)
        .map(|extent| {
            let segment = index
                .segments
                .get(&extent.sequence)
                .ok_or_else(|| corrupt(extent.first))?;
            Ok((extent, Arc::clone(&segment.file)))
        })
        .collect::<Result<Vec<_>, StoreError>>()?;
    Ok(Located {
        version: entry.version,
        extents,
    })
}

impl Extent {
    pub(super) const fn payload_bytes(&self) -> usize {
        payload_bytes(self.blocks as u32, self.last_length_bytes as u32)
    }

    const fn sums_at(&self) -> u64 {
        self.offset as u64 + (RECORD_HEADER_BYTES + self.skip as usize * CHECKSUM_BYTES) as u64
    }

    const fn seals_at(&self) -> u64 {
        self.offset as u64
            + (RECORD_HEADER_BYTES
                + self.record_blocks as usize * CHECKSUM_BYTES
                + self.skip as usize * SEAL_SIZE_BYTES) as u64
    }

    const fn data_at(&self) -> u64 {
        self.offset as u64
            + (RECORD_HEADER_BYTES
                + self.record_blocks as usize * (CHECKSUM_BYTES + SEAL_SIZE_BYTES)
                + self.skip as usize * BLOCK_SIZE_BYTES) as u64
    }
}

fn check(chunk: ChunkId, extent: &Extent, payload: &[u8], sums: &[u8]) -> Result<(), StoreError> {
    match first_rotten(
        chunk,
        extent.version,
        extent.first,
        u32::from(extent.blocks),
        payload,
        sums,
    ) {
        None => Ok(()),
        Some(_) if planted::is(Bug::ChecksumIgnored) => Ok(()),
        Some(block) => Err(StoreError::Corrupt { chunk, block }),
    }
}

/// Reads an extent's seals and ciphertexts into `into` and verifies them; gives back their checksums.
pub(super) fn read_extent(
    chunk: ChunkId,
    extent: &Extent,
    file: &SegmentFile,
    into: &mut [u8],
) -> Result<Vec<u8>, StoreError> {
    let sums = read_unchecked(extent, file, into)?;
    check(chunk, extent, into, &sums)?;
    Ok(sums)
}

/// The same without the check.
pub(super) fn read_unchecked(extent: &Extent, file: &SegmentFile, into: &mut [u8]) -> Result<Vec<u8>, StoreError> {
    let io = |error| StoreError::io(format!("reading {}", segment_name(file.slot)), error);
    let mut sums = vec![0; usize::from(extent.blocks) * CHECKSUM_BYTES];
    file.file.read_at(extent.sums_at(), &mut sums).map_err(io)?;
    if extent.blocks == extent.record_blocks {
        file.file.read_at(extent.seals_at(), into).map_err(io)?;
    } else {
        let (seals, data) = into.split_at_mut(usize::from(extent.blocks) * SEAL_SIZE_BYTES);
        file.file.read_at(extent.seals_at(), seals).map_err(io)?;
        file.file.read_at(extent.data_at(), data).map_err(io)?;
    }
    Ok(sums)
}

/// One whole record, the usual case: checksums and payload stand together, so one read brings all.
fn read_record(chunk: ChunkId, extent: &Extent, file: &SegmentFile) -> Result<Bytes, StoreError> {
    let sums = usize::from(extent.blocks) * CHECKSUM_BYTES;
    let mut bytes = vec![0; sums + extent.payload_bytes()];
    file.file
        .read_at(extent.sums_at(), &mut bytes)
        .map_err(|error| StoreError::io(format!("reading {}", segment_name(file.slot)), error))?;
    check(chunk, extent, &bytes[sums..], &bytes[..sums])?;
    Ok(Bytes::from(bytes).slice(sums..))
}

pub(super) fn read(
    index: &parking_lot::RwLock<Index>,
    chunk: ChunkId,
    first: BlockIndex,
    blocks: u32,
) -> Result<ChunkRead, StoreError> {
    let located = locate(&index.read(), chunk, first.0, first.0.saturating_add(blocks))?;
    let runs = located.extents.iter().map(|(extent, _)| extent.run()).collect();
    let payload = match &located.extents[..] {
        [(extent, file)] if extent.blocks == extent.record_blocks => read_record(chunk, extent, file)?,
        extents => {
            let mut payload = vec![0; extents.iter().map(|(extent, _)| extent.payload_bytes()).sum()];
            let mut rest = &mut payload[..];
            for (extent, file) in extents {
                let (into, after) = rest.split_at_mut(extent.payload_bytes());
                read_extent(chunk, extent, file, into)?;
                rest = after;
            }
            Bytes::from(payload)
        }
    };
    Ok(ChunkRead {
        version: located.version,
        runs,
        payload,
    })
}

/// Digest over every block in order: index, seal, length; and the ciphertext where `deep`. The same on every replica,
/// however its extents are cut.
pub(super) fn summarize(
    index: &parking_lot::RwLock<Index>,
    chunk: ChunkId,
    deep: bool,
) -> Result<ChunkSummary, StoreError> {
    let located = match locate(&index.read(), chunk, 0, u32::MAX) {
        Ok(located) => located,
        Err(StoreError::Corrupt { block, .. }) => {
            return Ok(ChunkSummary {
                chunk,
                version: ChunkVersion::NONE,
                blocks: 0,
                data_size_bytes: 0,
                digest: [0; 16],
                rotten: Some(block),
            });
        }
        Err(error) => return Err(error),
    };
    let mut summary = ChunkSummary {
        chunk,
        version: located.version,
        blocks: 0,
        data_size_bytes: 0,
        digest: [0; 16],
        rotten: None,
    };
    let mut hasher = blake3::Hasher::new();
    for (whole, file) in &located.extents {
        let mut from = whole.first.0;
        while let Some(extent) = whole.cut(from, from.saturating_add(SUMMARY_BLOCKS)) {
            from = extent.end();
            let blocks = u32::from(extent.blocks);
            let last = u32::from(extent.last_length_bytes);
            summary.blocks += blocks;
            summary.data_size_bytes += data_bytes(blocks, last) as u64;
            let seals = usize::from(extent.blocks) * SEAL_SIZE_BYTES;
            let mut bytes = vec![0; if deep { extent.payload_bytes() } else { seals }];
            if deep {
                match read_extent(chunk, &extent, file, &mut bytes) {
                    Ok(_) => {}
                    Err(StoreError::Corrupt { block, .. }) => {
                        summary.rotten.get_or_insert(block);
                    }
                    Err(error) => return Err(error),
                }
            } else {
                file.file
                    .read_at(extent.seals_at(), &mut bytes)
                    .map_err(|error| StoreError::io(format!("reading {}", segment_name(file.slot)), error))?;
            }
            let mut data = deep.then(|| blocks_of(&bytes, blocks));
            for (position, seal) in bytes[..seals].chunks_exact(SEAL_SIZE_BYTES).enumerate() {
                let length = if position as u32 + 1 == blocks {
                    last
                } else {
                    BLOCK_SIZE_BYTES as u32
                };
                hasher.update(&(extent.first.0 + position as u32).to_le_bytes());
                hasher.update(seal);
                hasher.update(&length.to_le_bytes());
                if let Some((_, ciphertext)) = data.as_mut().and_then(Iterator::next) {
                    hasher.update(ciphertext);
                }
            }
        }
    }
    summary.digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Ok(summary)
}
