//! The storage service: clients to replicas, replicas to their neighbours, and the metadata group's clean-up.

use serde::{Deserialize, Serialize};

use crate::cut::CutEpoch;
use crate::error::Error;
use crate::id::{BlockIndex, ChainId, ChunkId, ChunkIndex, Epoch, InodeId, RequestId, SessionId, StorageId};
use crate::level::Level;
use crate::time::Timestamp;
use crate::version::{ChunkVector, ChunkVersion, HybridClock};

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
    /// Only if the last truncation or removal of the chunk was this one (NONE: there was none). A condition on a block can not
    /// tell a hole that was never written from one that was cut.
    pub uncut_since: Option<ChunkVersion>,
    /// The file's truncation epoch as the sender knows it. A chunk that has seen a later one refuses with `StaleCut`; else it
    /// is the chunk's from now on. A mutation of the system (`RequestId::SYSTEM`) is not asked for it and leaves it alone.
    pub cut: CutEpoch,
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
    /// When the head gave it out.
    pub stamp: HybridClock,
    /// The chain may be known to rest, so this counts at QUORUM only once every member has it.
    pub everywhere: bool,
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
        /// For ONE: the newest version of the chunk that this client has seen. Who has less answers `Behind`.
        not_before: ChunkVersion,
        /// Whose read it is; of an evicted one it is refused with `SessionExpired`.
        session: SessionId,
    },
    /// Everything that this chain has acknowledged becomes durable on as many replicas as the level asks for. Refused with
    /// `UnsyncedLost` if some of what the caller means may be gone (NFS has a verifier for that, RFC 1813 section 3.3.21): it was
    /// acknowledged from epoch `since` on, at `written` or more.
    Sync {
        chain: ChainId,
        epoch: Epoch,
        level: Level,
        since: Epoch,
        written: Level,
        session: SessionId,
    },
    /// Removes every chunk of the inodes at or after `from` on this chain, through the chain. A chunk that has seen a later
    /// truncation epoch stays, so a late copy of this request removes nothing that was written after the cut it belongs to.
    RemoveRange {
        chain: ChainId,
        epoch: Epoch,
        inodes: Vec<InodeId>,
        from: ChunkIndex,
        cut: CutEpoch,
        session: SessionId,
    },
    /// Where the inode's data at or after chunk `from` ends on this chain. Answered by the head, which has everything that
    /// was acknowledged, once its successor has what the head has.
    FileEnd {
        chain: ChainId,
        epoch: Epoch,
        inode: InodeId,
        from: ChunkIndex,
    },
    /// Which blocks of the inode there are on this chain, from that block of that chunk on.
    /// Answered by the head.
    FileRuns {
        chain: ChainId,
        epoch: Epoch,
        inode: InodeId,
        from: (ChunkIndex, BlockIndex),
        wanted: RunsWanted,
    },

    // Replica to its successor.
    Forward(ForwardRequest),
    /// Only ALL goes on to the members after the receiver.
    ForwardSync {
        chain: ChainId,
        epoch: Epoch,
        level: Level,
        /// Tombstones of removed files that every member has on its disk: the receiver drops them,
        /// and then syncs.
        forget: Vec<(ChunkId, ChunkVersion)>,
    },
    /// A member to its predecessor: every version of these chunks up to this one, whose `Forward` it answered early, is now on
    /// it and on every member after it.
    Stable {
        chain: ChainId,
        epoch: Epoch,
        chunks: Vec<(ChunkId, ChunkVersion)>,
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

    /// Blocks of a chunk as this node has them, whatever its part in the chain: to mend a neighbour's rotten ones. Which mutation
    /// wrote a block stands in the answer, and the same mutation wrote the same bytes everywhere, so no epoch is needed.
    CopyBlocks {
        chain: ChainId,
        chunk: ChunkId,
        first: BlockIndex,
        blocks: u32,
    },

    /// All about a chunk but its data, as this node has it, whatever its part in the chain: asked of a member that came back, before it
    /// is given the chain's copy.
    ChunkState {
        chain: ChainId,
        chunk: ChunkId,
    },

    // Admin.
    /// What checking the stored data has found; `start`: begin a round now.
    Scrub {
        start: bool,
    },
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
    /// With `done`.
    pub memory: ChunkMemory,
}

/// What a chunk knows of its past. It travels with every copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkMemory {
    /// The last version of each epoch before the present one; see [`ChunkVector`].
    pub earlier: Vec<ChunkVersion>,
    /// The last mutation that cut blocks off; so a hole tells whether it was ever written since some version.
    pub trimmed: ChunkVersion,
    /// The newest truncation epoch that a mutation of it came with.
    pub cut: CutEpoch,
    /// Of the newest version.
    pub stamp: HybridClock,
    /// The last mutations, oldest first: for retries.
    pub requests: Vec<Remembered>,
}

/// Where a mutation comes from: what a store keeps of it beside its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub id: RequestId,
    pub level: Level,
    /// The file's truncation epoch, as its sender knew it; `NONE` leaves the chunk's alone.
    pub cut: CutEpoch,
    pub stamp: HybridClock,
}

/// A mutation that a chunk remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    pub id: RequestId,
    pub version: ChunkVersion,
    /// At ONE it may have been acknowledged by a head that was the only one to have it.
    pub level: Level,
}

/// All about a chunk but its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkState {
    pub chunk: ChunkId,
    pub version: ChunkVersion,
    pub memory: ChunkMemory,
    /// In block order, holes left out.
    pub runs: Vec<BlockRun>,
}

