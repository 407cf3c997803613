//! Staged copies: a chunk sent by a neighbour in parts, which takes the old one's place in one record.
//!
//! Parts are `Data` records that nothing points to until the final `State` record does. A crash before that leaves the
//! old chunk as it was and the parts dead.

use std::collections::BTreeMap;

use bytes::Bytes;
use dfs_common::units::BLOCK_SIZE_BYTES;
use dfs_common::wire::storage::{BlockRun, ChunkMemory, Origin};
use dfs_common::{BlockIndex, ChainId, ChunkId, ChunkVersion, CutEpoch, HybridClock, Level, RequestId, Timestamp};

use super::error::StoreError;
use super::format::{Kind, checksums, payload_bytes};
use super::index::{Effect, Entry, Extent};
use super::log::{Draft, Log, Staged, Urgency};

/// Of records that are the store's own.
const SYSTEM: Origin = Origin {
    id: RequestId::SYSTEM,
    level: Level::Quorum,
    cut: CutEpoch::NONE,
    stamp: HybridClock {
        wall: Timestamp::from_nanos(0),
        logical: 0,
    },
};

fn not_begun(chunk: ChunkId) -> StoreError {
    StoreError::Invalid {
        chunk,
        reason: "no copy of it was begun here: the sender must begin again".into(),
    }
}

impl Log {
    /// Drops a staged copy; its blocks are dead.
    fn unstage(&self, chunk: ChunkId) {
        let staged = self.lock().staged.remove(&chunk);
        self.release(staged.as_ref());
    }

    fn release(&self, staged: Option<&Staged>) {
        let Some(staged) = staged else { return };
        let mut index = self.index.write();
        for extent in staged.extents.values() {
            if let Some(segment) = index.segments.get_mut(&extent.sequence) {
                segment.staged = segment.staged.saturating_sub(1);
            }
        }
    }

    pub(super) fn install_begin(&self, chain: ChainId, chunk: ChunkId) -> Result<(), StoreError> {
        self.unstage(chunk);
        let mut state = self.lock();
        state.check()?;
        let extents = BTreeMap::new();
        state.staged.insert(chunk, Staged { chain, extents });
        Ok(())
    }

    pub(super) fn install_part(&self, chunk: ChunkId, runs: &[BlockRun], payload: &Bytes) -> Result<(), StoreError> {
        let invalid = |reason: String| StoreError::Invalid { chunk, reason };
        let chain = self.lock().staged.get(&chunk).ok_or_else(|| not_begun(chunk))?.chain;
        let mut rest = payload.clone();
        for run in runs {
            check_blocks(chunk, run.first, run.blocks, run.last_length_bytes)?;
            let length = payload_bytes(run.blocks, run.last_length_bytes);
            if rest.len() < length {
                return Err(invalid(format!(
                    "a part's payload is {} bytes short",
                    length - rest.len()
                )));
            }
            let blocks = rest.split_to(length);
            let _staging = self.staging.read();
            let extent = self.append_data(chain, chunk, run, &blocks, Urgency::Data)?;
            let mut state = self.lock();
            let staged = state.staged.get_mut(&chunk).ok_or_else(|| not_begun(chunk))?;
            let before = staged.extents.range(..extent.end()).next_back();
            if before.is_some_and(|(_, before)| before.end() > extent.first.0) {
                return Err(invalid(format!("block {} came twice in one copy", run.first)));
            }
            staged.extents.insert(extent.first.0, extent);
            if let Some(segment) = self.index.write().segments.get_mut(&extent.sequence) {
                segment.staged += 1;
            }
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(invalid(format!("a part's payload has {} bytes too many", rest.len())))
        }
    }

    /// Appends blocks that no chunk points to yet.
    pub(super) fn append_data(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        run: &BlockRun,
        payload: &[u8],
        urgency: Urgency,
    ) -> Result<Extent, StoreError> {
        let sums = checksums(chunk, run.version, run.first, run.blocks, payload);
        let draft = Draft {
            kind: Kind::Data,
            chain,
            chunk,
            version: run.version,
            origin: SYSTEM,
            first: run.first,
            blocks: run.blocks,
            last_length_bytes: run.last_length_bytes,
            urgency,
        };
        let mut placed = None;
        self.append(&draft, &sums, payload, |file, offset| {
            placed = Some((file.sequence, offset));
            Effect::Data
        })?;
        let (sequence, offset) = placed.unwrap_or_default();
        Ok(Extent {
            sequence,
            version: run.version,
            offset,
            first: run.first,
            record_blocks: run.blocks as u16,
            skip: 0,
            blocks: run.blocks as u16,
            last_length_bytes: run.last_length_bytes as u16,
        })
    }

    pub(super) fn install_finish(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        version: ChunkVersion,
        memory: &ChunkMemory,
    ) -> Result<(), StoreError> {
        let mut staged = None;
        let appended = self.append_state(Draft::state(chain, chunk, version), |_, state, _| {
            let copy = state.staged.remove(&chunk).filter(|copy| copy.chain == chain)?;
            let mut entry = Entry {
                extents: copy.extents.values().copied().collect(),
                removed: copy.extents.is_empty(),
                ..Entry::default()
            };
            entry.set_memory(memory);
            staged = Some(copy);
            Some((entry.seal_state(), Effect::State(entry)))
        });
        self.release(staged.as_ref());
        if appended? { Ok(()) } else { Err(not_begun(chunk)) }
    }
}

impl Draft {
    /// A record that says all about a chunk.
    pub(super) const fn state(chain: ChainId, chunk: ChunkId, version: ChunkVersion) -> Self {
        Self {
            kind: Kind::State,
            chain,
            chunk,
            version,
            origin: SYSTEM,
            first: BlockIndex(0),
            blocks: 0,
            last_length_bytes: 0,
            urgency: Urgency::Essential,
        }
    }
}

/// Blocks that fit a record and a chunk.
pub(super) fn check_blocks(
    chunk: ChunkId,
    first: BlockIndex,
    blocks: u32,
    last_length_bytes: u32,
) -> Result<(), StoreError> {
    let fits = blocks > 0
        && u16::try_from(blocks).is_ok()
        && first.0.checked_add(blocks).is_some_and(|end| end < u32::MAX)
        && (1..=BLOCK_SIZE_BYTES as u32).contains(&last_length_bytes);
    if fits {
        return Ok(());
    }
    Err(StoreError::Invalid {
        chunk,
        reason: format!("{blocks} blocks from {first}, the last of {last_length_bytes} bytes, are not a write"),
    })
}
