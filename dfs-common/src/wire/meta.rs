//! The metadata service: who sends what, and what comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::namespace::{Attributes, Caller, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead};
use crate::chain::{MetaPlace, Rest, RoutingTable};
use crate::conflict::{ConflictEntry, ConflictId, Divergence, Settlement, Verdict};
use crate::errno::Scarce;
use crate::error::Error;
use crate::id::{
    ChainId, ChunkId, Epoch, Hold, HoldEpoch, Incarnation, InodeId, MetaId, RoutingVersion, SequenceNumber, SessionId,
    StorageId, StoreId,
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
    /// What this server, leader or not, found damaged on its disk when it started, and what it did about it.
    Damage,

    // Storage nodes.
    Heartbeat(Heartbeat),
    /// The predecessor finished copying to a syncing member in this epoch.
    ResyncDone {
        chain: ChainId,
        epoch: Epoch,
        node: StorageId,
    },

    /// A member that comes back has what its chain has not; what is to be done about it? Asked before it is given the chain's copy.
    Diverged(Divergence),
    /// What a [`Verdict`] asked for is done: the file has changed, or the conflict's other version is safe.
    Reconciled {
        chain: ChainId,
        /// The member that had it.
        node: StorageId,
        chunk: ChunkId,
        conflict: Option<ConflictId>,
        /// In the chunk: where what was brought in ends. The file is at least so long.
        end_bytes: u32,
    },

    // Clients and administrators.
    /// Conflicts after `after`, by file.
    Conflicts {
        after: Option<(InodeId, ConflictId)>,
        limit: u32,
        /// Whether to look for the files' paths, which reads every name there is.
        paths: bool,
    },
    /// What became of a conflict, and by whose word.
    SettleConflict {
        inode: InodeId,
        conflict: ConflictId,
        how: Settlement,
        by: String,
    },

    // Administrators.
    /// Something about a storage node; refused with the reason where it would endanger data.
    Administer {
        node: StorageId,
        action: NodeAction,
    },

    /// Whether nothing is to be copied to members that are out of sync.
    PauseResyncs(bool),

    /// A metadata server is at another address, or (with a higher issue) another machine takes its
    /// place. That is answered when every other metadata server refuses the one before.
    MoveMeta {
        server: MetaId,
        place: MetaPlace,
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
        /// See [`KeepAliveAnswer::time`].
        time: Timestamp,
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
    Verdict(Verdict),
    Reconciled,
    Conflicts {
        conflicts: Vec<ConflictEntry>,
        end: bool,
    },
    Administered,
    Damage(Vec<MetaDamage>),
    Consensus {
        body: Vec<u8>,
    },
    NotLeader {
        leader: Option<(MetaId, SocketAddr)>,
    },
    Failed(Error),
    /// In the place of a heartbeat's answer, to a node that reported a fault: an administrator says that this store is to be opened again.
    ReopenStore {
        store: StoreId,
    },
}

impl MetaResponse {
    /// The routing table that it brings along, if any.
    #[must_use]
    pub fn routing(&self) -> Option<&RoutingTable> {
        match self {
            Self::Routing(table) => table.as_ref(),
            Self::KeepAlive(answer) => answer.routing.as_ref(),
            Self::Heartbeat(answer) => answer.routing.as_ref(),
            _ => None,
        }
    }
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

/// No lease for a node that has not heard an answer for longer than this: what it is granted must end, by its own clock, before
/// [`NODE_LEASE_MS`] after what it last heard. The rest of the gap is for clocks.
pub const HEARD_WITHIN_MS: u64 = NODE_LEASE_MS - SELF_FENCE_MS - 50;

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
    /// What the client's machine takes for the time.
    pub clock: Timestamp,
    /// Where its configuration says that the metadata servers are.
    pub configured: BTreeMap<MetaId, SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepAliveAnswer {
    /// The leader does not have the previous report: send the whole list next.
    pub send_all: bool,
    pub routing: Option<RoutingTable>,
    /// What time it is, as the group has it. Files get no other, whatever the client's clock says.
    pub time: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub node: StorageId,
    pub incarnation: Incarnation,
    pub store: StoreId,
    pub address: SocketAddr,
    pub routing: RoutingVersion,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// Set when the store saw an I/O error and must be rebuilt; the reason, for people.
    pub fault: Option<String>,
    /// Resyncs this node is sending.
    pub resyncs: Vec<ResyncProgress>,
    /// Chains whose head this node is and whose second member has caught up in this epoch, as far as the node's table does not
    /// show them as settled.
    pub settled: Vec<(ChainId, Epoch)>,
    /// Chains whose head this node is and that rest, or rest no more, as far as the node's table does not show it.
    pub rests: Vec<(ChainId, Epoch, Rest)>,
    /// Chains that it serves no more in this epoch, as it was asked to, and in which nothing of it is under way.
    pub retired: Vec<(ChainId, Epoch)>,
    pub signs: Signs,
    /// Of the sessions that it knows; see [`LiveSessions::mark`].
    pub sessions: u64,
    /// Where its configuration says that the metadata servers are.
    pub configured: BTreeMap<MetaId, SocketAddr>,
}

/// What an administrator may want of a storage node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeAction {
    /// Its chains go to other nodes.
    Drain,
    /// They stay after all.
    Undrain,
    /// It may be away for long: nobody takes its place.
    BeginMaintenance,
    EndMaintenance,
    /// It is forgotten; only when it is away and in no chain.
    Remove,
    /// Chains that wait for its disk, which has the only complete copy, go on with what others have.
    AcceptDataLoss,
    /// Its disk is well, whatever it saw: it opens the store that it has condemned. Nothing is written down about it.
    Trust,
}

/// What a storage node tells of itself and its neighbours so that failures are seen which silence does not show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signs {
    /// How long ago, when this was sent, the last heartbeat was sent that a leader answered. Who is heard but does not
    /// hear is as good as away.
    pub unanswered_ms: u32,
    /// It was asked to stand aside and has given its lease up.
    pub stands_aside: bool,
    /// Neighbours that do not answer, and for how long.
    pub unheard: Vec<Unheard>,
    pub syncs: Pace,
    pub writes: Pace,
    pub damage: DamageCount,
    /// What its disk calls have just missed.
    pub short: Option<Scarce>,
}

