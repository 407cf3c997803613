//! Batches gathered in memory before they go to a slower store.
//!
//! A commit to sled costs half a millisecond of system calls and wakes a pool of threads, whatever is in it; a command of
//! consensus must not wait for that, and need not: the store is a cache of the log. So a commit ends in memory, and one
//! thread carries what has gathered to the store below.
//!
//! Invariant: the store below holds the state after some commit, never a part of one. Commits are merged whole, carried
//! in order, one store batch at a time; what is not carried when the process dies is replayed from the log, since the log's
//! position is a row like any other. Readers see every commit at once: newest layer first, the store below last.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use super::{Batch, Row, Rows, Store, StoreError};
use crate::room::Room;

/// How long rows gather before they are carried. Rows that change often (a directory, the position) are then carried once.
const GATHER: Duration = Duration::from_millis(100);

/// Rows in one batch of the store below; sled takes much memory for larger ones.
const MAX_BATCH_ROWS: usize = 1_000;

/// So much of keys and values in one batch, or one commit. It bounds what a batch takes on a disk
/// that is nearly full.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// Between two looks whether there is room.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Between two looks, when nothing is committed, whether the store below should be made smaller.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// Batches that wait. A commit beyond that waits for the store below: memory is bounded by this.
const MAX_BATCHES: usize = 64;

/// A store that commits to memory and carries on to `S` in the background.
pub struct WriteBack<S: Store> {
    shared: Arc<Shared<S>>,
    carrier: Option<JoinHandle<()>>,
}

struct Shared<S> {
    below: S,
    /// Of the disk of the store below, which can not go on after a write that failed.
    room: Arc<Room>,
    /// Oldest first; the last one still takes rows. Readers hold the lock only to look here.
    layers: RwLock<VecDeque<Arc<Batch>>>,
    work: Mutex<Work>,
    /// Told when there is something to carry, to finish, or when a batch was carried.
    changed: Condvar,
}

#[derive(Default)]
struct Work {
    /// Somebody waits for everything to be carried: do not gather.
    hurry: bool,
    stop: bool,
    /// Why nothing is carried any more.
    failed: Option<String>,
}

impl<S: Store> fmt::Debug for WriteBack<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBack")
            .field("waiting_batches", &self.shared.layers.read().len())
            .finish_non_exhaustive()
    }
}

impl<S: Store> WriteBack<S> {
    /// # Errors
    /// [`StoreError::Broken`] when the system gives no thread.
    pub fn new(below: S, room: Arc<Room>) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            below,
            room,
            layers: RwLock::default(),
            work: Mutex::default(),
            changed: Condvar::new(),
        });
        let carrying = Arc::clone(&shared);
        let carrier = std::thread::Builder::new()
            .name("meta-store".into())
            .spawn(move || carrying.carry())
            .map_err(|source| StoreError::Backend {
                doing: "starting its thread",
                source: Box::new(source),
            })?;
        Ok(Self {
            shared,
            carrier: Some(carrier),
        })
    }

    pub fn below(&self) -> &S {
        &self.shared.below
    }

    /// Waits until everything committed is in the store below.
    pub fn drain(&self) -> Result<(), StoreError> {
        self.shared.wait_until(0)
    }
}

