//! What operations are made of: rows as types, names, links.

use std::fmt;

use dfs_common::wire::namespace::{Attributes, Caller};
use dfs_common::{Error, ErrorCode, Hold, InodeId, SessionId, Timestamp, ValidName};

use super::rows::{Body, Counters, DentryRow, HoldRow, InodeRow, OrphanRow};
use super::{Context, Growing, NameHash, Obstacle, OpError, OpResult};
use crate::store::keys::{self, PROBES, Slot};
use crate::store::{self, Overlay, Rows, StoreError};

/// Where a name is, or would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) slot: Slot,
    pub(crate) entry: DentryRow,
}

/// The inode, if there is one, for `asker`: nobody else sees what a session holds, and nobody at all what it left unsaid.
pub(crate) fn get_inode<R: Rows + ?Sized>(rows: &R, asker: SessionId, inode: InodeId) -> OpResult<Option<InodeRow>> {
    match get_listed(rows, asker, inode)? {
        Some((_, Some(growing))) => Err(OpError::Obstructed(Obstacle::Growing(growing))),
        found => Ok(found.map(|(row, _)| row)),
    }
}

/// The same for a listing, whose lengths nobody relies on: with what is still to be found out about it.
pub(crate) fn get_listed<R: Rows + ?Sized>(
    rows: &R,
    asker: SessionId,
    inode: InodeId,
) -> OpResult<Option<(InodeRow, Option<Growing>)>> {
    let Some(row) = store::get::<InodeRow, _>(rows, &keys::inode(inode))? else {
        return Ok(None);
    };
    let mut left = None;
    if let Some(hold) = row.hold
        && (hold.session != asker || row.growing)
    {
        match (is_valid(rows, hold)?, hold.session == asker) {
            (true, true) => {}
            (true, false) => return Err(OpError::Obstructed(Obstacle::Held(hold))),
            (false, _) => left = row.left_growing(inode),
        }
    }
    Ok(Some((row, left)))
}

/// Whether the session lives and is in that epoch.
pub(crate) fn is_valid<R: Rows + ?Sized>(rows: &R, hold: Hold) -> Result<bool, StoreError> {
    let row: Option<HoldRow> = store::get(rows, &keys::hold(hold.session))?;
    Ok(row.is_some_and(|row| row.epoch == hold.epoch))
}

/// The inode, or `ESTALE`: somebody holds a number whose inode is gone.
pub(crate) fn need_inode<R: Rows + ?Sized>(rows: &R, asker: SessionId, inode: InodeId) -> OpResult<InodeRow> {
    get_inode(rows, asker, inode)?
        .ok_or_else(|| Error::new(ErrorCode::StaleInode, format!("inode {inode} is gone")).into())
}

/// The directory, or `ENOENT` when it was removed, or `ENOTDIR`.
pub(crate) fn need_directory<R: Rows + ?Sized>(rows: &R, asker: SessionId, directory: InodeId) -> OpResult<InodeRow> {
    let row = get_inode(rows, asker, directory)?
        .ok_or_else(|| Error::new(ErrorCode::NotFound, format!("directory {directory} was removed")))?;
    if row.is_directory() {
        Ok(row)
    } else {
        Err(Error::new(ErrorCode::NotDirectory, format!("inode {directory} is no directory")).into())
    }
}

/// The entry of a name, and the first free slot for it.
pub(crate) fn probe<R: Rows + ?Sized>(
    rows: &R,
    hasher: &dyn NameHash,
    directory: InodeId,
    name: &ValidName,
) -> Result<(Option<Found>, Option<Slot>), StoreError> {
    let first = Slot::of_hash(&hasher.hash(directory, name.as_bytes()));
    let end = Slot(first.0 + PROBES);
    // Nearly always there: one row read instead of a search.
    if let Some(entry) = store::get::<DentryRow, _>(rows, &keys::dentry(directory, first))?
        && entry.name == *name
    {
        return Ok((Some(Found { slot: first, entry }), None));
    }
    // The whole window is looked at, since removing a name leaves no mark in its slot.
    let window = rows.scan(
        &keys::dentry(directory, first),
        &keys::dentry(directory, end),
        PROBES as usize,
    )?;
    let mut free = first;
    for (key, value) in window {
        let slot = keys::slot_of(&key).ok_or_else(|| StoreError::Broken("an entry's key is short".into()))?;
        let entry: DentryRow = store::decode(&key, &value)?;
        if entry.name == *name {
            return Ok((Some(Found { slot, entry }), None));
        }
        if slot == free {
            free = Slot(free.0 + 1);
        }
    }
    Ok((None, Some(free).filter(|free| *free < end)))
}

/// Removes the rows of an unlinked file whose chunks are gone.
pub(crate) fn forget_orphan<S: Rows + ?Sized>(rows: &mut Overlay<'_, S>, inode: InodeId) -> Result<(), StoreError> {
    forget_inode(rows, inode)?;
    rows.delete(keys::orphan(inode));
    Ok(())
}

fn forget_inode<S: Rows + ?Sized>(rows: &mut Overlay<'_, S>, inode: InodeId) -> Result<(), StoreError> {
    let (from, to) = keys::xattrs(inode);
    // As many as fit the limit on an inode's attributes.
    for (key, _) in rows.scan(&from, &to, usize::MAX)? {
        rows.delete(key);
    }
    rows.delete(keys::inode(inode));
    Ok(())
}

/// One operation at work on the rows.
pub(crate) struct Transaction<'t, 's, S: Rows + ?Sized> {
    pub(crate) rows: &'t mut Overlay<'s, S>,
    pub(crate) counters: &'t mut Counters,
    pub(crate) hasher: &'t dyn NameHash,
    pub(crate) context: Context<'t>,
}

