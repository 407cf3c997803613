//! What writers record: length, time of the last write, one more version.

use dfs_common::wire::namespace::{NamespaceChange, WriteCommit};
use dfs_common::{ActorId, Error, ErrorCode, InodeId, Timestamp};

use super::super::OpResult;
use super::super::rows::{Body, InodeRow};
use super::super::transaction::Transaction;
use crate::store::Rows;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

/// Longest file, as for any off_t.
const MAX_OFFSET_BYTES: u64 = i64::MAX as u64;

pub(crate) fn set_length<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    inode: InodeId,
    length: u64,
    mtime: Option<Timestamp>,
) -> OpResult<NamespaceChange> {
    let mut row = tx.inode(inode)?;
    write_to(tx, inode, &mut row, mtime, |_| length)?;
    let attributes = tx.put_and_show(inode, &row)?;
    Ok(NamespaceChange::Entry {
        attributes,
        created: false,
        held: false,
    })
}

pub(crate) fn commit_write<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    inode: InodeId,
    commit: &WriteCommit,
) -> OpResult<NamespaceChange> {
    let mut row = tx.inode(inode)?;
    commit_to(tx, inode, &mut row, commit)?;
    let attributes = tx.put_and_show(inode, &row)?;
    Ok(NamespaceChange::Entry {
        attributes,
        created: false,
        held: false,
    })
}

/// Records written data in the row. Works on an orphan too: it is open somewhere.
pub(crate) fn commit_to<S: Rows + ?Sized>(
    tx: &Transaction<'_, '_, S>,
    inode: InodeId,
    row: &mut InodeRow,
    commit: &WriteCommit,
) -> OpResult<()> {
    write_to(tx, inode, row, commit.mtime, |length| {
        length.max(commit.extend_to_bytes.unwrap_or(0))
    })?;
    if commit.clear_suid {
        drop_privileges(row);
    }
    Ok(())
}

/// Clears what makes a program run as its owner or group. Setgid without group execute is no such thing, and stays.
pub(crate) fn drop_privileges(row: &mut InodeRow) {
    row.mode &= !SETUID;
    if row.mode & GROUP_EXECUTE != 0 {
        row.mode &= !SETGID;
    }
}

fn write_to<S: Rows + ?Sized>(
    tx: &Transaction<'_, '_, S>,
    inode: InodeId,
    row: &mut InodeRow,
    mtime: Option<Timestamp>,
    length: impl FnOnce(u64) -> u64,
) -> OpResult<()> {
    match &mut row.body {
        Body::Regular {
            length_bytes,
            layout,
            versions,
            ..
        } => {
            let length = length(*length_bytes);
            let limit = layout.max_length_bytes().min(MAX_OFFSET_BYTES);
            if length > limit {
                return Err(Error::new(
                    ErrorCode::FileTooBig,
                    format!("inode {inode} would be {length} bytes long; its layout reaches {limit}"),
                )
                .into());
            }
            *length_bytes = length;
            versions.bump(ActorId(tx.session().0));
        }
        Body::Directory { .. } => return Err(ErrorCode::IsDirectory.into()),
        _ => return Err(ErrorCode::InvalidArgument.into()),
    }
    row.touch_mtime(tx.now());
    row.mtime = mtime.unwrap_or(row.mtime);
    Ok(())
}
