//! The block log: everything a storage node keeps, appended to large segments, with an index in memory.

mod error;
mod types;

use std::sync::Arc;

use bytes::Bytes;
use dfs_common::wire::storage::{BlockRun, ChunkSummary, Mutation};
use dfs_common::{BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, InodeId, RequestId};

use crate::disk::Disk;

pub use error::StoreError;
pub use types::{
    ChunkRead, MaintainReport, REMEMBERED_REQUESTS, RecoveryReport, Rot, SEGMENT_SIZE_BYTES, StoreOptions, Usage,
};

/// The chunks of one storage node. Cheap to clone; every call blocks shortly and may come from any thread.
#[derive(Clone)]
pub struct ChunkStore {
    inner: Arc<StoreOptions>,
}

impl std::fmt::Debug for ChunkStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkStore")
            .field("node", &self.inner.node)
            .finish_non_exhaustive()
    }
}

#[allow(
    clippy::missing_const_for_fn,
    unused_variables,
    clippy::needless_pass_by_value,
    clippy::unused_self,
    clippy::unnecessary_wraps
)]
impl ChunkStore {
    /// Opens (or makes) the store in `disk`'s directory and rebuilds its index.
    pub fn open(disk: Arc<dyn Disk>, options: StoreOptions) -> Result<(Self, RecoveryReport), StoreError> {
        Ok((
            Self {
                inner: Arc::new(options),
            },
            RecoveryReport::default(),
        ))
    }

    /// Carries out `mutation` under `version`, which the caller chose; the store judges neither order nor conditions.
    /// When it returns, the mutation is visible and survives the process; [`Self::sync`] makes it survive the machine.
    pub fn apply(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        version: ChunkVersion,
        id: RequestId,
        mutation: &Mutation,
        payload: &Bytes,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    /// Makes all that was applied before the call durable. Callers at the same time share one fdatasync.
    pub fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Blocks of `first .. first + blocks`, checked against their checksums. An unknown chunk is one hole of version `NONE`.
    pub fn read(&self, chunk: ChunkId, first: BlockIndex, blocks: u32) -> Result<ChunkRead, StoreError> {
        Ok(ChunkRead {
            version: ChunkVersion::NONE,
            runs: Vec::new(),
            payload: Bytes::new(),
        })
    }

    /// `NONE` for a chunk never heard of; a removed one keeps its last version.
    pub fn version(&self, chunk: ChunkId) -> ChunkVersion {
        ChunkVersion::NONE
    }

    /// Version of the mutation that wrote a block; `NONE` for a hole.
    pub fn block_version(&self, chunk: ChunkId, block: BlockIndex) -> ChunkVersion {
        ChunkVersion::NONE
    }

    /// Version that request `id` produced, if the chunk still remembers it.
    pub fn remembered(&self, chunk: ChunkId, id: RequestId) -> Option<ChunkVersion> {
        None
    }

    /// All remembered requests, oldest first.
    pub fn remembered_all(&self, chunk: ChunkId) -> Vec<(RequestId, ChunkVersion)> {
        Vec::new()
    }

    /// Chunks of a chain after `after` in order, tombstones included.
    pub fn list(&self, chain: ChainId, after: Option<ChunkId>, limit: usize) -> Vec<(ChunkId, ChunkVersion)> {
        Vec::new()
    }

    /// Chunks of an inode at or after `from` that are not tombstones.
    pub fn chunks_of(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Vec<ChunkId> {
        Vec::new()
    }

    /// Version, size and digest; `deep` reads and hashes the data too.
    pub fn summarize(&self, chunk: ChunkId, deep: bool) -> Result<ChunkSummary, StoreError> {
        Err(StoreError::Invalid {
            chunk,
            reason: "no such chunk".into(),
        })
    }

    /// Starts a staged copy of a chunk; one that was begun and not finished is dropped. The chunk itself stays as it is.
    pub fn install_begin(&self, chain: ChainId, chunk: ChunkId) -> Result<(), StoreError> {
        Ok(())
    }

    /// Adds runs to the staged copy; payload as in [`ChunkRead`].
    pub fn install_part(&self, chunk: ChunkId, runs: &[BlockRun], payload: &Bytes) -> Result<(), StoreError> {
        Ok(())
    }

    /// The staged copy takes the chunk's place, all or nothing.
    pub fn install_finish(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        version: ChunkVersion,
        remembered: &[(RequestId, ChunkVersion)],
    ) -> Result<(), StoreError> {
        Ok(())
    }

    /// Forgets a chunk with its version: the predecessor does not know it.
    pub fn drop_chunk(&self, chain: ChainId, chunk: ChunkId) -> Result<(), StoreError> {
        Ok(())
    }

    /// Forgets up to `limit` tombstones of a chain whose version is at most `up_to`.
    pub fn forget_tombstones(&self, chain: ChainId, up_to: ChunkVersion, limit: usize) -> Result<u64, StoreError> {
        Ok(0)
    }

    pub fn usage(&self) -> Usage {
        Usage::default()
    }

    /// Why the store takes nothing more, if so.
    pub fn fault(&self) -> Option<String> {
        None
    }

    /// One bounded step of checkpointing and compaction, for a background task.
    pub fn maintain(&self) -> Result<MaintainReport, StoreError> {
        Ok(MaintainReport::default())
    }

    /// Checkpoint and sync, so that the next start is quick. The store stays usable.
    pub fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
