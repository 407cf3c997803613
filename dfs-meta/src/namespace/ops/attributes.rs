//! Mode, owner, times, policy.

use dfs_common::wire::namespace::{NamespaceChange, SetAttributes, SetTime, WriteCommit};
use dfs_common::{InodeId, PolicyChange};

use super::super::OpResult;
use super::super::transaction::Transaction;
use super::length::{commit_to, drop_privileges};
use crate::store::Rows;

const MODE_BITS: u32 = 0o7777;

/// With `commit`, a writer's last word about its data comes first, so that a `touch -d` after a write stays.
pub(crate) fn set_attributes<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    inode: InodeId,
    set: &SetAttributes,
    commit: Option<&WriteCommit>,
) -> OpResult<NamespaceChange> {
    let mut row = tx.inode(inode)?;
    if let Some(commit) = commit {
        commit_to(tx, inode, &mut row, commit)?;
    }
    let now = tx.now();
    let time = |set| match set {
        SetTime::Now => now,
        SetTime::To(time) => time,
    };
    if (set.uid.is_some() || set.gid.is_some()) && tx.caller().uid != 0 && !row.is_directory() {
        // As chown(2) of an unprivileged caller does; before `mode`, which is the caller's explicit wish.
        drop_privileges(&mut row);
    }
    if let Some(mode) = set.mode {
        row.mode = mode & MODE_BITS;
    }
    row.uid = set.uid.unwrap_or(row.uid);
    row.gid = set.gid.unwrap_or(row.gid);
    row.atime = set.atime.map_or(row.atime, time);
    row.mtime = set.mtime.map_or(row.mtime, time);
    row.touch_ctime(set.ctime.unwrap_or(now));
    let attributes = tx.put_and_show(inode, &row)?;
    Ok(NamespaceChange::Entry {
        attributes,
        created: false,
        held: false,
    })
}

pub(crate) fn set_policy<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    inode: InodeId,
    change: PolicyChange,
) -> OpResult<NamespaceChange> {
    let mut row = tx.inode(inode)?;
    row.policy = row.policy.with(change);
    row.touch_ctime(tx.now());
    let attributes = tx.put_and_show(inode, &row)?;
    Ok(NamespaceChange::Entry {
        attributes,
        created: false,
        held: false,
    })
}
