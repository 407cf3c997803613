//! A store in memory: the oracle for the one on disk, and the state of tests and simulations.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use super::{Batch, Row, Rows, Store, StoreError};

/// Rows in a map. Forgets everything when dropped.
#[derive(Debug, Default)]
pub struct MemoryStore {
    rows: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Rows for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.rows.read().get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        if to <= from {
            return Ok(Vec::new());
        }
        Ok(self
            .rows
            .read()
            .range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Excluded(to)))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }
}

impl Store for MemoryStore {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut rows = self.rows.write();
        for (key, value) in batch.into_rows() {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        Ok(())
    }

    fn clear(&self) -> Result<(), StoreError> {
        self.rows.write().clear();
        Ok(())
    }
}
