//! What goes into a replica's step and what comes out: the whole of its contact with the world.

use bytes::Bytes;
use dfs_common::wire::storage::{
    FileRuns, ForwardRequest, InstallPart, MutateRequest, Mutation, Origin, RunsWanted, StorageResponse,
};
use dfs_common::{
    BlockIndex, ChainId, ChainInfo, ChunkId, ChunkIndex, ChunkVersion, CutEpoch, Epoch, Error, HybridClock, InodeId,
    Level, RequestId, Rest, SessionId, StorageId, Timestamp,
};

/// Somebody who waits for an answer; the shell knows whom it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// Pairs an effect that was started with the input that reports its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What holds at the moment of a step.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// A monotonic clock.
    pub ms: u64,
    /// The time of day: for people, and to order what heads that do not know of each other do.
    pub wall: Timestamp,
    /// Whether the metadata group's lease is good. Without it no client is answered with success.
    pub lease: bool,
    /// Whether this node's disk failed, whichever chain met it. From then on no chain of it says anything.
    pub faulty: bool,
}

/// What a replica reads of its store. Index lookups only, no data.
pub trait StoreView {
    fn version(&self, chunk: ChunkId) -> ChunkVersion;
    fn trimmed(&self, chunk: ChunkId) -> ChunkVersion;
    fn cut(&self, chunk: ChunkId) -> CutEpoch;
    /// Whether it is a tombstone: all that is left of it is what it remembers.
    fn is_removed(&self, chunk: ChunkId) -> bool;
    fn stamp(&self, chunk: ChunkId) -> HybridClock;
    fn block_version(&self, chunk: ChunkId, block: BlockIndex) -> ChunkVersion;
    fn remembered(&self, chunk: ChunkId, id: RequestId) -> Option<ChunkVersion>;
    /// The last chunk of the inode at or after `from` that has data, and the bytes from its start to their end.
    fn file_end(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Option<(ChunkIndex, u32)>;
    fn file_runs(&self, chain: ChainId, inode: InodeId, from: (ChunkIndex, BlockIndex), wanted: RunsWanted)
    -> FileRuns;
    /// Tombstones included.
    fn chunks_of(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Vec<ChunkId>;
    /// Every chunk of the chain with its version, tombstones included.
    fn list(&self, chain: ChainId) -> Vec<(ChunkId, ChunkVersion)>;
    /// Tombstones of removed files in this chain, at most `limit`.
    fn gone(&self, chain: ChainId, limit: usize) -> Vec<(ChunkId, ChunkVersion)>;
    /// Whether a write of this many bytes leaves the reserve untouched that repair and removal need.
    fn has_room(&self, bytes: u64) -> bool;

    /// Whether the metadata group says that this session lives, as far as this node has heard.
    fn admits(&self, session: SessionId) -> bool;

    /// Whether another member said that it should get no more data.
    fn is_full(&self, member: StorageId) -> bool;

    /// Whether another chunk may be copied to a successor now. Asked before one is begun; mutations of it wait until it has
    /// ended, and how fast it goes on is the store's owner's affair ([`ReplicaCore::is_waited_for`](super::ReplicaCore::is_waited_for)).
    fn may_copy(&self) -> bool {
        true
    }
}

#[derive(Clone, Debug)]
pub enum Input {
    /// The metadata group's word. Only of a routing table that knows this very start of this process.
    Configure(ChainInfo),
    /// Time passed.
    Tick,

    // Requests.
    Mutate {
        waiter: WaiterId,
        request: MutateRequest,
        payload: Bytes,
    },
    /// Before the data is read.
    AdmitRead {
        epoch: Epoch,
        waiter: WaiterId,
        read: ReadAsk,
    },
    /// After it: `version` is the chunk's when its data was read.
    ReadDone {
        epoch: Epoch,
        waiter: WaiterId,
        read: ReadAsk,
        version: ChunkVersion,
    },
    Sync {
        epoch: Epoch,
        waiter: WaiterId,
        level: Level,
        /// The first epoch, and the lowest level, of the acknowledgements that the caller means.
        since: (Epoch, Level),
        session: SessionId,
    },
    RemoveRange {
        epoch: Epoch,
        waiter: WaiterId,
        inodes: Vec<InodeId>,
        from: ChunkIndex,
        cut: CutEpoch,
        session: SessionId,
    },
    FileEnd {
        epoch: Epoch,
        waiter: WaiterId,
        inode: InodeId,
        from: ChunkIndex,
    },
    FileRuns {
        epoch: Epoch,
        waiter: WaiterId,
        inode: InodeId,
        from: (ChunkIndex, BlockIndex),
        wanted: RunsWanted,
    },
    Forward {
        from: StorageId,
        waiter: WaiterId,
        request: ForwardRequest,
        payload: Bytes,
    },
    ForwardSync {
        from: StorageId,
        epoch: Epoch,
        waiter: WaiterId,
        level: Level,
        /// Tombstones that are to be dropped before.
        forget: Vec<(ChunkId, ChunkVersion)>,
    },
    Stable {
        from: StorageId,
        epoch: Epoch,
        waiter: WaiterId,
        chunks: Vec<(ChunkId, ChunkVersion)>,
    },
    Inventory {
        from: StorageId,
        epoch: Epoch,
        waiter: WaiterId,
        after: Option<ChunkId>,
        limit: u32,
    },
    Install {
        from: StorageId,
        epoch: Epoch,
        waiter: WaiterId,
        chunk: ChunkId,
        version: ChunkVersion,
        part: InstallPart,
        payload: Bytes,
    },
    Drop {
        from: StorageId,
        epoch: Epoch,
        waiter: WaiterId,
        chunks: Vec<ChunkId>,
    },

    // Ends of effects.
    Applied {
        ticket: Ticket,
        result: Result<(), Error>,
    },
    Synced {
        ticket: Ticket,
        result: Result<(), Error>,
    },
    /// Of a `Forward`: whether every member after the successor has it too.
    Forwarded {
        ticket: Ticket,
        result: Result<bool, Error>,
    },
    /// Of a `ForwardSync` or a `TellStable`.
    ForwardDone {
        ticket: Ticket,
        result: Result<(), Error>,
    },
    InstallDone {
        ticket: Ticket,
        result: Result<(), Error>,
    },
    InventoryFetched {
        ticket: Ticket,
        result: Result<(Vec<(ChunkId, ChunkVersion)>, bool), Error>,
    },
    Copied {
        ticket: Ticket,
        result: Result<CopyReport, Error>,
    },
    Forgotten {
        ticket: Ticket,
        result: Result<(), Error>,
    },
    ChunksDropped {
        ticket: Ticket,
        result: Result<(), Error>,
    },
}

/// What a client wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAsk {
    pub chunk: ChunkId,
    pub first: BlockIndex,
    pub blocks: u32,
    pub level: Level,
    /// For ONE: what this client has seen of the chunk.
    pub not_before: ChunkVersion,
    pub session: SessionId,
}

/// A chunk that a syncing member now has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyReport {
    pub version: ChunkVersion,
    pub size_bytes: u64,
}

