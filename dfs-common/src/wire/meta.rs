//! The metadata service: who sends what, and what comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::namespace::{Attributes, Caller, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead};
use crate::chain::RoutingTable;
use crate::error::Error;
use crate::id::{
    ChainId, Epoch, Hold, HoldEpoch, Incarnation, InodeId, MetaId, RoutingVersion, SequenceNumber, SessionId, StorageId,
};
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaRequest {
    // Clients.
    /// Starts a session. `label` is for people (host and mount point).
    OpenSession {
        label: String,
    },
    /// Ends it: handles, dedupe records and orphans go.
    CloseSession {
        session: SessionId,
    },
    /// Sent every [`KEEP_ALIVE_MS`]. Renews the session and reports opens.
    KeepAlive(KeepAlive),
    Change(ChangeRequest),
    /// Changes of one session, in order; each for itself, so that one that fails does not undo the others.
    Changes(Vec<ChangeRequest>),
    /// A range of inode numbers for changes that are shown before they are sent, and the session's present epoch of holds.
    /// `known`: the end of the last range it knows of (0: none). If the group has given another since, that one is
    /// answered, so a late copy of the question does no harm.
    Reserve {
        session: SessionId,
        known: InodeId,
    },
    /// Ends the epoch: the session holds nothing any more.
    Release(Hold),
    /// Waits up to `wait_ms` until somebody wants what the session holds.
    Wanted {
        hold: Hold,
        wait_ms: u32,
    },
    /// Reads that make one user action, answered in order from one state.
    Read {
        session: SessionId,
        reads: Vec<NamespaceRead>,
    },

    // Everybody.
    /// The routing table if newer than `known`; waits up to `wait_ms` for one.
    Routing {
        known: RoutingVersion,
        wait_ms: u32,
    },
    Status,

    // Storage nodes.
    Heartbeat(Heartbeat),
    /// The predecessor finished copying to a syncing member in this epoch.
    ResyncDone {
        chain: ChainId,
        epoch: Epoch,
        node: StorageId,
    },

    // Metadata servers among themselves: an opaque message of the consensus engine.
    Consensus {
        kind: u8,
        body: Vec<u8>,
    },
}

/// A response, or why there is none. `leader` is a hint on `NotLeader`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaResponse {
    SessionOpened {
        session: SessionId,
        lease_ms: u32,
    },
    SessionClosed,
    KeepAlive(KeepAliveAnswer),
    Change(ChangeAnswer),
    /// One for each of the request's.
    Changes(Vec<Result<NamespaceChange, Error>>),
    Reserved(Reservation),
    /// The epoch that began.
    Released(HoldEpoch),
    /// Whether the holds are to be given up (or are over already).
    Wanted(bool),
    Read(Vec<Result<NamespaceAnswer, Error>>),
    /// `None`: nothing newer.
    Routing(Option<RoutingTable>),
    Status(Box<ClusterStatus>),
    Heartbeat(HeartbeatAnswer),
    ResyncDone,
    Consensus {
        body: Vec<u8>,
    },
    NotLeader {
        leader: Option<(MetaId, SocketAddr)>,
    },
    Failed(Error),
}

/// How often a client renews its session.
pub const KEEP_ALIVE_MS: u64 = 1_000;

/// How long a session lives without renewal.
pub const SESSION_LEASE_MS: u64 = 60_000;

/// How often a storage node renews its lease.
pub const HEARTBEAT_MS: u64 = 100;

/// A storage node stops serving when its last acknowledged heartbeat was sent longer ago than this.
pub const SELF_FENCE_MS: u64 = 550;

/// The metadata group declares a storage node away after this long without a heartbeat. The gap to
/// [`SELF_FENCE_MS`] covers a leader that was deposed without knowing: it only grants a lease while a quorum has
/// answered it within [`LEADER_CONFIRMED_MS`], and a new leader waits a whole lease before it removes anybody.
pub const NODE_LEASE_MS: u64 = 800;

/// A leader that no quorum has confirmed for this long grants no lease and answers no read without asking first.
pub const LEADER_CONFIRMED_MS: u64 = 160;