/// Something that a metadata server found damaged, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaDamage {
    pub at: Timestamp,
    pub what: String,
}

/// Chunks on a node's disk that are damaged now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageCount {
    pub open: u64,
    /// Of these nobody has a sound copy.
    pub lost: u64,
}

/// `node` was asked all the time, and its last answer came so long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unheard {
    pub node: StorageId,
    /// As which process it was asked. Of an earlier one that is dead it says nothing about this one.
    pub process: Incarnation,
    pub ms: u32,
}

/// How quick a disk is at one kind of work, lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// `None`: too little was done to tell.
    pub median_us: Option<u32>,
    /// Age of the oldest work that has not ended.
    pub running_us: u32,
    /// Work that has ended since the process began, from 0 again after 2^32: whether a figure is news.
    pub done: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// `false`: the node is known with a newer incarnation, or the leader can not vouch for itself; no lease.
    pub lease: bool,
    /// The node is to leave its chains for a while: it gives its lease up at once and says so in its next heartbeat.
    pub stand_aside: bool,
    pub routing: Option<RoutingTable>,
    /// Chains that the node is to serve no more in this epoch, for good: it is about to leave them.
    pub retire: Vec<(ChainId, Epoch)>,
    /// Nodes that should get no more data. A head refuses what a member after it could not keep.
    pub full: BTreeSet<StorageId>,
    /// If the node does not know these.
    pub sessions: Option<LiveSessions>,
}

/// The sessions that may read and write. Numbers are never used again, so whoever is below `next` and not here has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveSessions {
    /// Sessions from this number on were opened after the list was made.
    pub next: SessionId,
    pub live: BTreeSet<SessionId>,
}

impl LiveSessions {
    /// Whether this session may still be served, as far as is known.
    #[must_use]
    pub fn admits(&self, session: SessionId) -> bool {
        session >= self.next || self.live.contains(&session)
    }

    /// Tells two lists apart (FNV-1a, 64 bits): not proof against malice, and both ends trust each other.
    #[must_use]
    pub fn mark(&self) -> u64 {
        let numbers = std::iter::once(self.next).chain(self.live.iter().copied());
        numbers
            .flat_map(|session| session.0.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }
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
    /// Clocks that are off, of metadata servers and clients; no more than [`WRONG_CLOCKS_MAX`] are
    /// told.
    pub clocks: Vec<WrongClock>,
    /// Who is configured with an address that a metadata server has left; no more than
    /// [`OLD_ADDRESSES_MAX`] are told.
    pub old_addresses: Vec<OldAddress>,
}

/// Clocks that a status tells of.
pub const WRONG_CLOCKS_MAX: usize = 100;

/// Old addresses that a status tells of.
pub const OLD_ADDRESSES_MAX: usize = 100;

/// A configuration that names an address which a metadata server has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldAddress {
    /// For people: a server's name, or a mount's label.
    pub whose: String,
    pub server: MetaId,
}

/// A clock that is far from what the group has for the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongClock {
    /// For people: a server's name, or a mount's label.
    pub whose: String,
    pub ahead_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaStatus {
    pub address: SocketAddr,
    pub matched_log_index: Option<u64>,
    pub alive: bool,
    /// Of its disk; `None` until it has told the leader.
    pub room: Option<DiskRoom>,
}

/// Room on the disk of a metadata server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRoom {
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// With less than this free, it makes nothing that takes room while it leads.
    pub kept_bytes: u64,
}

impl DiskRoom {
    #[must_use]
    pub const fn is_short(&self) -> bool {
        self.free_bytes < self.kept_bytes
    }

    /// Whether it will be short soon.
    #[must_use]
    pub const fn is_low(&self) -> bool {
        self.free_bytes < self.kept_bytes + self.kept_bytes / 2
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageStatus {
    pub address: SocketAddr,
    pub alive: bool,
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub fault: Option<String>,
    /// Why it stands aside, if it does: slow, or not heard by its neighbours. It is taken back in by itself.
    pub aside: Option<String>,
    /// What its disk calls have just missed.
    pub short: Option<Scarce>,
    pub damage: DamageCount,
    /// It came with another disk than the one that holds the only complete copy of these chains, and is not taken in.
    pub replaced: Vec<ChainId>,
}
