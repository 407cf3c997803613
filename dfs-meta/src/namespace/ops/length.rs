//! What writers record: length, time of the last write, one more version.

use dfs_common::wire::namespace::{NamespaceChange, WriteCommit};
use dfs_common::{ActorId, Error, ErrorCode, InodeId, Timestamp};

use super::super::rows::{Body, InodeRow};
use super::super::transaction::{Transaction, is_valid};
use super::super::{Growing, OpResult};
use crate::store::{self, Overlay, Rows, StoreError, keys};

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
    row.growing = false;
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
    if !commit.is_bare() {
        write_to(tx, inode, row, commit.mtime, |length| {
            length.max(commit.extend_to_bytes.unwrap_or(0))
        })?;
    }
    if commit.clear_suid {
        drop_privileges(row);
    }
    // For anybody else to be sure of the length, the hold has to be there to say that it is not.
    row.growing = match row.hold {
        Some(hold) if commit.growing && matches!(row.body, Body::Regular { .. }) => {
            hold.session == tx.session() && is_valid(tx.rows, hold)?
        }
        _ => false,
    };
    Ok(())
}

/// The length of a file that was left growing, as its chunks have it. Unless somebody else has found it already.
pub(crate) fn found_length<S: Rows + ?Sized>(
    rows: &mut Overlay<'_, S>,
    found: &Growing,
    now: Timestamp,
) -> Result<(), StoreError> {
    let key = keys::inode(found.inode);
    let Some(mut row) = store::get::<InodeRow, _>(rows, &key)? else {
        return Ok(());
    };
    if !row.growing || row.hold != Some(found.hold) || is_valid(rows, found.hold)? {
        return Ok(());
    }
    row.growing = false;
    if let Body::Regular {
        length_bytes,
        layout,
        versions,
        ..
    } = &mut row.body
    {
        let length = found.length_bytes.min(layout.max_length_bytes()).min(MAX_OFFSET_BYTES);
        if length > *length_bytes {
            *length_bytes = length;
            versions.bump(ActorId(found.hold.session.0));
            // Its mtime is at most a second before the last write: so often the writer tells.
            row.touch_ctime(now);
        }
    }
    rows.put(key, store::encode(&row)?);
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