impl<S: Store> Drop for WriteBack<S> {
    /// The files of the store below are free when this returns. Who wants what is in memory kept drains before.
    fn drop(&mut self) {
        self.shared.work.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

impl<S: Store> Shared<S> {
    /// The carrying thread.
    fn carry(&self) {
        let mut is_compacting = false;
        loop {
            {
                let mut work = self.work.lock();
                if !work.stop && !is_compacting && self.layers.read().is_empty() {
                    self.changed.wait_for(&mut work, TIDY_EVERY);
                }
                let gathers = |work: &mut Work| !work.stop && !work.hurry && self.layers.read().len() == 1;
                if !is_compacting {
                    self.changed.wait_while_for(&mut work, gathers, GATHER);
                }
                if work.stop {
                    return;
                }
            }
            if !self.wait_for_room() {
                return;
            }
            let done = self.carry_oldest().and_then(|()| self.compact());
            match done {
                Ok(more) => is_compacting = more,
                Err(reason) => {
                    tracing::error!(reason, "the metadata store takes no more rows");
                    self.work.lock().failed = Some(reason);
                    self.changed.notify_all();
                    return;
                }
            }
            let _work = self.work.lock();
            self.changed.notify_all();
        }
    }

    /// The store below gives back what it does not need. `true`: there is more to do.
    fn compact(&self) -> Result<bool, String> {
        let compact = || self.below.compact(self.room.told());
        match catch_unwind(AssertUnwindSafe(compact)) {
            Ok(done) => done.map_err(|error| dfs_common::Error::from(error).detail),
            Err(_) => Err("the store below panicked".to_owned()),
        }
    }

    /// Whether the disk can take the oldest batch.
    fn has_room(&self) -> bool {
        let bytes = self.layers.read().front().map_or(0, |layer| layer.bytes());
        self.room.has_for_state(bytes as u64)
    }

    /// `false`: this store ends.
    fn wait_for_room(&self) -> bool {
        while !self.has_room() {
            let mut work = self.work.lock();
            if work.stop {
                return false;
            }
            self.changed.wait_for(&mut work, LOOK_EVERY);
        }
        true
    }

    fn carry_oldest(&self) -> Result<(), String> {
        let oldest = {
            let mut layers = self.layers.write();
            let Some(oldest) = layers.front().cloned() else {
                return Ok(());
            };
            // Sealed: what is committed from now on goes to a new layer.
            if layers.len() == 1 {
                layers.push_back(Arc::default());
            }
            oldest
        };
        // It stays readable until it is below.
        let commit = || self.below.commit(oldest.as_ref().clone());
        // sled panics on some errors of the disk; whoever waits for this thread must hear of it all the same.
        match catch_unwind(AssertUnwindSafe(commit)) {
            Ok(done) => done.map_err(|error| dfs_common::Error::from(error).detail)?,
            Err(_) => return Err("the store below panicked".to_owned()),
        }
        let mut layers = self.layers.write();
        layers.pop_front();
        if layers.len() == 1 && layers[0].is_empty() {
            layers.clear();
        }
        Ok(())
    }

    fn check(work: &Work) -> Result<(), StoreError> {
        match &work.failed {
            None => Ok(()),
            Some(reason) => Err(StoreError::Broken(format!("writing to it failed: {reason}"))),
        }
    }

    /// Waits until at most `batches` wait.
    fn wait_until(&self, batches: usize) -> Result<(), StoreError> {
        let mut work = self.work.lock();
        loop {
            Self::check(&work)?;
            if self.layers.read().len() <= batches {
                work.hurry = false;
                return Ok(());
            }
            if self.room.is_closing() && !self.has_room() {
                return Err(StoreError::Broken("its disk is full".into()));
            }
            work.hurry = true;
            self.changed.notify_all();
            self.changed.wait_for(&mut work, LOOK_EVERY);
        }
    }

    fn layers_newest_first(&self) -> Vec<Arc<Batch>> {
        self.layers.read().iter().rev().cloned().collect()
    }
}

impl Batch {
    /// Whether another one can go with it.
    fn takes(&self, other: &Self) -> bool {
        self.len() + other.len() <= MAX_BATCH_ROWS && self.bytes() + other.bytes() <= MAX_BATCH_BYTES
    }
}

impl<S: Store> Rows for WriteBack<S> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        {
            let layers = self.shared.layers.read();
            if let Some(pending) = layers.iter().rev().find_map(|layer| layer.get(key)) {
                return Ok(pending.map(<[u8]>::to_vec));
            }
        }
        // A layer leaves only after the store below has it, so nothing is missed in between.
        self.shared.below.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let layers = self.shared.layers_newest_first();
        let mut pending = BTreeMap::new();
        for layer in &layers {
            for (key, value) in layer.range(from, to) {
                pending.entry(key).or_insert(value);
            }
        }
        // Enough of what is below that `limit` rows are left when all pending deletions hit.
        let deleted = pending.values().filter(|value| value.is_none()).count();
        let below = self.shared.below.scan(from, to, limit.saturating_add(deleted))?;
        Ok(super::overlay::merge(below, pending, limit))
    }
}

