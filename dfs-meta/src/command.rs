//! Commands: what goes through consensus. Time stands in the command, chosen by the leader, so that `apply` is the same
//! function on every server.

use std::net::SocketAddr;

use dfs_common::conflict::{ConflictId, Divergence, Settlement, Verdict};
use dfs_common::wire::meta::{ChangeRequest, NodeAction, Reservation};
use dfs_common::wire::namespace::NamespaceChange;
use dfs_common::{
    ChainId, ChunkId, Epoch, Error, Hold, HoldEpoch, Incarnation, InodeId, MetaId, MetaPlace, Rest, SessionId,
    StorageId, StoreId, Timestamp,
};

use crate::namespace::{Growing, Obstacle};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The leader's clock when it proposed.
    pub time: Timestamp,
    pub kind: CommandKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandKind {
    /// Gives out the next session id.
    OpenSession { label: String },
    /// Closed by its owner, or expired.
    EndSessions { sessions: Vec<SessionId> },
    /// A change of the namespace; remembered under (session, sequence).
    Change(ChangeRequest),
    /// Several of one session, in order.
    Changes(Vec<ChangeRequest>),
    /// Inode numbers for a session that knows of those up to `known`.
    Reserve {
        session: SessionId,
        known: InodeId,
        count: u64,
    },
    /// Ends an epoch of holds: given up by the session, or taken from it.
    Release(Hold),
    /// How long a file is that was left growing: `length_bytes` is what its chunks say now.
    FoundLength(Growing),
    /// The chunks of these unlinked inodes are gone from every chain: their rows go too.
    Purged { inodes: Vec<InodeId> },
    /// A member of a chain came back with what the chain has not.
    Diverged(Divergence),
    /// What it had is in the chain up to `end_bytes` of the chunk, or safe beside it.
    Reconciled {
        chunk: ChunkId,
        node: StorageId,
        conflict: Option<ConflictId>,
        end_bytes: u32,
    },
    /// What became of a conflict, and by whose word.
    SettleConflict {
        inode: InodeId,
        conflict: ConflictId,
        how: Settlement,
        by: String,
    },
    /// What an administrator wants of a storage node.
    Administer { node: StorageId, action: NodeAction },
    /// Whether nothing is to be copied to members that are out of sync.
    PauseResyncs(bool),
    /// Everything about nodes and chains.
    Cluster(Vec<ClusterEvent>),
    /// A metadata server is at another address, or another machine takes its place.
    MoveMeta { server: MetaId, place: MetaPlace },
}

/// Events that move nodes and chains; `chains::apply` folds them into the routing table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterEvent {
    /// A storage node (re)started or moved: a new incarnation or address. Also its first registration. With another store its
    /// disk was replaced; see `chains::apply`.
    NodeUp {
        node: StorageId,
        incarnation: Incarnation,
        store: StoreId,
        address: SocketAddr,
    },
    /// Its lease ran out, or it reported a fault.
    NodeDown { node: StorageId, incarnation: Incarnation },
    /// Copying to a syncing member ended in this epoch.
    Resynced {
        chain: ChainId,
        epoch: Epoch,
        node: StorageId,
    },
    /// The chain's second member has what it may have lacked when this epoch began.
    Settled { chain: ChainId, epoch: Epoch },
    /// The chain rests, or rests no more.
    Rest { chain: ChainId, epoch: Epoch, rest: Rest },
    /// A node becomes a member of a chain, if that is still in this epoch; likewise below.
    Join {
        chain: ChainId,
        epoch: Epoch,
        node: StorageId,
    },
    /// A member that serves no more in this epoch goes for good.
    Leave {
        chain: ChainId,
        epoch: Epoch,
        node: StorageId,
    },
    /// A member that serves no more in this epoch stays after all.
    Renew { chain: ChainId, epoch: Epoch },
    /// The head, which serves no more in this epoch, becomes the tail of a chain whose members all
    /// serve.
    Rotate { chain: ChainId, epoch: Epoch },
}

/// What applying a command returned; the same bytes on every server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    SessionOpened(SessionId),
    Change(Result<NamespaceChange, Error>),
    /// One for each change.
    Changes(Vec<Result<NamespaceChange, Error>>),
    Reserved(Result<Reservation, Error>),
    /// The session's epoch now.
    Released(HoldEpoch),
    /// Nothing was done (of several: no more than what was answered before) because something must come first.
    Obstructed(Obstacle),
    Verdict(Verdict),
    /// Refused, with the reason, or done.
    Administered(Result<(), Error>),
    Done,
}
