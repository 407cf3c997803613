//! Snapshots of the state, out and in.
//!
//! An export shows one position of the log, while commands go on being applied. It reads a page of rows at a time under
//! the lock of a commit, so commits and readers wait for one page at most. A commit meanwhile sets aside what it overwrites beyond
//! the pages already read (the shadow), and the export reads that in the rows' place. Cost: while an export runs, one
//! more read and one copy for each row that changes beyond its cursor; nothing otherwise. The shadow is bounded: a
//! cluster that changes faster than its snapshot is written gives the snapshot up, not its memory.

use std::collections::BTreeMap;

use dfs_common::planted::{self, Bug};
use parking_lot::MutexGuard;

use super::{State, load};
use crate::store::{Batch, Row, Store, StoreError, keys};

/// Rows of one page: a page of a few hundred bytes each is read in about a millisecond.
pub const PAGE_ROWS: usize = 1_000;

/// Bytes that a shadow may hold.
const SHADOW_MAX_BYTES: usize = 256 << 20;

/// What rows were when the export began, where they have changed since and the export has not come by.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    /// All rows up to and with this key are exported.
    cursor: Option<Vec<u8>>,
    saved: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    saved_bytes: usize,
    overflowed: bool,
}

impl Shadow {
    /// Called before a batch is committed.
    pub(super) fn before<S: Store>(&mut self, store: &S, batch: &Batch) -> Result<(), StoreError> {
        for (key, _) in batch.iter() {
            let passed = self.cursor.as_ref().is_some_and(|cursor| key <= cursor.as_slice());
            if passed || self.overflowed || self.saved.contains_key(key) {
                continue;
            }
            let value = store.get(key)?;
            self.saved_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            self.saved.insert(key.to_vec(), value);
            if self.saved_bytes > SHADOW_MAX_BYTES {
                self.overflowed = true;
                self.saved = BTreeMap::new();
            }
        }
        Ok(())
    }
}

/// Takes one exported row: key and value.
pub type Sink<'a, E> = dyn FnMut(&[u8], &[u8]) -> Result<(), E> + 'a;

/// A running export; ends when dropped.
#[derive(Debug)]
pub struct Export<'a, S: Store> {
    state: &'a State<S>,
    position: Option<Vec<u8>>,
    finished: bool,
    _only: MutexGuard<'a, ()>,
}

impl<S: Store> Export<'_, S> {
    /// The position that the exported rows stand for.
    pub fn position(&self) -> Option<&[u8]> {
        self.position.as_deref()
    }

    /// The next rows, in order of keys; empty when there are no more. The position is not among them.
    pub fn next_page(&mut self) -> Result<Vec<Row>, StoreError> {
        while !self.finished {
            let page = self.read_page()?;
            if !page.is_empty() {
                return Ok(page);
            }
        }
        Ok(Vec::new())
    }

    fn read_page(&mut self) -> Result<Vec<Row>, StoreError> {
        let mut cache = self.state.cache.write();
        let Some(shadow) = &mut cache.shadow else {
            return Err(StoreError::Broken(
                "another state was installed during the snapshot".into(),
            ));
        };
        if shadow.overflowed {
            return Err(StoreError::SnapshotTooSlow {
                limit_bytes: SHADOW_MAX_BYTES,
            });
        }
        let from = shadow.cursor.clone().map_or_else(Vec::new, |mut key| {
            key.push(0);
            key
        });
        let rows = self.state.store.scan(&from, &keys::END, PAGE_ROWS)?;
        self.finished = rows.len() < PAGE_ROWS;
        let end = match rows.last() {
            Some((key, _)) if !self.finished => key.clone(),
            _ => keys::END.to_vec(),
        };
        let mut page: BTreeMap<Vec<u8>, Vec<u8>> = rows.into_iter().collect();
        let mut beyond = shadow.saved.split_off(&end);
        if let Some(value) = beyond.remove(&end) {
            shadow.saved.insert(end.clone(), value);
        }
        for (key, value) in std::mem::replace(&mut shadow.saved, beyond) {
            shadow.saved_bytes = shadow
                .saved_bytes
                .saturating_sub(key.len() + value.as_ref().map_or(0, Vec::len));
            match value {
                Some(value) => page.insert(key, value),
                None => page.remove(&key),
            };
        }
        shadow.cursor = Some(end);
        page.remove(keys::POSITION.as_slice());
        if planted::is(Bug::SnapshotWithoutDedupe) {
            let answers = keys::answers(dfs_common::SessionId(0)).0[0];
            page.retain(|key, _| key[0] != answers);
        }
        Ok(page.into_iter().collect())
    }
}

impl<S: Store> Drop for Export<'_, S> {
    fn drop(&mut self) {
        self.state.cache.write().shadow = None;
    }
}

impl<S: Store> State<S> {
    /// Begins an export of the state as it is now. Waits for one that is running.
    pub fn begin_export(&self) -> Result<Export<'_, S>, StoreError> {
        let only = self.exporting.lock();
        let mut cache = self.cache.write();
        let position = self.store.get(&keys::POSITION)?;
        cache.shadow = Some(Shadow::default());
        Ok(Export {
            state: self,
            position,
            finished: false,
            _only: only,
        })
    }

    /// Hands every row (plaintext, but for the position's) to `sink` in order of keys; returns the position they stand for.
    ///
    /// # Errors
    /// The sink's own, or trouble with the store.
    pub fn export<E: From<StoreError>>(&self, sink: &mut Sink<'_, E>) -> Result<Option<Vec<u8>>, E> {
        let mut export = self.begin_export()?;
        loop {
            let page = export.next_page()?;
            if page.is_empty() {
                return Ok(export.position.clone());
            }
            for (key, value) in page {
                sink(&key, &value)?;
            }
        }
    }

    /// Replaces everything by exported rows. Readers and appliers wait. The row that makes a store whole is written last, with the
    /// position: a crash in between leaves a store that does not open, and is rebuilt.
    ///
    /// # Errors
    /// The iterator's own, or trouble with the store; the state is not to be used after either.
    pub fn import<E: From<StoreError>>(
        &self,
        rows: impl IntoIterator<Item = Result<Row, E>>,
        position: &[u8],
    ) -> Result<(), E> {
        let _applying = self.applying.lock();
        let mut cache = self.cache.write();
        // A running export can not go on: its rows are gone.
        cache.shadow = None;
        self.store.clear()?;
        let mut batch = Batch::default();
        let mut last = Batch::default();
        for row in rows {
            let (key, value) = row?;
            if key == keys::FORMAT {
                last.put(key, value);
                continue;
            }
            batch.put(key, value);
            if batch.len() >= PAGE_ROWS {
                self.store.commit(std::mem::take(&mut batch))?;
            }
        }
        self.store.commit(batch)?;
        last.put(keys::POSITION.to_vec(), position.to_vec());
        self.store.commit(last)?;
        *cache = load(&self.store, self.cluster)?;
        Ok(())
    }
}