/// One change with its place in the session, for exactly-once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRequest {
    pub session: SessionId,
    pub sequence: SequenceNumber,
    /// Every sequence below this has been answered; the server may forget those answers.
    pub answered_below: SequenceNumber,
    pub caller: Caller,
    pub op: NamespaceOp,
    /// What the change creates is held by the session from its first moment, if this is still its epoch.
    pub hold: Option<HoldEpoch>,
    /// The change was shown to its caller before it was sent.
    pub shown: Option<Shown>,
}

/// What a caller has seen of a change already, and must not see differently later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// When it happened, by the mount's clock.
    pub time: Timestamp,
    /// The number of what it created, from the session's reservation.
    pub inode: Option<InodeId>,
}

/// Inode numbers `first..end` are the session's to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    pub first: InodeId,
    pub end: InodeId,
    pub epoch: HoldEpoch,
}

/// Inode numbers in one reservation. What a session does not use is lost, of 2^64.
pub const RESERVED_INODES: u64 = 4_096;

/// Most changes in one [`MetaRequest::Changes`].
pub const MAX_CHANGES_TOGETHER: usize = 64;

/// A mount relies on what it holds for this long after it sent the last question that the leader answered.
pub const HOLD_LEASE_MS: u64 = 1_000;

/// Who does not give up what others want within this has it taken. The gap to [`HOLD_LEASE_MS`] is for clocks and for a
/// leader that learns of the want a moment after it was deposed.
pub const HOLD_TAKEN_MS: u64 = 1_500;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeAnswer {
    pub outcome: Result<NamespaceChange, Error>,
    /// The directories whose entries the change is about, as they are after it: their times and link counts have moved,
    /// and a client would ask for them next.
    pub parents: Vec<Attributes>,
}

/// Changes of one session that may be unanswered at a time. Bounds the dedupe table.
pub const MAX_CHANGES_IN_FLIGHT: u64 = 1_024;

/// Opens are soft state of the leader: an unlinked inode is purged only when every living session has reported
/// to this leader, after the unlink, that it does not hold it open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepAlive {
    pub session: SessionId,
    pub routing: RoutingVersion,
    /// `opened` is the whole list (first report to this leader, or after `send_all`); otherwise a difference.
    pub all: bool,
    pub opened: Vec<InodeId>,
    pub closed: Vec<InodeId>,
    /// Counts reports to one leader, so that a lost difference is noticed.
    pub report: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepAliveAnswer {
    /// The leader does not have the previous report: send the whole list next.
    pub send_all: bool,
    pub routing: Option<RoutingTable>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub node: StorageId,
    pub incarnation: Incarnation,
    pub address: SocketAddr,
    pub routing: RoutingVersion,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// Set when the store saw an I/O error and must be rebuilt; the reason, for people.
    pub fault: Option<String>,
    /// Resyncs this node is sending.
    pub resyncs: Vec<ResyncProgress>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// `false`: the node is known with a newer incarnation, or the leader can not vouch for itself; no lease.
    pub lease: bool,
    pub routing: Option<RoutingTable>,
    /// Nodes that should get no more data. A head refuses what a member after it could not keep.
    pub full: BTreeSet<StorageId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncProgress {
    pub chain: ChainId,
    pub epoch: Epoch,
    pub to: StorageId,
    pub chunks_done: u64,
    pub chunks_total: u64,
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// What `dfs status` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    pub cluster: crate::id::ClusterId,
    pub leader: Option<MetaId>,
    pub term: u64,
    pub log_index: u64,
    /// Each metadata server: address, last log index known to be on it, milliseconds since it last answered.
    pub meta: BTreeMap<MetaId, MetaStatus>,
    pub storage: BTreeMap<StorageId, StorageStatus>,
    pub routing: RoutingTable,
    pub resyncs: Vec<ResyncProgress>,
    pub sessions: u64,
    pub inodes: u64,
    /// Unlinked inodes whose chunks are not removed yet.
    pub orphans: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaStatus {
    pub address: SocketAddr,
    pub matched_log_index: Option<u64>,
    pub alive: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageStatus {
    pub address: SocketAddr,
    pub alive: bool,
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub fault: Option<String>,
}
