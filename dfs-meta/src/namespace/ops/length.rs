//! What writers record: length, time of the last write, one more version, and cuts of the file's data.
//!
//! Invariant: a file grows only in an even truncation epoch (see [`CutEpoch`]), by data that was written in that epoch, or at the
//! end of the cut that removed whatever its chunks had beyond its end.

use dfs_common::wire::namespace::{NamespaceChange, WriteCommit};
use dfs_common::{ActorId, CutEpoch, Error, ErrorCode, InodeId, LastCuts, Timestamp};

use super::super::rows::{Body, InodeRow};
use super::super::transaction::{Transaction, is_valid};
use super::super::{Growing, OpError, OpResult};
use crate::store::{self, Overlay, Rows, StoreError, keys};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

/// Longest file, as for any off_t.
const MAX_OFFSET_BYTES: u64 = i64::MAX as u64;

pub(crate) fn begin_cut<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    inode: InodeId,
    at_most: u64,
    mtime: Option<Timestamp>,
    only_in: Option<CutEpoch>,
) -> OpResult<NamespaceChange> {
    let mut row = tx.inode(inode)?;
    let (length, cut, cuts) = end_of(inode, &mut row)?;
    let before_bytes = *length;
    // A truncation by somebody who takes the file for longer than it is would remove what others are about to commit.
    let is_later = only_in.is_some_and(|only_in| only_in != *cut);
    if is_later || (at_most > before_bytes && at_most != u64::MAX) {
        return Err(stale_cut(inode, before_bytes, *cut));
    }
    *cut = cut.begin();
    // Also where it is not longer: somebody may have written beyond the end and not said so yet.
    cuts.note(*cut, at_most.min(before_bytes), at_most != u64::MAX);
    if at_most == 0 {
        set_sparse(&mut row, false);
    }
    if at_most < before_bytes {
        write_to(tx, inode, &mut row, mtime, |length| length.min(at_most))?;
    } else {
        row.change += 1;
    }
    row.growing = false;
    let attributes = tx.put_and_show(inode, &row)?;
    Ok(NamespaceChange::CutBegun {
        attributes,
        before_bytes,
    })
}

pub(crate) fn set_length<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    inode: InodeId,
    length: u64,
    mtime: Option<Timestamp>,
    ends: Option<CutEpoch>,
) -> OpResult<NamespaceChange> {
    let mut row = tx.inode(inode)?;
    let holds = match row.hold {
        Some(hold) => hold.session == tx.session() && is_valid(tx.rows, hold)?,
        None => false,
    };
    let (before, cut, _) = end_of(inode, &mut row)?;
    let in_turn = match ends {
        Some(ends) => ends == *cut && cut.is_cutting(),
        None => holds && !cut.is_cutting(),
    };
    if !in_turn || length < *before {
        return Err(stale_cut(inode, *before, *cut));
    }
    *cut = cut.end();
    let grows = length > *before;
    write_to(tx, inode, &mut row, mtime, |_| length)?;
    if grows {
        set_sparse(&mut row, true);
    }
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
    let grows_to = commit.extend_to_bytes.unwrap_or(0);
    if let Body::Regular { length_bytes, cut, .. } = &row.body
        && commit.extend_to_bytes.is_some()
        && (commit.cut != *cut || cut.is_cutting())
    {
        return Err(stale_cut(inode, *length_bytes, *cut));
    }
    if !commit.is_bare() {
        write_to(tx, inode, row, commit.mtime, |length| length.max(grows_to))?;
    }
    if commit.clear_suid {
        drop_privileges(row);
    }
    if commit.sparse && !commit.is_bare() {
        set_sparse(row, true);
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
        sparse,
        ..
    } = &mut row.body
    {
        let length = found.length_bytes.min(layout.max_length_bytes()).min(MAX_OFFSET_BYTES);
        if length > *length_bytes {
            *length_bytes = length;
            // How its writer came there, nobody can say any more.
            *sparse = true;
            versions.bump(ActorId(found.hold.session.0));
            // Its mtime is at most a second before the last write: so often the writer tells.
            row.touch_ctime(now);
        }
    }
    rows.put(key, store::encode(&row)?);
    Ok(())
}

fn set_sparse(row: &mut InodeRow, is_sparse: bool) {
    if let Body::Regular { sparse, .. } = &mut row.body {
        *sparse = is_sparse;
    }
}

fn end_of(inode: InodeId, row: &mut InodeRow) -> OpResult<(&mut u64, &mut CutEpoch, &mut LastCuts)> {
    match &mut row.body {
        Body::Regular {
            length_bytes,
            cut,
            cuts,
            ..
        } => Ok((length_bytes, cut, cuts)),
        Body::Directory { .. } => Err(ErrorCode::IsDirectory.into()),
        _ => Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("inode {inode} is not a regular file"),
        )
        .into()),
    }
}

fn stale_cut(inode: InodeId, length: u64, cut: CutEpoch) -> OpError {
    Error::new(
        ErrorCode::StaleCut,
        format!(
            "inode {inode} has {length} bytes and truncation epoch {cut} now: somebody truncated or cut it meanwhile"
        ),
    )
    .into()
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
    let now = tx.now();
    row.touch_ctime(Timestamp::ctime_of_write(row.ctime, mtime, now));
    row.mtime = mtime.unwrap_or(now);
    Ok(())
}
