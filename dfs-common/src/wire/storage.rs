//! The storage service: clients to replicas, replicas to their neighbours, and the metadata group's clean-up.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::{BlockIndex, ChainId, ChunkId, ChunkIndex, Epoch, InodeId, RequestId, StorageId};
use crate::level::Level;
use crate::version::ChunkVersion;

/// What a mutation does to its chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mutation {
    /// Blocks from `first`, contiguous. Payload: `blocks` seals of 28 B, then the ciphertexts. Every block is full
    /// (4096 B) but the last, which has `last_length_bytes` (1..=4096).
    Write {
        first: BlockIndex,
        blocks: u32,
        last_length_bytes: u32,
        conditions: Vec<BlockCondition>,
    },
    /// Blocks at and after `blocks` become holes.
    Truncate { blocks: u32 },
    /// The chunk becomes empty; its version lives on as a tombstone.
    Remove,
}

/// The write only takes effect if the block was last written at this version (`ChunkVersion::NONE`: it is a hole).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCondition {
    pub block: BlockIndex,
    pub version: ChunkVersion,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MutateRequest {
    pub chain: ChainId,
    pub epoch: Epoch,
    pub chunk: ChunkId,
    pub id: RequestId,
    pub level: Level,
    /// Durable (fdatasync on every in-sync replica) before it is acknowledged.
    pub sync: bool,
    pub mutation: Mutation,
}

/// One hop down the chain: the head's decision, which the others only follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardRequest {
    pub request: MutateRequest,
    /// Version before and after. A replica that is not at `before` answers `OutOfOrder` (it will get there),
    /// or `NeedsResync` while it is syncing.
    pub before: ChunkVersion,
    pub version: ChunkVersion,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageRequest {
    Mutate(MutateRequest),
    /// Blocks `first .. first + blocks` of a chunk.
    Read {
        chain: ChainId,
        epoch: Epoch,
        chunk: ChunkId,
        first: BlockIndex,
        blocks: u32,
        level: Level,
    },
    /// Everything that this chain has acknowledged becomes durable on every in-sync replica.
    Sync {
        chain: ChainId,
        epoch: Epoch,
    },
    /// Removes every chunk of the inode at or after `from` on this chain, through the chain.
    RemoveRange {
        chain: ChainId,
        epoch: Epoch,
        inodes: Vec<InodeId>,
        from: ChunkIndex,
    },
    /// Where the inode's data at or after chunk `from` ends on this chain. Answered by the tail, which has everything that
    /// was ever acknowledged.
    FileEnd {
        chain: ChainId,
        epoch: Epoch,
        inode: InodeId,
        from: ChunkIndex,
    },

    // Replica to its successor.
    Forward(ForwardRequest),
    ForwardSync {
        chain: ChainId,
        epoch: Epoch,
    },
    /// Chunks after `after` that the successor has, for comparison. Answered by a syncing member.
    Inventory {
        chain: ChainId,
        epoch: Epoch,
        after: Option<ChunkId>,
        limit: u32,
    },
    /// Replaces a chunk on a syncing member by its predecessor's copy, in parts; payload as in `Read`'s response.
    /// The last part (`done`) makes it visible under `version`.
    InstallChunk {
        chain: ChainId,
        epoch: Epoch,
        chunk: ChunkId,
        version: ChunkVersion,
        part: InstallPart,
    },
    /// Removes chunks that the predecessor does not have.
    DropChunks {
        chain: ChainId,
        epoch: Epoch,
        chunks: Vec<ChunkId>,
    },

    // Admin.
    /// Chunks of one chain with version and digest, for `dfs chain verify`. `deep` reads and hashes the data.
    ListChunks {
        chain: ChainId,
        after: Option<ChunkId>,
        limit: u32,
        deep: bool,
    },
    NodeStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstallPart {
    /// First part: drop what is there and start a staged copy.
    pub begin: bool,
    /// Last part: the staged copy takes the chunk's place, durably ordered after what it replaces.
    pub done: bool,
    pub runs: Vec<BlockRun>,
    /// With `done`: answers that the chunk remembers, for retries.
    pub remembered: Vec<(RequestId, ChunkVersion)>,
}

/// Contiguous blocks in a payload, written by one mutation. Every block is full but the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRun {
    pub first: BlockIndex,
    pub blocks: u32,
    pub last_length_bytes: u32,
    pub version: ChunkVersion,
}

impl BlockRun {
    /// Bytes of ciphertext of this run.
    #[must_use]
    pub const fn data_size_bytes(&self) -> usize {
        (self.blocks as usize).saturating_sub(1) * crate::units::BLOCK_SIZE_BYTES + self.last_length_bytes as usize
    }

    /// Bytes of this run's seals and ciphertext.
    #[must_use]
    pub const fn payload_size_bytes(&self) -> usize {
        self.blocks as usize * crate::units::SEAL_SIZE_BYTES + self.data_size_bytes()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageResponse {
    Mutated {
        version: ChunkVersion,
    },
    /// Runs in block order, holes left out. Payload: for each run its seals, then its ciphertexts.
    Read {
        version: ChunkVersion,
        runs: Vec<BlockRun>,
    },
    Synced,
    RangeRemoved {
        chunks: u64,
    },
    /// The last chunk that has any, and the bytes from its start to their end; `u32::MAX`: damaged, so nobody knows.
    FileEnd(Option<(ChunkIndex, u32)>),
    Forwarded,
    Inventory {
        chunks: Vec<(ChunkId, ChunkVersion)>,
        end: bool,
    },
    Installed,
    Dropped,
    Chunks {
        chunks: Vec<ChunkSummary>,
        end: bool,
    },
    NodeStatus(NodeStatus),
    Failed(Error),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkSummary {
    pub chunk: ChunkId,
    pub version: ChunkVersion,
    pub blocks: u32,
    pub data_size_bytes: u64,
    /// blake3 over (block, seal, length) of every block, and over the ciphertext where `deep`; first 16 bytes.
    pub digest: [u8; 16],
    /// A block that does not match its checksum, if there is one.
    pub rotten: Option<BlockIndex>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: StorageId,
    pub lease: bool,
    pub chunks: u64,
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub fault: Option<String>,
}
