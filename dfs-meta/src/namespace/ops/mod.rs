//! Operations, one file each; small ones share a file by subject.

use dfs_common::wire::namespace::{NamespaceChange, NamespaceOp};

use super::transaction::Transaction;
use super::OpResult;
use crate::store::Rows;

pub fn apply<S: Rows + ?Sized>(tx: &mut Transaction<'_, '_, S>, op: &NamespaceOp) -> OpResult<NamespaceChange> {
    let _ = (tx, op);
    Err(dfs_common::ErrorCode::NotSupported.into())
}
