//! A storage node and its replicas, as the world sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_common::{ChainId, ChunkId, RoutingTable, StorageId};
use dfs_storage::Lease;
use dfs_storage::disk::SimDisk;
use dfs_storage::replica::{ReplicaCore, WaiterId};
use dfs_storage::store::ChunkStore;

use crate::messages::Waiting;
use crate::schedule::Kind;

pub(crate) struct Member {
    pub(crate) core: ReplicaCore,
    /// The last epoch in which it brought the second member up to date.
    pub(crate) settled: dfs_common::Epoch,
    pub(crate) rest: (dfs_common::Epoch, dfs_common::Rest),
    pub(crate) next_waiter: u64,
    pub(crate) waiting: BTreeMap<WaiterId, Waiting>,
}

/// A storage node: one process at a time over one disk.
pub(crate) struct Node {
    pub(crate) id: StorageId,
    pub(crate) disk: SimDisk,
    pub(crate) store: Option<ChunkStore>,
    pub(crate) incarnation: u64,
    pub(crate) paused_until_ms: u64,
    pub(crate) slow: (u64, u64),
    /// Its monotonic clock: (world time, its time) at the last change, and how fast it runs in thousandths.
    pub(crate) clock: (u64, u64, u64),
    pub(crate) lease: Lease,
    pub(crate) fault: Option<String>,
    pub(crate) chains: BTreeMap<ChainId, Member>,
    pub(crate) table: Arc<RoutingTable>,
    pub(crate) full: BTreeSet<StorageId>,
    pub(crate) rotten: BTreeSet<ChunkId>,
    pub(crate) fetching: bool,
    /// Chains whose unsynced data went with a power cut, and the process that it was in.
    pub(crate) lossy: BTreeMap<ChainId, u64>,
    /// Mishaps of the disk that are to come, with how many there had been.
    pub(crate) due: Vec<(Kind, u64)>,
    /// A sync of its disk fails, or has failed: it may condemn its store.
    pub(crate) sync_fails: bool,
    /// How often its condemned store was not to be emptied yet.
    pub(crate) waits: u32,
}

impl Node {
    pub(crate) fn clock_ms(&self, now: u64) -> u64 {
        self.clock.1 + (now - self.clock.0) * self.clock.2 / 1_000
    }

    pub(crate) const fn is_up(&self) -> bool {
        self.store.is_some()
    }
}