#[derive(Clone, Debug)]
pub enum Effect {
    /// Carry it out in the store, then `Applied`. At most one a chunk at a time, in version order.
    Apply {
        ticket: Ticket,
        chunk: ChunkId,
        version: ChunkVersion,
        origin: Origin,
        mutation: Mutation,
        payload: Bytes,
        after_ms: u64,
    },
    /// Make durable what is applied, then `Synced`.
    Sync { ticket: Ticket },
    /// Then `Forwarded`.
    Forward {
        ticket: Ticket,
        to: StorageId,
        request: ForwardRequest,
        payload: Bytes,
        after_ms: u64,
    },
    /// Then `ForwardDone`.
    ForwardSync {
        ticket: Ticket,
        to: StorageId,
        epoch: Epoch,
        level: Level,
        forget: Vec<(ChunkId, ChunkVersion)>,
        after_ms: u64,
    },
    /// Then `ForwardDone`.
    TellStable {
        ticket: Ticket,
        to: StorageId,
        epoch: Epoch,
        chunks: Vec<(ChunkId, ChunkVersion)>,
    },
    Answer {
        waiter: WaiterId,
        answer: Result<Answer, Error>,
    },
    /// Drop these if they are still tombstones of removed files in this version, then `Forgotten`.
    Forget {
        ticket: Ticket,
        chunks: Vec<(ChunkId, ChunkVersion)>,
    },
    /// This replica no longer believes in itself: report it, and acknowledge nothing more.
    Fault(String),

    // At a syncing member.
    /// List the store's chunks as the answer to this waiter.
    List {
        waiter: WaiterId,
        after: Option<ChunkId>,
        limit: u32,
    },
    /// Then `InstallDone`.
    Install {
        ticket: Ticket,
        chunk: ChunkId,
        version: ChunkVersion,
        part: InstallPart,
        payload: Bytes,
    },
    /// Then `InstallDone`.
    Drop { ticket: Ticket, chunks: Vec<ChunkId> },

    // At its predecessor.
    /// Then `InventoryFetched`.
    FetchInventory {
        ticket: Ticket,
        to: StorageId,
        epoch: Epoch,
        after: Option<ChunkId>,
        after_ms: u64,
    },
    /// The chunk does not change until `Copied`.
    CopyChunk {
        ticket: Ticket,
        to: StorageId,
        epoch: Epoch,
        chunk: ChunkId,
        after_ms: u64,
    },
    /// Then `ChunksDropped`.
    DropChunks {
        ticket: Ticket,
        to: StorageId,
        epoch: Epoch,
        chunks: Vec<ChunkId>,
        after_ms: u64,
    },
    /// Tell the metadata group, again and again until the next epoch.
    ReportResyncDone { to: StorageId, epoch: Epoch },

    /// Tell the metadata group, again and again until its table shows it: the second member has what it may have lacked.
    ReportSettled { epoch: Epoch },

    /// Likewise: all members have everything, or from now on not every one need have it.
    ReportRest { epoch: Epoch, rest: Rest },
}

/// A waiter's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `AdmitRead` may go on; a `ReadDone` may be answered with the data that was read.
    Proceed,
    Response(StorageResponse),
}
