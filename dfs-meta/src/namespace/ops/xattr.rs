//! Extended attributes.

use dfs_common::units::{XATTR_LIST_MAX_BYTES, XATTR_NAME_MAX_BYTES, XATTR_VALUE_MAX_BYTES};
use dfs_common::wire::namespace::{NamespaceChange, XattrMode};
use dfs_common::{Error, ErrorCode, InodeId};

use super::super::rows::XattrRow;
use super::super::transaction::Transaction;
use super::super::{OpError, OpResult};
use crate::store::{self, Rows, StoreError, keys};

/// Namespaces that are kept. `system.` is not: it means access lists, and keeping one that nobody enforces would be a lie.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

pub(crate) fn set<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    inode: InodeId,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
) -> OpResult<NamespaceChange> {
    check_name(name)?;
    if value.len() > XATTR_VALUE_MAX_BYTES {
        return Err(ErrorCode::ArgumentTooBig.into());
    }
    let mut row = tx.inode(inode)?;
    let key = keys::xattr(inode, &tx.hasher.hash(inode, name));
    let before = find(tx, &key, name)?;
    match (mode, &before) {
        (XattrMode::Create, Some(_)) => return Err(ErrorCode::Exists.into()),
        (XattrMode::Replace, None) => return Err(ErrorCode::NoAttribute.into()),
        _ => {}
    }
    let others = (row.xattr_bytes as usize).saturating_sub(before.as_ref().map_or(0, size));
    let after = XattrRow {
        name: name.to_vec(),
        value: value.to_vec(),
    };
    let total = others + size(&after);
    if total > XATTR_LIST_MAX_BYTES {
        return Err(Error::new(
            ErrorCode::NoSpace,
            format!("attributes of inode {inode} would take {total} bytes; the limit is {XATTR_LIST_MAX_BYTES}"),
        )
        .into());
    }
    row.xattr_bytes = total as u32;
    row.touch_ctime(tx.now());
    tx.rows.put(key, store::encode(&after)?);
    tx.put_inode(inode, &row)?;
    Ok(NamespaceChange::Done)
}

pub(crate) fn remove<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    inode: InodeId,
    name: &[u8],
) -> OpResult<NamespaceChange> {
    check_name(name)?;
    let mut row = tx.inode(inode)?;
    let key = keys::xattr(inode, &tx.hasher.hash(inode, name));
    let before = find(tx, &key, name)?.ok_or(ErrorCode::NoAttribute)?;
    row.xattr_bytes = (row.xattr_bytes as usize).saturating_sub(size(&before)) as u32;
    row.touch_ctime(tx.now());
    tx.rows.delete(key);
    tx.put_inode(inode, &row)?;
    Ok(NamespaceChange::Done)
}

/// Bytes that an attribute counts for.
fn size(row: &XattrRow) -> usize {
    row.name.len() + row.value.len()
}

fn find<S: Rows + ?Sized>(tx: &Transaction<'_, '_, S>, key: &[u8], name: &[u8]) -> OpResult<Option<XattrRow>> {
    let found: Option<XattrRow> = store::get(tx.rows, key)?;
    match found {
        Some(row) if row.name != name => Err(OpError::Store(StoreError::Broken(
            "two attribute names with one 128-bit hash".into(),
        ))),
        found => Ok(found),
    }
}

fn check_name(name: &[u8]) -> OpResult<()> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX_BYTES {
        return Err(ErrorCode::RangeTooSmall.into());
    }
    if name.contains(&0) {
        return Err(ErrorCode::InvalidArgument.into());
    }
    if NAMESPACES
        .iter()
        .any(|space| name.len() > space.len() && name.starts_with(space))
    {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::NotSupported,
        "only attributes named user.*, trusted.* and security.* are kept",
    )
    .into())
}
