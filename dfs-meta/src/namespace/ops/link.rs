//! A further name for an inode.

use dfs_common::units::LINK_MAX;
use dfs_common::wire::namespace::NamespaceChange;
use dfs_common::{Error, ErrorCode, InodeId, ValidName};

use super::super::OpResult;
use super::super::transaction::{Transaction, get_inode};
use crate::store::Rows;

/// In the kernel's order of checks: the name first, then what it is to name.
pub(crate) fn link<S: Rows + ?Sized>(
    tx: &mut Transaction<'_, '_, S>,
    inode: InodeId,
    parent: InodeId,
    name: &ValidName,
) -> OpResult<NamespaceChange> {
    let mut directory = tx.directory(parent)?;
    let slot = tx.vacancy(parent, name)?;
    // Without a name left, it can not come back: its chunks may be on their way out.
    let mut row = get_inode(tx.rows, tx.session(), inode)?
        .filter(|row| row.nlink > 0)
        .ok_or_else(|| Error::new(ErrorCode::NotFound, format!("inode {inode} has no name any more")))?;
    if row.is_directory() {
        return Err(ErrorCode::NotPermitted.into());
    }
    if row.nlink >= LINK_MAX {
        return Err(Error::new(
            ErrorCode::TooManyLinks,
            format!("inode {inode} has {LINK_MAX} names, the limit"),
        )
        .into());
    }
    row.nlink += 1;
    row.touch_ctime(tx.now());
    tx.count_entries(&mut directory, 1)?;
    tx.put_inode(parent, &directory)?;
    tx.put_entry(parent, slot, inode, name)?;
    let attributes = tx.put_and_show(inode, &row)?;
    Ok(NamespaceChange::Entry {
        attributes,
        created: false,
        held: false,
    })
}
