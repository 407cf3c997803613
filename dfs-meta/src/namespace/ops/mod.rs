//! Operations, one file each; small ones share a file by subject.

mod attributes;
mod create;
mod length;
mod link;
mod rename;
mod unlink;
mod xattr;

use dfs_common::wire::namespace::{NamespaceChange, NamespaceOp};

pub(crate) use length::found_length;

use super::OpResult;
use super::transaction::Transaction;
use crate::store::Rows;

pub(crate) fn apply<S: Rows + ?Sized>(tx: &mut Transaction<'_, '_, S>, op: &NamespaceOp) -> OpResult<NamespaceChange> {
    match op {
        NamespaceOp::Create {
            parent,
            name,
            mode,
            exclusive,
            key,
        } => create::create(tx, *parent, name, *mode, *exclusive, key),
        NamespaceOp::Mkdir { parent, name, mode } => create::mkdir(tx, *parent, name, *mode),
        NamespaceOp::Mknod {
            parent,
            name,
            kind,
            mode,
            rdev,
            key,
        } => create::mknod(
            tx,
            *parent,
            name,
            *mode,
            create::Node {
                kind: *kind,
                rdev: *rdev,
                key: key.as_ref(),
            },
        ),
        NamespaceOp::Symlink { parent, name, target } => create::symlink(tx, *parent, name, target),
        NamespaceOp::Link { inode, parent, name } => link::link(tx, *inode, *parent, name),
        NamespaceOp::Unlink { parent, name } => unlink::unlink(tx, *parent, name),
        NamespaceOp::Rmdir { parent, name } => unlink::rmdir(tx, *parent, name),
        NamespaceOp::Rename {
            parent,
            name,
            new_parent,
            new_name,
            mode,
        } => rename::rename(tx, (*parent, name), (*new_parent, new_name), *mode),
        NamespaceOp::SetAttributes { inode, set, commit } => {
            attributes::set_attributes(tx, *inode, set, commit.as_ref())
        }
        NamespaceOp::BeginCut {
            inode,
            length_bytes,
            mtime,
            only_in,
        } => length::begin_cut(tx, *inode, *length_bytes, *mtime, *only_in),
        NamespaceOp::SetLength {
            inode,
            length_bytes,
            mtime,
            cut,
        } => length::set_length(tx, *inode, *length_bytes, *mtime, *cut),
        NamespaceOp::CommitWrite { inode, commit } => length::commit_write(tx, *inode, commit),
        NamespaceOp::SetXattr {
            inode,
            name,
            value,
            mode,
        } => xattr::set(tx, *inode, name, value, *mode),
        NamespaceOp::RemoveXattr { inode, name } => xattr::remove(tx, *inode, name),
        NamespaceOp::SetPolicy { inode, change } => attributes::set_policy(tx, *inode, *change),
    }
}