impl<S: Store> Store for WriteBack<S> {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        if self.shared.layers.read().len() > MAX_BATCHES {
            self.shared.wait_until(MAX_BATCHES)?;
        }
        let new_layer = {
            let mut layers = self.shared.layers.write();
            let fits = layers.back().is_some_and(|last| last.is_empty() || last.takes(&batch));
            if !fits {
                layers.push_back(Arc::default());
            }
            if let Some(last) = layers.back_mut() {
                // The last layer is never being carried; a reader that still holds it keeps its own copy.
                Arc::make_mut(last).append(batch);
            }
            !fits
        };
        let work = self.shared.work.lock();
        Shared::<S>::check(&work)?;
        if new_layer {
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    fn clear(&self) -> Result<(), StoreError> {
        self.drain()?;
        self.shared.below.clear()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MemoryStore;
    use super::*;

    /// Refuses after so many commits, as a store whose disk is full.
    #[derive(Default)]
    struct Full(MemoryStore);

    impl Rows for Full {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.0.get(key)
        }

        fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
            self.0.scan(from, to, limit)
        }
    }

    impl Store for Full {
        fn commit(&self, _batch: Batch) -> Result<(), StoreError> {
            Err(StoreError::Broken("full".into()))
        }

        fn clear(&self) -> Result<(), StoreError> {
            self.0.clear()
        }
    }

    fn store<S: Store>(below: S) -> WriteBack<S> {
        WriteBack::new(below, Arc::new(Room::open(std::path::Path::new("/nowhere")))).unwrap()
    }

    fn batch(rows: &[(u8, Option<u8>)]) -> Batch {
        let mut batch = Batch::default();
        for &(key, value) in rows {
            match value {
                Some(value) => batch.put(vec![key], vec![value]),
                None => batch.delete(vec![key]),
            }
        }
        batch
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn reads_as_if_everything_were_below(
            commits in proptest::collection::vec(
                (proptest::collection::vec((0_u8..24, proptest::option::of(any::<u8>())), 1..6), any::<bool>()), 0..30),
            from in 0_u8..24, to in 0_u8..26, limit in 0_usize..12,
        ) {
            let store = store(MemoryStore::default());
            let oracle = MemoryStore::default();
            for (rows, drain) in commits {
                store.commit(batch(&rows)).unwrap();
                oracle.commit(batch(&rows)).unwrap();
                if drain {
                    store.drain().unwrap();
                }
                prop_assert_eq!(store.scan(&[from], &[to], limit).unwrap(), oracle.scan(&[from], &[to], limit).unwrap());
                for key in 0..24 {
                    prop_assert_eq!(store.get(&[key]).unwrap(), oracle.get(&[key]).unwrap());
                }
            }
            store.drain().unwrap();
            prop_assert_eq!(store.below().scan(&[], &[255], 100).unwrap(), oracle.scan(&[], &[255], 100).unwrap());
        }
    }

    #[test]
    fn commits_are_carried_whole_and_in_order() {
        let store = Arc::new(store(MemoryStore::default()));
        let watched = Arc::clone(&store);
        let watcher = std::thread::spawn(move || {
            loop {
                let rows = watched.below().scan(&[], &[255], 10).unwrap();
                // Every commit writes the same value to all keys.
                assert!(rows.windows(2).all(|pair| pair[0].1 == pair[1].1), "{rows:?}");
                if rows.first().is_some_and(|row| row.1 == [0xff, 0xff]) {
                    return;
                }
            }
        });
        for number in 0..=u16::MAX {
            let mut commit = Batch::default();
            for key in 0..5_u8 {
                commit.put(vec![key], number.to_be_bytes().to_vec());
            }
            store.commit(commit).unwrap();
        }
        watcher.join().unwrap();
    }

    #[test]
    fn a_store_that_fails_is_told_to_the_next_commit() {
        let store = store(Full::default());
        store.commit(batch(&[(1, Some(1))])).unwrap();
        assert!(store.drain().is_err());
        assert!(store.commit(batch(&[(2, Some(2))])).is_err());
        assert_eq!(store.get(&[1]).unwrap(), Some(vec![1]));
    }
}
