//! What goes into the store and what comes out of it.

use std::time::Duration;

use bytes::Bytes;
use dfs_common::wire::storage::BlockRun;
use dfs_common::{ChunkId, ChunkVersion, ClusterId, StorageId, StoreId};

/// Size of a log segment: large enough that headers, syncs of metadata and file handles do not count, small enough
/// that compaction of one is a short step.
pub const SEGMENT_SIZE_BYTES: u32 = 64 << 20;

/// Request ids a chunk remembers. More than any client has in flight to one chunk.
pub const REMEMBERED_REQUESTS: usize = 64;

#[derive(Clone, Debug)]
pub struct StoreOptions {
    pub cluster: ClusterId,
    pub node: StorageId,
    /// Name of the store if it has to be made: to be drawn at random, since an old disk is told from an empty one by it.
    pub new_store: StoreId,
    /// Bytes of segments that the store may have on its disk.
    pub capacity_bytes: u64,
    /// [`SEGMENT_SIZE_BYTES`] but in tests.
    pub segment_size_bytes: u32,
    /// Log bytes between two checkpoints: bounds the time of a restart.
    pub checkpoint_interval_bytes: u64,
    /// How long something that has run out (descriptors, memory) may take to come back before the store ends.
    pub patience: Duration,
    /// After so long without writers to speak of, what is dead is given back to the disk.
    pub at_rest_after: Duration,
}

impl StoreOptions {
    #[must_use]
    pub const fn new(cluster: ClusterId, node: StorageId, capacity_bytes: u64) -> Self {
        Self {
            cluster,
            node,
            new_store: StoreId([0; 16]),
            capacity_bytes,
            segment_size_bytes: SEGMENT_SIZE_BYTES,
            checkpoint_interval_bytes: 1 << 30,
            patience: Duration::from_secs(5),
            at_rest_after: Duration::from_secs(20),
        }
    }
}

/// What [`super::ChunkStore::open`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The index came from a checkpoint; otherwise from the whole log.
    pub from_checkpoint: bool,
    pub segments: u64,
    /// Records replayed on top of the checkpoint.
    pub records: u64,
    pub chunks: u64,
    /// Bytes after the last whole record that were never acknowledged as durable.
    pub torn_tail_bytes: u64,
    /// Damaged files of the store itself that were made anew, with nothing lost.
    pub rebuilt: Vec<String>,
    /// Damage in what had been durable. The node lost something and needs a resync.
    pub rot: Vec<Rot>,
}

impl RecoveryReport {
    /// Whether something that may have been acknowledged is gone.
    #[must_use]
    pub fn needs_resync(&self) -> bool {
        !self.rot.is_empty()
    }
}

/// One damaged range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rot {
    /// File of the store.
    pub file: String,
    pub offset: u64,
    pub length_bytes: u64,
    /// Whose data it is, where that can still be read.
    pub chunk: Option<ChunkId>,
    pub detail: String,
}

impl std::fmt::Display for Rot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.file.is_empty() {
            return f.write_str(&self.detail);
        }
        write!(f, "{} at {}: {}", self.file, self.offset, self.detail)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What chunks may take in all.
    pub total_bytes: u64,
    /// Live data and its framing.
    pub used_bytes: u64,
    /// Chunks that are not tombstones.
    pub chunks: u64,
}

/// Blocks of a chunk, as `StorageResponse::Read` carries them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRead {
    pub version: ChunkVersion,
    /// In block order, holes left out.
    pub runs: Vec<BlockRun>,
    /// For each run its seals, then its ciphertexts.
    pub payload: Bytes,
}

/// What one step of [`super::ChunkStore::maintain`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaintainReport {
    pub checkpointed: bool,
    /// Segment that was emptied.
    pub compacted: Option<u64>,
    pub moved_bytes: u64,
    pub reclaimed_bytes: u64,
    /// A chunk that could not be moved because it is damaged.
    pub rotten: Option<ChunkId>,
    /// Another step would do something.
    pub more: bool,
    /// It should not wait: space is short.
    pub urgent: bool,
}
