//! Names go: of anything but a directory, and of an empty directory.

use dfs_common::wire::namespace::NamespaceChange;
use dfs_common::{Error, ErrorCode, InodeId, ValidName};

use super::super::OpResult;
use super::super::rows::{Body, InodeRow};
use super::super::transaction::Transaction;
use crate::store::Rows;

pub(crate) fn unlink<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    parent: InodeId,
    name: &ValidName,
) -> OpResult<NamespaceChange> {
    let mut directory = tx.directory(parent)?;
    let found = tx.entry(parent, name)?;
    let row = tx.inode(found.entry.inode)?;
    if row.is_directory() {
        return Err(ErrorCode::IsDirectory.into());
    }
    tx.remove_entry(parent, found.slot);
    tx.count_entries(&mut directory, -1)?;
    tx.put_inode(parent, &directory)?;
    let nlink = tx.drop_link(found.entry.inode, row)?;
    Ok(NamespaceChange::Removed {
        inode: found.entry.inode,
        nlink,
    })
}

pub(crate) fn rmdir<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    parent: InodeId,
    name: &ValidName,
) -> OpResult<NamespaceChange> {
    let mut directory = tx.directory(parent)?;
    let found = tx.entry(parent, name)?;
    let row = tx.inode(found.entry.inode)?;
    check_empty(found.entry.inode, &row)?;
    tx.remove_entry(parent, found.slot);
    tx.count_entries(&mut directory, -1)?;
    directory.nlink -= 1;
    tx.put_inode(parent, &directory)?;
    tx.drop_link(found.entry.inode, row)?;
    Ok(NamespaceChange::Removed {
        inode: found.entry.inode,
        nlink: 0,
    })
}

/// `ENOTDIR` for what is no directory, `ENOTEMPTY` for one with entries.
pub(crate) fn check_empty(inode: InodeId, row: &InodeRow) -> OpResult<()> {
    match row.body {
        Body::Directory { entries: 0, .. } => Ok(()),
        Body::Directory { entries, .. } => {
            Err(Error::new(ErrorCode::NotEmpty, format!("directory {inode} has {entries} entries")).into())
        }
        _ => Err(ErrorCode::NotDirectory.into()),
    }
}
