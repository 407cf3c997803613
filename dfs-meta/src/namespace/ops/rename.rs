//! Rename, in the kernel's order of checks (`do_renameat2`, then `vfs_rename`), so that errno is the same as on a local
//! file system even when several are due.

use dfs_common::units::LINK_MAX;
use dfs_common::wire::namespace::{FileKind, NamespaceChange, RenameMode};
use dfs_common::{Error, ErrorCode, InodeId, ValidName};

use super::super::rows::{Body, InodeRow};
use super::super::transaction::{Found, Transaction};
use super::super::{OpError, OpResult};
use super::create::{Node, mknod};
use super::unlink::check_empty;
use crate::store::{Rows, StoreError};

const WHITEOUT: Node<'_> = Node {
    kind: FileKind::CharDevice,
    rdev: 0,
    key: None,
};

type Place<'a> = (InodeId, &'a ValidName);

pub(crate) fn rename<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    from: Place<'_>,
    to: Place<'_>,
    mode: RenameMode,
) -> OpResult<NamespaceChange> {
    tx.directory(from.0)?;
    tx.directory(to.0)?;
    let source = tx.entry(from.0, from.1)?;
    let target = tx.find(to.0, to.1)?;
    match &target {
        Some(_) if !mode.replaces() && mode != RenameMode::Exchange => return Err(ErrorCode::Exists.into()),
        None if mode == RenameMode::Exchange => return Err(ErrorCode::NotFound.into()),
        _ => {}
    }
    let moved = tx.inode(source.entry.inode)?;
    // Within one directory nothing moves up or down the tree.
    if moved.is_directory() && from.0 != to.0 && is_within(tx, to.0, source.entry.inode)? {
        return Err(Error::new(ErrorCode::InvalidArgument, "a directory can not move into itself").into());
    }
    let Some(target) = target else {
        return move_away(tx, from, (source, moved), to, None, mode);
    };
    let replaced = tx.inode(target.entry.inode)?;
    if replaced.is_directory() && from.0 != to.0 && is_within(tx, from.0, target.entry.inode)? {
        let code = if mode == RenameMode::Exchange {
            ErrorCode::InvalidArgument
        } else {
            ErrorCode::NotEmpty
        };
        return Err(code.into());
    }
    if source.entry.inode == target.entry.inode {
        // Two names of one inode: nothing is done, and both stay.
        return Ok(NamespaceChange::Renamed { replaced: None });
    }
    if mode == RenameMode::Exchange {
        return exchange(tx, (from, source, moved), (to, target, replaced));
    }
    match (moved.is_directory(), replaced.is_directory()) {
        (true, false) => return Err(ErrorCode::NotDirectory.into()),
        (false, true) => return Err(ErrorCode::IsDirectory.into()),
        (true, true) => check_empty(target.entry.inode, &replaced)?,
        (false, false) => {}
    }
    move_away(tx, from, (source, moved), to, Some((target, replaced)), mode)
}

/// Moves a name, and leaves a whiteout in its place if that is asked for.
fn move_away<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    from: Place<'_>,
    (source, moved): (Found, InodeRow),
    to: Place<'_>,
    replaced: Option<(Found, InodeRow)>,
    mode: RenameMode,
) -> OpResult<NamespaceChange> {
    let renamed = move_over(tx, (from.0, source, moved), to, replaced)?;
    if mode.leaves_whiteout() {
        mknod(tx, from.0, from.1, 0, WHITEOUT)?;
    }
    Ok(renamed)
}

