//! The namespace: directories, inodes, names and what POSIX says about them.
//!
//! Pure: [`change`] and [`read`] are functions of rows and arguments. Time stands in the command, inode numbers come
//! from counters that are rows too, so every server that applies the same commands has the same rows, byte for byte.
//! An operation checks everything before it writes; whatever a failed one wrote is dropped by the caller anyway.
//! Permission bits are the kernel's to check (`default_permissions`); the server keeps what they are checked against.

mod ops;
mod read;
mod rows;
mod transaction;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

use dfs_common::wire::namespace::{Caller, NamespaceChange, NamespaceOp};
use dfs_common::{Error, ErrorCode, InodeId, RoutingTable, SessionId, Timestamp};

use crate::store::{Overlay, Rows, StoreError};

pub use read::read;
pub use rows::{Body, Counters, DentryRow, InodeRow, OrphanRow, XattrRow};
use transaction::Transaction;
pub(crate) use transaction::forget_orphan;

/// Keyed hash of a name: the only thing of it that keys show. The same name in two directories hashes differently.
pub trait NameHash: Send + Sync + 'static {
    fn hash(&self, parent: InodeId, name: &[u8]) -> [u8; 16];
}

/// Why an operation did not happen: an answer for its caller, or trouble with the store that nobody may answer over.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    #[error(transparent)]
    Answer(#[from] Error),
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
    /// The leader's clock when it proposed.
    pub time: Timestamp,
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
