//! What goes into a replica's step and what comes out: the whole of its contact with the world.

use bytes::Bytes;
use dfs_common::wire::storage::{ForwardRequest, InstallPart, MutateRequest, Mutation, StorageResponse};
use dfs_common::{
    BlockIndex, ChainId, ChainInfo, ChunkId, ChunkIndex, ChunkVersion, Epoch, Error, InodeId, Level, RequestId,
    StorageId,
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
    /// Whether the metadata group's lease is good. Without it no client is answered with success.
    pub lease: bool,
}

/// What a replica reads of its store. Index lookups only, no data.
pub trait StoreView {
    fn version(&self, chunk: ChunkId) -> ChunkVersion;
    fn block_version(&self, chunk: ChunkId, block: BlockIndex) -> ChunkVersion;
    fn remembered(&self, chunk: ChunkId, id: RequestId) -> Option<ChunkVersion>;
    /// The last chunk of the inode at or after `from` that has data, and the bytes from its start to their end.
    fn file_end(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Option<(ChunkIndex, u32)>;
    fn chunks_of(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Vec<ChunkId>;
    /// Every chunk of the chain with its version, tombstones included.
    fn list(&self, chain: ChainId) -> Vec<(ChunkId, ChunkVersion)>;
    /// Whether a write of this many bytes leaves the reserve untouched that repair and removal need.
    fn has_room(&self, bytes: u64) -> bool;

    /// Whether another member said that it should get no more data.
    fn is_full(&self, member: StorageId) -> bool;
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
        chunk: ChunkId,
        first: BlockIndex,
        blocks: u32,
    },
    /// After it: `version` is the chunk's when its data was read.
    ReadDone {
        epoch: Epoch,
        waiter: WaiterId,
        chunk: ChunkId,
        first: BlockIndex,
        blocks: u32,
        version: ChunkVersion,
    },
    Sync {
        epoch: Epoch,
        waiter: WaiterId,
    },
    RemoveRange {
        epoch: Epoch,
        waiter: WaiterId,
        inodes: Vec<InodeId>,
        from: ChunkIndex,
    },
    FileEnd {
        epoch: Epoch,
        waiter: WaiterId,
        inode: InodeId,
        from: ChunkIndex,
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
    ChunksDropped {
        ticket: Ticket,
        result: Result<(), Error>,
    },
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
        id: RequestId,
        mutation: Mutation,
        payload: Bytes,
        after_ms: u64,
    },
    /// Make durable what is applied, then `Synced`.
    Sync { ticket: Ticket },
    /// Then `ForwardDone`.
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
        after_ms: u64,
    },
    Answer {
        waiter: WaiterId,
        answer: Result<Answer, Error>,
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
}

/// A waiter's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `AdmitRead` may go on; a `ReadDone` may be answered with the data that was read.
    Proceed,
    Response(StorageResponse),
}

/// Serving members at and after which a request of `level` is acknowledged.
///
/// Today every level waits for the tail, so this only says how many must be in the chain; later levels that
/// acknowledge earlier have their place here.
#[must_use]
pub fn ack_point(level: Level, chain: &ChainInfo) -> Option<StorageId> {
    (chain.serving().count() >= level.min_in_sync())
        .then(|| chain.tail())
        .flatten()
}