/// Moves a name, over another one if there is one.
fn move_over<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    (parent, source, mut moved): (InodeId, Found, InodeRow),
    (new_parent, new_name): Place<'_>,
    replaced: Option<(Found, InodeRow)>,
) -> OpResult<NamespaceChange> {
    let inode = source.entry.inode;
    let moves_directory = moved.is_directory();
    let replaces_directory = replaced.as_ref().is_some_and(|(_, row)| row.is_directory());
    if moves_directory && parent != new_parent && !replaces_directory {
        check_room(new_parent, &tx.directory(new_parent)?)?;
    }
    // Away first: within one directory, the old slot may be the best one for the new name.
    tx.remove_entry(parent, source.slot);
    let mut old_directory = tx.directory(parent)?;
    tx.count_entries(&mut old_directory, -1)?;
    old_directory.nlink -= u32::from(moves_directory);
    tx.put_inode(parent, &old_directory)?;

    let slot = match &replaced {
        Some((target, _)) => target.slot,
        None => tx.vacancy(new_parent, new_name)?,
    };
    let mut new_directory = tx.directory(new_parent)?;
    tx.count_entries(&mut new_directory, i64::from(replaced.is_none()))?;
    new_directory.nlink += u32::from(moves_directory);
    new_directory.nlink -= u32::from(replaces_directory);
    tx.put_inode(new_parent, &new_directory)?;
    tx.put_entry(new_parent, slot, inode, new_name)?;

    settle(tx, inode, &mut moved, new_parent)?;
    let replaced = match replaced {
        Some((target, row)) => Some((target.entry.inode, tx.drop_link(target.entry.inode, row)?)),
        None => None,
    };
    Ok(NamespaceChange::Renamed { replaced })
}

/// Two names change places.
fn exchange<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    (from, source, mut one): (Place<'_>, Found, InodeRow),
    (to, target, mut other): (Place<'_>, Found, InodeRow),
) -> OpResult<NamespaceChange> {
    let (goes, comes) = (u32::from(one.is_directory()), u32::from(other.is_directory()));
    if from.0 != to.0 && goes > comes {
        check_room(to.0, &tx.directory(to.0)?)?;
    }
    if from.0 != to.0 && comes > goes {
        check_room(from.0, &tx.directory(from.0)?)?;
    }
    let mut directory = tx.directory(from.0)?;
    tx.count_entries(&mut directory, 0)?;
    directory.nlink = directory.nlink + comes - goes;
    tx.put_inode(from.0, &directory)?;
    // Read again: it may be the same directory.
    let mut directory = tx.directory(to.0)?;
    tx.count_entries(&mut directory, 0)?;
    directory.nlink = directory.nlink + goes - comes;
    tx.put_inode(to.0, &directory)?;

    tx.put_entry(from.0, source.slot, target.entry.inode, from.1)?;
    tx.put_entry(to.0, target.slot, source.entry.inode, to.1)?;
    settle(tx, source.entry.inode, &mut one, to.0)?;
    settle(tx, target.entry.inode, &mut other, from.0)?;
    Ok(NamespaceChange::Renamed { replaced: None })
}

/// The moved inode knows where it is now.
fn settle<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    inode: InodeId,
    row: &mut InodeRow,
    directory: InodeId,
) -> OpResult<()> {
    row.touch_ctime(tx.now());
    if let Body::Directory { parent, .. } = &mut row.body {
        *parent = directory;
    }
    tx.put_inode(inode, row)
}

fn check_room(inode: InodeId, directory: &InodeRow) -> OpResult<()> {
    if directory.nlink < LINK_MAX {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::TooManyLinks,
        format!("directory {inode} has {} directories in it, the limit", LINK_MAX - 2),
    )
    .into())
}

/// Whether `inode` is `directory` or below it.
fn is_within<S: Rows + ?Sized>(tx: &Transaction<'_, '_, S>, mut inode: InodeId, directory: InodeId) -> OpResult<bool> {
    // No path is longer than there are inodes; a longer walk goes in a circle.
    for _ in 0..=tx.counters.inodes {
        if inode == directory {
            return Ok(true);
        }
        if inode == InodeId::ROOT {
            return Ok(false);
        }
        let Body::Directory { parent, .. } = tx.inode(inode)?.body else {
            break;
        };
        inode = parent;
    }
    Err(OpError::Store(StoreError::Broken(format!(
        "directory {inode} does not lead to the root"
    ))))
}
