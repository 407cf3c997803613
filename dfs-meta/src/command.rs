//! Commands: what goes through consensus. Time stands in the command, chosen by the leader, so that `apply` is the same
//! function on every server.

use std::net::SocketAddr;

use dfs_common::wire::meta::{ChangeRequest, Reservation};
use dfs_common::wire::namespace::NamespaceChange;
use dfs_common::{ChainId, Epoch, Error, Hold, HoldEpoch, Incarnation, InodeId, SessionId, StorageId, Timestamp};

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
    /// Everything about nodes and chains.
    Cluster(Vec<ClusterEvent>),
}

/// Events that move nodes and chains; `chains::apply` folds them into the routing table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterEvent {
    /// A storage node (re)started or moved: a new incarnation or address. Also its first registration.
    NodeUp {
        node: StorageId,
        incarnation: Incarnation,
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
    Done,
}
