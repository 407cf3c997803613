//! Names for openraft's generic types, and the little that we put into them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What one log entry carries: the commands that waited together. Many commands share one entry, one flush and one round of
/// messages, because openraft waits for the flush of each entry before it looks at the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CommandBatch(pub(super) Vec<Bytes>);

/// The outcomes of a [`CommandBatch`], in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OutcomeBatch(pub(super) Vec<Vec<u8>>);

openraft::declare_raft_types!(
    pub(super) TypeConfig:
        D = CommandBatch,
        R = OutcomeBatch,
        NodeId = u64,
        Node = openraft::impls::EmptyNode,
        SnapshotData = tokio::fs::File,
);

pub(super) type LogId = openraft::LogId<u64>;
pub(super) type Vote = openraft::Vote<u64>;
pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type StorageError = openraft::StorageError<u64>;
pub(super) type StoredMembership = openraft::StoredMembership<u64, openraft::impls::EmptyNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u64, openraft::impls::EmptyNode>;
pub(super) type Raft = openraft::Raft<TypeConfig>;

/// What the state machine keeps for us beside its data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) applied: Option<LogId>,
    pub(super) membership: StoredMembership,
}