impl<S: Rows + ?Sized> fmt::Debug for Transaction<'_, '_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

impl<'t, 's, S: Rows + ?Sized> Transaction<'t, 's, S> {
    pub(crate) fn new(
        rows: &'t mut Overlay<'s, S>,
        counters: &'t mut Counters,
        hasher: &'t dyn NameHash,
        context: Context<'t>,
    ) -> Self {
        Self {
            rows,
            counters,
            hasher,
            context,
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.context.time
    }

    pub(crate) fn caller(&self) -> Caller {
        self.context.caller
    }

    pub(crate) fn session(&self) -> SessionId {
        self.context.session
    }

    pub(crate) fn inode(&self, inode: InodeId) -> OpResult<InodeRow> {
        need_inode(self.rows, self.session(), inode)
    }

    pub(crate) fn directory(&self, directory: InodeId) -> OpResult<InodeRow> {
        need_directory(self.rows, self.session(), directory)
    }

    pub(crate) fn put_inode(&mut self, inode: InodeId, row: &InodeRow) -> OpResult<()> {
        self.rows.put(keys::inode(inode), store::encode(row)?);
        Ok(())
    }

    /// Writes the inode and shows it as it is now.
    pub(crate) fn put_and_show(&mut self, inode: InodeId, row: &InodeRow) -> OpResult<Attributes> {
        self.put_inode(inode, row)?;
        Ok(row.attributes(inode))
    }

    /// The number of the inode that this operation creates, and whose it is to be.
    pub(crate) fn new_inode(&mut self) -> OpResult<(InodeId, Option<Hold>)> {
        let inode = if let Some(shown) = self.context.inode {
            self.reserved(shown)?
        } else {
            let next = self.counters.next_inode;
            self.counters.next_inode = next.next();
            next
        };
        self.counters.inodes += 1;
        let wanted = self.context.hold.map(|epoch| Hold {
            session: self.session(),
            epoch,
        });
        let hold = match wanted {
            Some(hold) if is_valid(self.rows, hold)? => Some(hold),
            _ => None,
        };
        Ok((inode, hold))
    }

    /// Takes a number that the session has reserved. They rise, so that none is given twice.
    fn reserved(&mut self, inode: InodeId) -> OpResult<InodeId> {
        let key = keys::hold(self.session());
        let row: Option<HoldRow> = store::get(self.rows, &key)?;
        let Some(mut row) = row.filter(|row| (row.first..row.end).contains(&inode)) else {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("inode {inode} is not the next of session {} to give", self.session()),
            )
            .into());
        };
        row.first = inode.next();
        self.rows.put(key, store::encode(&row)?);
        Ok(inode)
    }

    /// The entry of a name, if there is one.
    pub(crate) fn find(&self, directory: InodeId, name: &ValidName) -> OpResult<Option<Found>> {
        Ok(probe(self.rows, self.hasher, directory, name)?.0)
    }

    /// The entry of a name, or `ENOENT`.
    pub(crate) fn entry(&self, directory: InodeId, name: &ValidName) -> OpResult<Found> {
        self.find(directory, name)?.ok_or_else(|| ErrorCode::NotFound.into())
    }

    /// A slot for a name that must not be there yet, or `EEXIST`.
    pub(crate) fn vacancy(&self, directory: InodeId, name: &ValidName) -> OpResult<Slot> {
        match probe(self.rows, self.hasher, directory, name)? {
            (Some(_), _) => Err(ErrorCode::Exists.into()),
            (None, Some(slot)) => Ok(slot),
            (None, None) => Err(Error::new(
                ErrorCode::NoSpace,
                format!("{PROBES} names of directory {directory} have one hash; choose another name"),
            )
            .into()),
        }
    }

    /// Writes an entry. The directory's own row is the caller's.
    pub(crate) fn put_entry(
        &mut self,
        directory: InodeId,
        slot: Slot,
        inode: InodeId,
        name: &ValidName,
    ) -> OpResult<()> {
        let row = DentryRow {
            inode,
            name: name.clone(),
        };
        self.rows.put(keys::dentry(directory, slot), store::encode(&row)?);
        Ok(())
    }

    pub(crate) fn remove_entry(&mut self, directory: InodeId, slot: Slot) {
        self.rows.delete(keys::dentry(directory, slot));
    }

    /// An inode lost a name; without any it becomes an orphan (a regular file: somebody may have it open, and its chunks
    /// are still there) or goes at once. Returns the links that are left.
    pub(crate) fn drop_link(&mut self, inode: InodeId, mut row: InodeRow) -> OpResult<u32> {
        let gone = row.is_directory() || row.nlink <= 1;
        if !gone {
            row.nlink -= 1;
            row.touch_ctime(self.now());
            self.put_inode(inode, &row)?;
            return Ok(row.nlink);
        }
        self.counters.inodes -= 1;
        if matches!(row.body, Body::Regular { .. }) {
            row.nlink = 0;
            row.touch_ctime(self.now());
            self.put_inode(inode, &row)?;
            let orphan = OrphanRow {
                unlinked_at: self.now(),
            };
            self.rows.put(keys::orphan(inode), store::encode(&orphan)?);
            self.counters.orphans += 1;
        } else {
            forget_inode(self.rows, inode)?;
        }
        Ok(0)
    }

    /// Counts entries of a directory up or down and stamps it, as every change of its names does.
    pub(crate) fn count_entries(&self, directory: &mut InodeRow, difference: i64) -> OpResult<()> {
        let now = self.now();
        let Body::Directory { entries, .. } = &mut directory.body else {
            return Err(OpError::Store(StoreError::Broken(
                "a parent that is no directory".into(),
            )));
        };
        *entries = entries.saturating_add_signed(difference);
        directory.touch_mtime(now);
        Ok(())
    }
}
