//! A store seen through rows that are not committed yet.
//!
//! Commands of one batch must see each other, and a command that fails half-way must leave nothing: so there are two
//! layers, what earlier commands of the batch wrote and what the present one wrote, and the second is kept or dropped whole.

use std::collections::BTreeMap;

use super::{Batch, Row, Rows, StoreError};

/// Reads through two layers of pending rows; see the module.
#[derive(Debug)]
pub struct Overlay<'a, S: Rows + ?Sized> {
    base: &'a S,
    kept: Batch,
    current: Batch,
}

impl<'a, S: Rows + ?Sized> Overlay<'a, S> {
    pub fn new(base: &'a S) -> Self {
        Self {
            base,
            kept: Batch::default(),
            current: Batch::default(),
        }
    }

    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.current.put(key, value);
    }

    pub fn delete(&mut self, key: Vec<u8>) {
        self.current.delete(key);
    }

    /// The present command succeeded: its rows stay.
    pub fn keep(&mut self) {
        for (key, value) in std::mem::take(&mut self.current).into_rows() {
            match value {
                Some(value) => self.kept.put(key, value),
                None => self.kept.delete(key),
            }
        }
    }

    /// The present command failed: its rows go.
    pub fn discard(&mut self) {
        self.current = Batch::default();
    }

    /// Everything kept, ready to commit.
    pub fn into_batch(self) -> Batch {
        self.kept
    }
}

impl<S: Rows + ?Sized> Rows for Overlay<'_, S> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.current.get(key).or_else(|| self.kept.get(key)) {
            Some(pending) => Ok(pending.map(<[u8]>::to_vec)),
            None => self.base.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let pending: BTreeMap<_, _> = self.kept.range(from, to).chain(self.current.range(from, to)).collect();
        // Enough of the base that `limit` rows are left when all pending deletions hit.
        let deleted = pending.values().filter(|value| value.is_none()).count();
        let base = self.base.scan(from, to, limit.saturating_add(deleted))?;
        Ok(merge(base, pending, limit))
    }
}

/// The first `limit` rows of `base` with `pending` laid over it.
pub(super) fn merge(base: Vec<Row>, pending: BTreeMap<&Vec<u8>, &Option<Vec<u8>>>, limit: usize) -> Vec<Row> {
    if pending.is_empty() {
        return base;
    }
    let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = base.into_iter().collect();
    for (key, value) in pending {
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
    }
    rows.into_iter().take(limit).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{MemoryStore, Store};
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u8),
        Delete(u8),
        Keep,
        Discard,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u8..24, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
            3 => (0_u8..24).prop_map(Step::Delete),
            1 => Just(Step::Keep),
            1 => Just(Step::Discard),
        ]
    }

    proptest! {
        #[test]
        fn reads_as_if_it_were_committed(
            before in proptest::collection::vec((0_u8..24, any::<u8>()), 0..16),
            steps in proptest::collection::vec(step(), 0..40),
            from in 0_u8..24, to in 0_u8..26, limit in 0_usize..12,
        ) {
            let store = MemoryStore::default();
            let mut batch = Batch::default();
            let mut kept = BTreeMap::new();
            for (key, value) in before {
                batch.put(vec![key], vec![value]);
                kept.insert(vec![key], vec![value]);
            }
            store.commit(batch).unwrap();
            let mut overlay = Overlay::new(&store);
            let mut now = kept.clone();
            for step in steps {
                match step {
                    Step::Put(key, value) => {
                        overlay.put(vec![key], vec![value]);
                        now.insert(vec![key], vec![value]);
                    }
                    Step::Delete(key) => {
                        overlay.delete(vec![key]);
                        now.remove(&vec![key]);
                    }
                    Step::Keep => {
                        overlay.keep();
                        kept = now.clone();
                    }
                    Step::Discard => {
                        overlay.discard();
                        now = kept.clone();
                    }
                }
            }
            let expected: Vec<Row> = now
                .iter()
                .filter(|(key, _)| **key >= vec![from] && **key < vec![to])
                .take(limit)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            prop_assert_eq!(overlay.scan(&[from], &[to], limit).unwrap(), expected);
            for key in 0..24 {
                prop_assert_eq!(overlay.get(&[key]).unwrap(), now.get(&vec![key]).cloned());
            }
            overlay.keep();
            let batch = overlay.into_batch();
            store.commit(batch).unwrap();
            let all: BTreeMap<_, _> = store.scan(&[], &[255], 100).unwrap().into_iter().collect();
            prop_assert_eq!(all, now);
        }
    }
}
