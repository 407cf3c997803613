//! Questions, answered from rows.

use dfs_common::wire::namespace::{DirectoryEntry, NamespaceAnswer, NamespaceRead};
use dfs_common::{Error, ErrorCode, InodeId, SessionId};

use super::rows::{Body, DentryRow, XattrRow};
use super::transaction::{get_listed, need_directory, need_inode, probe};
use super::{NameHash, OpResult};
use crate::store::keys::{self, Slot};
use crate::store::{self, Rows, StoreError};

/// Entries of one page: with the longest names and version vectors it stays within a message.
const MAX_DIRECTORY_PAGE: usize = 1_000;

/// Answers one question. `StatFs` is not a question about rows, and is answered by the caller.
pub fn read<R: Rows + ?Sized>(
    rows: &R,
    hasher: &dyn NameHash,
    asker: SessionId,
    read: &NamespaceRead,
) -> OpResult<NamespaceAnswer> {
    match read {
        NamespaceRead::Lookup { parent, name } => {
            need_directory(rows, asker, *parent)?;
            let (found, _) = probe(rows, hasher, *parent, name)?;
            let found = found.ok_or(ErrorCode::NotFound)?;
            let row = need_inode(rows, asker, found.entry.inode)?;
            Ok(NamespaceAnswer::Attributes(row.attributes(found.entry.inode)))
        }
        NamespaceRead::GetAttributes { inode } => Ok(NamespaceAnswer::Attributes(
            need_inode(rows, asker, *inode)?.attributes(*inode),
        )),
        NamespaceRead::ReadLink { inode } => match need_inode(rows, asker, *inode)?.body {
            Body::Symlink { target } => Ok(NamespaceAnswer::Link(target)),
            _ => Err(ErrorCode::InvalidArgument.into()),
        },
        NamespaceRead::ReadDirectory { inode, cookie, limit } => read_directory(rows, asker, *inode, *cookie, *limit),
        NamespaceRead::Parent { inode } => match need_inode(rows, asker, *inode)?.body {
            Body::Directory { parent, .. } => Ok(NamespaceAnswer::Parent(parent)),
            _ => Err(ErrorCode::NotDirectory.into()),
        },
        NamespaceRead::GetXattr { inode, name } => {
            let row = need_inode(rows, asker, *inode)?;
            if row.xattr_bytes == 0 {
                return Err(ErrorCode::NoAttribute.into());
            }
            let key = keys::xattr(*inode, &hasher.hash(*inode, name));
            let row: XattrRow = store::get(rows, &key)?.ok_or(ErrorCode::NoAttribute)?;
            Ok(NamespaceAnswer::Xattr(row.value))
        }
        NamespaceRead::ListXattr { inode } => list_xattr(rows, asker, *inode),
        NamespaceRead::StatFs => Err(Error::new(ErrorCode::NotSupported, "rows do not know how full disks are").into()),
    }
}

fn read_directory<R: Rows + ?Sized>(
    rows: &R,
    asker: SessionId,
    inode: InodeId,
    cookie: u64,
    limit: u32,
) -> OpResult<NamespaceAnswer> {
    need_directory(rows, asker, inode)?;
    let limit = (limit as usize).clamp(1, MAX_DIRECTORY_PAGE);
    let from = keys::dentry(inode, Slot(cookie.saturating_add(1)));
    let to = keys::dentry(inode, Slot(u64::MAX));
    // One more than asked, to know whether this is the end.
    let mut page = rows.scan(&from, &to, limit + 1)?;
    let end = page.len() <= limit;
    page.truncate(limit);
    let entries = page
        .into_iter()
        .map(|(key, value)| {
            let slot = keys::slot_of(&key).ok_or_else(|| StoreError::Broken("an entry's key is short".into()))?;
            let entry: DentryRow = store::decode(&key, &value)?;
            // One file whose length has to be found must not keep a whole directory from being listed.
            let (row, _) = get_listed(rows, asker, entry.inode)?.ok_or_else(|| {
                StoreError::Broken(format!(
                    "an entry of directory {inode} names inode {} that is gone",
                    entry.inode
                ))
            })?;
            Ok(DirectoryEntry {
                cookie: slot.0,
                name: entry.name,
                attributes: row.attributes(entry.inode),
            })
        })
        .collect::<OpResult<Vec<_>>>()?;
    Ok(NamespaceAnswer::Directory { entries, end })
}

fn list_xattr<R: Rows + ?Sized>(rows: &R, asker: SessionId, inode: InodeId) -> OpResult<NamespaceAnswer> {
    let mut names = Vec::new();
    if need_inode(rows, asker, inode)?.xattr_bytes > 0 {
        let (from, to) = keys::xattrs(inode);
        for (key, value) in rows.scan(&from, &to, usize::MAX)? {
            let row: XattrRow = store::decode(&key, &value)?;
            names.push(row.name);
        }
        // Order of hashes would differ from cluster to cluster.
        names.sort();
    }
    Ok(NamespaceAnswer::XattrNames(names))
}
