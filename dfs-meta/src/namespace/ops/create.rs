//! New inodes: regular files, directories, symlinks, and special files.

use dfs_common::units::{LINK_MAX, SYMLINK_MAX_BYTES};
use dfs_common::wire::namespace::{FileKind, NamespaceChange, WrappedKey};
use dfs_common::{CutEpoch, Error, ErrorCode, InodeId, LastCuts, Layout, ValidName, VersionVector};

use super::super::OpResult;
use super::super::rows::{Body, InodeRow};
use super::super::transaction::Transaction;
use crate::store::Rows;
use crate::store::keys::Slot;

const SETGID: u32 = 0o2000;
const MODE_BITS: u32 = 0o7777;

/// Largest wrapped key that is believed to be one (it is 60 bytes in this version).
const KEY_MAX_BYTES: usize = 256;

pub(crate) fn create<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    parent: InodeId,
    name: &ValidName,
    mode: u32,
    exclusive: bool,
    key: &WrappedKey,
) -> OpResult<NamespaceChange> {
    let directory = tx.directory(parent)?;
    if !exclusive && let Some(found) = tx.find(parent, name)? {
        let row = tx.inode(found.entry.inode)?;
        return Ok(NamespaceChange::Entry {
            attributes: row.attributes(found.entry.inode),
            created: false,
            held: false,
        });
    }
    let slot = tx.vacancy(parent, name)?;
    let body = regular(tx, key)?;
    add(tx, (parent, directory, slot), name, mode, body)
}

pub(crate) fn mkdir<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    parent: InodeId,
    name: &ValidName,
    mode: u32,
) -> OpResult<NamespaceChange> {
    let mut directory = tx.directory(parent)?;
    let slot = tx.vacancy(parent, name)?;
    if directory.nlink >= LINK_MAX {
        return Err(Error::new(
            ErrorCode::TooManyLinks,
            format!("directory {parent} has {} directories in it, the limit", LINK_MAX - 2),
        )
        .into());
    }
    directory.nlink += 1;
    let mode = mode | (directory.mode & SETGID);
    let body = Body::Directory { parent, entries: 0 };
    add(tx, (parent, directory, slot), name, mode, body)
}

/// What `mknod` makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node<'a> {
    pub(crate) kind: FileKind,
    pub(crate) rdev: u32,
    pub(crate) key: Option<&'a WrappedKey>,
}

pub(crate) fn mknod<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    parent: InodeId,
    name: &ValidName,
    mode: u32,
    node: Node<'_>,
) -> OpResult<NamespaceChange> {
    let directory = tx.directory(parent)?;
    let slot = tx.vacancy(parent, name)?;
    let body = match (node.kind, node.key) {
        (FileKind::Regular, Some(key)) => regular(tx, key)?,
        (FileKind::BlockDevice | FileKind::CharDevice, _) => Body::Special {
            kind: node.kind,
            rdev: node.rdev,
        },
        (FileKind::Fifo | FileKind::Socket, _) => Body::Special {
            kind: node.kind,
            rdev: 0,
        },
        (FileKind::Regular, None) => {
            return Err(Error::new(ErrorCode::InvalidArgument, "a regular file needs a wrapped key").into());
        }
        (FileKind::Directory | FileKind::Symlink, _) => return Err(ErrorCode::InvalidArgument.into()),
    };
    add(tx, (parent, directory, slot), name, mode, body)
}

pub(crate) fn symlink<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    parent: InodeId,
    name: &ValidName,
    target: &[u8],
) -> OpResult<NamespaceChange> {
    let directory = tx.directory(parent)?;
    if target.is_empty() {
        return Err(ErrorCode::NotFound.into());
    }
    if target.len() > SYMLINK_MAX_BYTES {
        return Err(ErrorCode::NameTooLong.into());
    }
    if target.contains(&0) {
        return Err(ErrorCode::InvalidArgument.into());
    }
    let slot = tx.vacancy(parent, name)?;
    let target = target.to_vec();
    add(tx, (parent, directory, slot), name, 0o777, Body::Symlink { target })
}

/// An empty regular file. Its layout is complete when it has its number.
fn regular<S: Rows + ?Sized>(tx: &Transaction<'_, '_, S>, key: &WrappedKey) -> OpResult<Body> {
    let Some(table) = tx.context.routing.default_table else {
        return Err(Error::new(
            ErrorCode::NoSpace,
            "no storage yet: too few storage nodes have joined to make chains (see dfs status)",
        )
        .into());
    };
    if key.bytes.len() > KEY_MAX_BYTES {
        return Err(Error::new(ErrorCode::BadMessage, "a wrapped key of that length is none").into());
    }
    Ok(Body::Regular {
        length_bytes: 0,
        layout: Layout::new(table, 0),
        key: key.clone(),
        versions: VersionVector::default(),
        cut: CutEpoch::NONE,
        cuts: LastCuts::default(),
        sparse: false,
    })
}

/// Gives a new inode its number, owner, times and name. `parent` brings its row as it is to be, but for the new entry.
fn add<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    (parent, mut directory, slot): (InodeId, InodeRow, Slot),
    name: &ValidName,
    mode: u32,
    mut body: Body,
) -> OpResult<NamespaceChange> {
    let (now, caller) = (tx.now(), tx.caller());
    let (inode, hold) = tx.new_inode()?;
    if let Body::Regular { layout, .. } = &mut body {
        // Its chunks are spread by its own number.
        *layout = Layout::new(layout.table, inode.0 as u32);
    }
    let gid = if directory.mode & SETGID != 0 {
        directory.gid
    } else {
        caller.gid
    };
    let row = InodeRow {
        mode: mode & MODE_BITS,
        nlink: if matches!(body, Body::Directory { .. }) { 2 } else { 1 },
        uid: caller.uid,
        gid,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        change: 1,
        policy: directory.policy,
        xattr_bytes: 0,
        hold,
        growing: false,
        body,
    };
    tx.count_entries(&mut directory, 1)?;
    tx.put_inode(parent, &directory)?;
    tx.put_entry(parent, slot, inode, name)?;
    let attributes = tx.put_and_show(inode, &row)?;
    Ok(NamespaceChange::Entry {
        attributes,
        created: true,
        held: hold.is_some(),
    })
}
