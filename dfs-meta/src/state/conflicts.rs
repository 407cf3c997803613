//! Listing conflicts, with the paths of their files.

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::InodeId;
use dfs_common::conflict::{Conflict, ConflictEntry, ConflictId};

use super::{PAGE_ROWS, State};
use crate::namespace::{Body, DentryRow, InodeRow};
use crate::store::{self, Row, Store, StoreError, keys};

/// Bytes of rows in one answer, well within a message.
const ANSWER_MAX_BYTES: usize = 512 << 10;

/// Directories above a file that are looked at.
const DEPTH_MAX: usize = 1_024;

impl<S: Store> State<S> {
    /// Conflicts after `after`, in order of files, at most `limit`; and whether there are no more. `paths`: look for their files' names,
    /// which takes a look at every name there is.
    pub fn conflicts(
        &self,
        after: Option<(InodeId, ConflictId)>,
        limit: usize,
        paths: bool,
    ) -> Result<(Vec<ConflictEntry>, bool), StoreError> {
        let from = after.map_or_else(
            || keys::conflicts(InodeId(0)).0,
            |(inode, id)| keys::conflict(inode, ConflictId(id.0.saturating_add(1))),
        );
        let rows = self.page(&from, &keys::conflicts(InodeId(u64::MAX)).1, limit)?;
        let mut end = rows.len() < limit;
        let mut found: Vec<Conflict> = Vec::with_capacity(rows.len());
        let mut bytes = 0;
        for (key, value) in rows {
            bytes += value.len();
            if bytes > ANSWER_MAX_BYTES && !found.is_empty() {
                end = false;
                break;
            }
            found.push(store::decode(&key, &value)?);
        }
        let mut names = BTreeMap::new();
        if paths && !found.is_empty() {
            let files = found.iter().map(|conflict| conflict.divergence.chunk.inode);
            names = self.paths(&files.collect())?;
        }
        let entries = found.into_iter().map(|conflict| ConflictEntry {
            path: names.get(&conflict.divergence.chunk.inode).cloned(),
            conflict,
        });
        Ok((entries.collect(), end))
    }

    /// A page of rows. Commits wait for one page at most.
    fn page(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let _cache = self.cache.read();
        self.store.scan(from, to, limit)
    }

    /// Calls `each` for the entries of a range until it has enough (`false`).
    fn entries(
        &self,
        (mut from, to): (Vec<u8>, Vec<u8>),
        mut each: impl FnMut(InodeId, DentryRow) -> bool,
    ) -> Result<(), StoreError> {
        loop {
            let rows = self.page(&from, &to, PAGE_ROWS)?;
            let more = rows.len() == PAGE_ROWS;
            if let Some((last, _)) = rows.last() {
                from.clone_from(last);
                from.push(0);
            }
            for (key, value) in rows {
                let directory = keys::first_id(&key).map_or(InodeId::ROOT, InodeId);
                if !each(directory, store::decode(&key, &value)?) {
                    return Ok(());
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// One path of each of these files that has a name. Names move meanwhile; whoever uses a path looks whether it is the file.
    fn paths(&self, files: &BTreeSet<InodeId>) -> Result<BTreeMap<InodeId, Vec<u8>>, StoreError> {
        let all = (keys::dentries(InodeId(0)).0, keys::dentries(InodeId(u64::MAX)).1);
        let mut found: BTreeMap<InodeId, (InodeId, Vec<u8>)> = BTreeMap::new();
        self.entries(all, |directory, entry| {
            if files.contains(&entry.inode) {
                let name = entry.name.as_bytes().to_vec();
                found.entry(entry.inode).or_insert((directory, name));
            }
            found.len() < files.len()
        })?;
        let mut paths = BTreeMap::new();
        for (file, (directory, name)) in found {
            if let Some(mut path) = self.path_of_directory(directory)? {
                path.push(b'/');
                path.extend(name);
                paths.insert(file, path);
            }
        }
        Ok(paths)
    }

    /// Without a slash at the end: empty for the root. `None`: it was moved or removed while it was looked for.
    fn path_of_directory(&self, mut directory: InodeId) -> Result<Option<Vec<u8>>, StoreError> {
        let mut names = Vec::new();
        while directory != InodeId::ROOT {
            let row = {
                let _cache = self.cache.read();
                store::get::<InodeRow, _>(&self.store, &keys::inode(directory))?
            };
            let Some(Body::Directory { parent, .. }) = row.map(|row| row.body) else {
                return Ok(None);
            };
            let mut name = None;
            self.entries(keys::dentries(parent), |_, entry| {
                if entry.inode == directory {
                    name = Some(entry.name.as_bytes().to_vec());
                }
                name.is_none()
            })?;
            let Some(name) = name.filter(|_| names.len() < DEPTH_MAX) else {
                return Ok(None);
            };
            names.push(name);
            directory = parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend(name);
        }
        Ok(Some(path))
    }
}
