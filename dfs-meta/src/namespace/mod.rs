//! The namespace: directories, inodes, names and what POSIX says about them.
//!
//! Pure: [`change`] and [`read`] are functions of rows and arguments. Time stands in the command, inode numbers come
//! from counters that are rows too, so every server that applies the same commands has the same rows, byte for byte.
//! An operation checks everything before it writes; whatever a failed one wrote is dropped by the caller anyway.
//! Permission bits are the kernel's to check (`default_permissions`); the server keeps what they are checked against.

mod conflicts;
mod ops;
mod read;
mod rows;
mod transaction;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

use dfs_common::wire::namespace::{Caller, NamespaceChange, NamespaceOp};
use dfs_common::{Error, ErrorCode, Hold, HoldEpoch, InodeId, Layout, RoutingTable, SessionId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::store::{Overlay, Rows, StoreError};

pub(crate) use conflicts::{diverged, forget as forget_conflicts, reconciled, settle};
pub(crate) use ops::found_length;
pub use read::read;
pub use rows::{Body, Counters, DentryRow, HoldRow, InodeRow, OrphanRow, XattrRow};
use transaction::Transaction;
pub(crate) use transaction::{forget_orphan, is_valid};

/// Keyed hash of a name: the only thing of it that keys show. The same name in two directories hashes differently.
pub trait NameHash: Send + Sync + 'static {
    fn hash(&self, parent: InodeId, name: &[u8]) -> [u8; 16];
}

/// What must happen before an inode can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Obstacle {
    /// Another session holds it, and has to give it up.
    Held(Hold),
    /// Its length has to be found.
    Growing(Growing),
}

/// A file whose writer is gone and has not said how long it became.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growing {
    pub inode: InodeId,
    /// The writer's, which is over.
    pub hold: Hold,
    pub layout: Layout,
    /// The least that it has.
    pub length_bytes: u64,
}

/// Why an operation did not happen: an answer for its caller, or trouble with the store that nobody may answer over.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    #[error(transparent)]
    Answer(#[from] Error),
    #[error("something must come first: {0:?}")]
    Obstructed(Obstacle),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ErrorCode> for OpError {
    fn from(code: ErrorCode) -> Self {
        Self::Answer(code.into())
    }
}

pub type OpResult<T> = Result<T, OpError>;

/// What an operation gets from outside.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The leader's clock when it proposed; or the mount's, if it has shown the change.
    pub time: Timestamp,
    /// What is created is the session's to hold, if this is its epoch.
    pub hold: Option<HoldEpoch>,
    /// The number that was shown for what is created.
    pub inode: Option<InodeId>,
    pub caller: Caller,
    /// Who writes, for version vectors.
    pub session: SessionId,
    pub routing: &'a RoutingTable,
}

/// Applies one operation to the rows seen through `rows`. After an error, what it wrote must be discarded, `counters` too.
pub fn change<S: Rows + ?Sized>(
    rows: &mut Overlay<'_, S>,
    counters: &mut Counters,
    hasher: &dyn NameHash,
    context: Context<'_>,
    op: &NamespaceOp,
) -> OpResult<NamespaceChange> {
    ops::apply(&mut Transaction::new(rows, counters, hasher, context), op)
}