impl ChunkState {
    #[must_use]
    pub fn vector(&self) -> ChunkVector {
        ChunkVector::new(&self.memory.earlier, self.version)
    }
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
    /// Runs of one block each.
    pub fn each_block(self) -> impl Iterator<Item = Self> {
        (0..self.blocks).map(move |number| Self {
            first: BlockIndex(self.first.0 + number),
            blocks: 1,
            last_length_bytes: if number + 1 == self.blocks {
                self.last_length_bytes
            } else {
                crate::units::BLOCK_SIZE_BYTES as u32
            },
            version: self.version,
        })
    }

    /// Whether `next` goes on where this one ends, in the same mutation.
    #[must_use]
    pub fn joins(&self, next: &Self) -> bool {
        self.version == next.version
            && self.first.0 + self.blocks == next.first.0
            && self.last_length_bytes as usize == crate::units::BLOCK_SIZE_BYTES
    }

    /// Takes in one that it [`Self::joins`].
    pub const fn extend(&mut self, next: &Self) {
        self.blocks += next.blocks;
        self.last_length_bytes = next.last_length_bytes;
    }

    /// From the chunk's start to the end of its last block.
    #[must_use]
    pub const fn end_bytes(&self) -> u32 {
        let last = self.first.0 + self.blocks.saturating_sub(1);
        last.saturating_mul(crate::units::BLOCK_SIZE_BYTES as u32)
            .saturating_add(self.last_length_bytes)
    }

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

/// Most runs in one [`FileRuns`].
pub const FILE_RUNS_MAX: usize = 1_024;

/// What is asked of the blocks that an inode has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunsWanted {
    /// The first [`FILE_RUNS_MAX`] runs.
    First,
    /// How many blocks there are in all; no run.
    Count,
}

/// Blocks that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRun {
    pub chunk: ChunkIndex,
    pub first: BlockIndex,
    pub blocks: u32,
}

/// Which blocks of an inode a chain has. Between runs are holes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRuns {
    /// In order.
    pub runs: Vec<FileRun>,
    /// Blocks in these runs, or in all where those were to be counted.
    pub blocks: u64,
    /// There are more runs than these.
    pub more: bool,
}

impl FileRuns {
    /// Adds blocks that come after all that were added. `false`: nothing more is wanted.
    pub fn add(&mut self, wanted: RunsWanted, run: FileRun) -> bool {
        if wanted == RunsWanted::Count {
            self.blocks += u64::from(run.blocks);
            return true;
        }
        let has_room = self.runs.len() < FILE_RUNS_MAX;
        match self.runs.last_mut() {
            Some(last) if last.chunk == run.chunk && last.first.0 + last.blocks == run.first.0 => {
                last.blocks += run.blocks;
            }
            _ if has_room => self.runs.push(run),
            _ => {
                self.more = true;
                return false;
            }
        }
        self.blocks += u64::from(run.blocks);
        true
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
    FileRuns(FileRuns),
    /// This member has it; `stable`: every member after it too. ONE and QUORUM are answered early, ALL only when it is stable.
    Forwarded {
        stable: bool,
    },
    StableNoted,
    Inventory {
        chunks: Vec<(ChunkId, ChunkVersion)>,
        end: bool,
    },
    Installed,
    Dropped,
    /// `None`: a mutation of it is lost there.
    ChunkState(Option<Box<ChunkState>>),
    Chunks {
        chunks: Vec<ChunkSummary>,
        end: bool,
    },
    NodeStatus(NodeStatus),
    Scrub(ScrubReport),
    Failed(Error),
}

/// How the check of what a node has stored goes on, and what it found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// A round is under way.
    pub running: bool,
    /// When this round, or else the last one, began.
    pub began: Option<Timestamp>,
    /// When the last whole round ended.
    pub ended: Option<Timestamp>,
    pub rounds: u64,
    /// Of this round.
    pub checked_bytes: u64,
    pub total_bytes: u64,
    /// Bytes a second that the present round may read.
    pub rate_bytes: u64,
    pub found: u64,
    pub mended: u64,
    /// Chunks that are damaged now.
    pub open: u64,
    /// Of these no sound copy is left anywhere.
    pub lost: u64,
    /// Newest last; the oldest are forgotten.
    pub damage: Vec<Damage>,
}

/// One thing that was found damaged on a node's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    pub at: Timestamp,
    pub chain: Option<ChainId>,
    /// `None`: a structure of the store itself.
    pub chunk: Option<ChunkId>,
    pub found_by: FoundBy,
    pub what: String,
    pub outcome: DamageOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundBy {
    /// Opening the store.
    Start,
    /// Somebody who wanted the data: a client or a neighbour.
    Read,
    Scrub,
    /// Moving data within the store.
    Compaction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DamageOutcome {
    /// Being mended.
    Open,
    /// The bytes were copied from this node.
    Mended { from: StorageId },
    /// Written or removed meanwhile, or copied whole by a resync.
    Replaced,
    /// The node's own copy of the structure was made anew.
    Rebuilt,
    /// Every member of the chain was asked, and none has a sound copy.
    Lost,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_runs_are_gathered_than_go_into_an_answer() {
        let run = |first| FileRun {
            chunk: ChunkIndex(0),
            first: BlockIndex(first),
            blocks: 1,
        };
        let mut found = FileRuns::default();
        let alone = (0..).map(|number| 2 * number);
        let taken = alone
            .take_while(|&first| found.add(RunsWanted::First, run(first)))
            .count();
        assert_eq!(
            (taken, found.runs.len(), found.more),
            (FILE_RUNS_MAX, FILE_RUNS_MAX, true)
        );
        assert_eq!(found.blocks, FILE_RUNS_MAX as u64);
        let mut counted = FileRuns::default();
        assert!((0..5_000).all(|number| counted.add(RunsWanted::Count, run(2 * number))));
        assert_eq!((counted.blocks, counted.runs.len(), counted.more), (5_000, 0, false));
    }
}
