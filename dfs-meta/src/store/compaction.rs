//! Copying a database that is much larger than its rows into a new one, while it is in use.
//!
//! The copy goes through the keys in order. What is committed meanwhile goes to the current
//! database, and to the copy as well if its key is one that the copy has passed. When the copy has
//! passed them all it has the same rows, which their sums prove, and takes the place of the current
//! database. Sealed values are copied as they are: they are sealed to their keys, which stay the
//! same.
//!
//! A copy that fails, for want of room or otherwise, is given up, and the current database goes on.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dfs_common::wire::meta::DiskRoom;

use super::StoreError;
use super::sealed::{DIGEST_KEY, Database, Sum, backend};

/// A database is copied when it is larger than its rows by this.
const WORTH: Excess = Excess {
    times: 4,
    bytes: 64 << 20,
};

/// The same while the disk is low.
const WORTH_WHILE_LOW: Excess = Excess {
    times: 2,
    bytes: 16 << 20,
};

/// A copy takes about as much as its rows, or this many times that.
const COPY_TIMES: u64 = 2;

/// So much must stay free beside a copy.
const KEPT_FREE_BYTES: u64 = 12 << 20;

/// One step copies so much.
const STEP_ROWS: usize = 1_000;
const STEP_BYTES: usize = 1 << 20;

/// Between two looks whether a copy is worth it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// After a copy that was given up.
const PAUSE: Duration = Duration::from_secs(5);

/// sled closes a database in threads of its own; its files are left alone for so long.
const RELEASE: Duration = Duration::from_secs(1);

/// How much larger than its rows a database is.
#[derive(Clone, Copy)]
struct Excess {
    times: u64,
    bytes: u64,
}

/// Whether a database of this size is worth a copy. `settled_bytes` is how large the last copy was:
/// rows that take that much in a new database are not copied again until there is more.
const fn is_worth_it(disk: DiskRoom, rows_bytes: u64, database_bytes: u64, settled_bytes: u64) -> bool {
    let excess = if disk.is_low() { WORTH_WHILE_LOW } else { WORTH };
    let least_bytes = if rows_bytes > settled_bytes {
        rows_bytes
    } else {
        settled_bytes
    };
    database_bytes > excess.times * least_bytes + excess.bytes
}

/// What must be free for a copy of such rows.
const fn needed(rows_bytes: u64) -> u64 {
    COPY_TIMES * rows_bytes + KEPT_FREE_BYTES
}

/// A copy that is being made.
struct Copy {
    database: Database,
    sum: Sum,
    /// The copy has every row with a smaller key.
    passed: Vec<u8>,
    from_bytes: u64,
}

/// Rows of one commit that go to the copy as well.
pub(super) struct CopiedBatch {
    passed: Vec<u8>,
    sum: Sum,
    batch: sled::Batch,
    is_empty: bool,
}

impl CopiedBatch {
    /// The row was `old`, and is `new` from now on.
    pub(super) fn row(&mut self, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
        if key >= self.passed.as_slice() {
            return;
        }
        self.is_empty = false;
        if let Some(old) = old {
            self.sum.remove(key, old);
        }
        match new {
            Some(new) => {
                self.sum.add(key, new);
                self.batch.insert(key, new);
            }
            None => self.batch.remove(key),
        }
    }
}

/// What is under way, and when to look again.
#[derive(Default)]
pub(super) struct Compaction {
    copy: Option<Copy>,
    /// To be removed when sled has let go of it.
    left: Option<(PathBuf, Instant)>,
    settled_bytes: u64,
    /// People know that there is no room for it.
    is_told: bool,
    not_before: Option<Instant>,
}

impl Compaction {
    pub(super) fn is_under_way(&self) -> bool {
        self.copy.is_some()
    }

    /// For the rows of a commit; `None` when nothing is copied.
    pub(super) fn batch(&self) -> Option<CopiedBatch> {
        self.copy.as_ref().map(|copy| CopiedBatch {
            passed: copy.passed.clone(),
            sum: copy.sum,
            batch: sled::Batch::default(),
            is_empty: true,
        })
    }

    /// The commit is in the current database; here is the copy's part of it.
    pub(super) fn commit(&mut self, batch: Option<CopiedBatch>) {
        let Some(batch) = batch.filter(|batch| !batch.is_empty) else {
            return;
        };
        self.write(batch.batch, batch.sum);
    }

    /// Writes to the copy, and gives it up if that fails. sled panics on some errors of the disk.
    fn write(&mut self, batch: sled::Batch, sum: Sum) {
        let Some(copy) = &mut self.copy else {
            return;
        };
        match catch_unwind(AssertUnwindSafe(|| copy.database.apply(batch, sum))) {
            Ok(Ok(())) => copy.sum = sum,
            Ok(Err(error)) => self.give_up(&dfs_common::Error::from(error).detail),
            Err(_) => self.give_up("sled panicked"),
        }
    }

    pub(super) fn give_up(&mut self, why: &(impl Display + ?Sized)) {
        let Some(copy) = self.copy.take() else {
            return;
        };
        tracing::info!(%why, "making the files of the applied state smaller is given up, and tried again later");
        let now = Instant::now();
        self.not_before = Some(now + PAUSE);
        self.left_behind(copy.database, now);
    }

    /// This database is no longer used.
    pub(super) fn left_behind(&mut self, database: Database, now: Instant) {
        self.left = Some((database.path.clone(), now));
        drop(database.close());
    }

    /// Copies some rows, or looks whether that should begin: then in a new database at `next`.
    /// Returns the copy when it has all rows.
    pub(super) fn step(
        &mut self,
        current: &Database,
        sum: Sum,
        disk: DiskRoom,
        next: PathBuf,
        now: Instant,
    ) -> Result<Option<Database>, StoreError> {
        self.remove_left(now);
        if self.copy.is_none() {
            self.begin(current, sum, disk, next, now)?;
        } else if disk.free_bytes < KEPT_FREE_BYTES {
            self.give_up("there is no room for a copy");
        }
        let Some(copy) = &self.copy else {
            return Ok(None);
        };
        let mut rows = sled::Batch::default();
        let (mut copied, mut last, mut bytes) = (copy.sum, None, 0);
        for row in current
            .tree()?
            .range(copy.passed.as_slice()..&DIGEST_KEY)
            .take(STEP_ROWS)
        {
            let (key, sealed) = row.map_err(backend("reading rows"))?;
            bytes += key.len() + sealed.len();
            copied.add(&key, &sealed);
            rows.insert(&key, sealed);
            last = Some(key);
            if bytes >= STEP_BYTES {
                break;
            }
        }
        let Some(last) = last else {
            return Ok(self.finish(sum, now));
        };
        self.write(rows, copied);
        if let Some(copy) = &mut self.copy {
            copy.passed = [&*last, &[0]].concat();
        }
        Ok(None)
    }

    fn begin(
        &mut self,
        current: &Database,
        sum: Sum,
        disk: DiskRoom,
        next: PathBuf,
        now: Instant,
    ) -> Result<(), StoreError> {
        if self.left.is_some() || self.not_before.is_some_and(|at| now < at) {
            return Ok(());
        }
        self.not_before = Some(now + LOOK_EVERY);
        let from_bytes = current.bytes_on_disk()?;
        if !is_worth_it(disk, sum.bytes, from_bytes, self.settled_bytes) {
            return Ok(());
        }
        if disk.free_bytes < needed(sum.bytes) {
            if !self.is_told {
                let (free_mib, needed_mib) = (disk.free_bytes >> 20, needed(sum.bytes) >> 20);
                tracing::info!(
                    free_mib,
                    needed_mib,
                    "there is no room to make the files of the applied state smaller"
                );
            }
            self.is_told = true;
            return Ok(());
        }
        self.is_told = false;
        match Database::open(next) {
            Ok((database, sum)) => {
                self.copy = Some(Copy {
                    database,
                    sum,
                    passed: Vec::new(),
                    from_bytes,
                });
                if sum != Sum::default() {
                    self.give_up("an older copy is in the way");
                }
            }
            Err(error) => {
                tracing::info!(%error, "the files of the applied state can not be made smaller now");
                self.not_before = Some(now + PAUSE);
            }
        }
        Ok(())
    }

    /// All rows are passed.
    fn finish(&mut self, sum: Sum, now: Instant) -> Option<Database> {
        let copy = self.copy.as_ref()?;
        if copy.sum != sum {
            tracing::error!("a copy of the applied state is not what was copied");
            self.give_up("the copy differs");
            return None;
        }
        let size = catch_unwind(AssertUnwindSafe(|| {
            copy.database.flush()?;
            copy.database.bytes_on_disk()
        }));
        let Ok(Ok(to_bytes)) = size else {
            self.give_up("the copy can not be written out");
            return None;
        };
        tracing::info!(
            from_mib = copy.from_bytes >> 20,
            to_mib = to_bytes >> 20,
            "the files of the applied state were made smaller"
        );
        self.settled_bytes = to_bytes;
        self.not_before = Some(now + LOOK_EVERY);
        self.copy.take().map(|copy| copy.database)
    }

    fn remove_left(&mut self, now: Instant) {
        let Some((path, since)) = &self.left else {
            return;
        };
        if now < *since + RELEASE {
            return;
        }
        // With this name a start that finds only a part of it does not take it for a database.
        let gone = path.with_extension("gone");
        let removed = std::fs::rename(path, &gone).and_then(|()| std::fs::remove_dir_all(&gone));
        if let Err(error) = removed {
            tracing::warn!(%error, path = %gone.display(), "an old copy of the applied state can not be removed");
        }
        self.left = None;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::sealed::Plain;
    use super::super::{Batch, MemoryStore, Rows, SledStore, Store};
    use super::*;

    const LOW: DiskRoom = DiskRoom {
        total_bytes: 1 << 30,
        free_bytes: 40 << 20,
        kept_bytes: 50 << 20,
    };

    const EVERYTHING: ([u8; 0], [u8; 1]) = ([], [0xff]);

    /// The store and what it has to hold.
    struct Pair(SledStore, MemoryStore);

    impl Pair {
        fn open(directory: &Path) -> Self {
            // sled gives its lock back from a thread of its own, a moment after it was dropped.
            let opened = (0..500).find_map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                SledStore::open(directory, Plain).ok()
            });
            Self(opened.unwrap(), MemoryStore::default())
        }

        fn commit(&self, rows: impl IntoIterator<Item = (u32, Option<Vec<u8>>)>) {
            let mut batch = Batch::default();
            for (key, value) in rows {
                match value {
                    Some(value) => batch.put(key.to_be_bytes().to_vec(), value),
                    None => batch.delete(key.to_be_bytes().to_vec()),
                }
            }
            self.0.commit(batch.clone()).unwrap();
            self.1.commit(batch).unwrap();
        }

        /// 60 MiB, of which one row in a hundred stays.
        fn bloat(&self) {
            for round in 0..30 {
                self.commit((0..100).map(|row| (round * 100 + row, Some(vec![row as u8; 20_000]))));
            }
            for round in 0..30 {
                self.commit((1..100).map(|row| (round * 100 + row, None)));
            }
        }

        fn check(&self) {
            let (from, to) = EVERYTHING;
            assert!(self.0.scan(&from, &to, 10_000).unwrap() == self.1.scan(&from, &to, 10_000).unwrap());
        }
    }

    fn size(directory: &Path) -> u64 {
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                // sled removes some of its files in the background.
                entry.metadata().map_or(0, |found| {
                    if found.is_dir() {
                        size(&entry.path())
                    } else {
                        found.len()
                    }
                })
            })
            .sum()
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_database_becomes_smaller_while_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let pair = Pair::open(directory.path());
        pair.bloat();
        pair.0.flush().unwrap();
        let before = size(directory.path());
        assert!(pair.0.compact(LOW).unwrap());
        // Rows before, at and behind the place where the copy is: changed, removed and new ones.
        let mut number: u32 = 0;
        loop {
            let more = pair.0.compact(LOW).unwrap();
            for _ in 0..10 {
                number = number.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                let key = (number >> 8) % 3_000;
                let value = (number & 0x80 == 0).then(|| vec![number as u8; 30_000]);
                pair.commit([(key, value), (key + 1, None), (key / 2, Some(vec![1; 10]))]);
            }
            pair.check();
            if !more {
                break;
            }
        }
        std::thread::sleep(RELEASE);
        let _ = pair.0.compact(LOW).unwrap();
        pair.commit([(7, Some(vec![7]))]);
        pair.check();
        pair.0.flush().unwrap();
        let after = size(directory.path());
        assert!(after * 2 < before, "{before} bytes became {after}");
        assert_eq!(names(directory.path()), ["1"]);
        let Pair(store, expected) = pair;
        drop(store);
        Pair(Pair::open(directory.path()).0, expected).check();
    }

    #[test]
    fn a_copy_that_was_not_finished_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let pair = Pair::open(directory.path());
        pair.bloat();
        assert!(pair.0.compact(LOW).unwrap());
        pair.commit([(0, Some(vec![9])), (2_900, None)]);
        assert_eq!(names(directory.path()), ["0", "1"]);
        let Pair(store, expected) = pair;
        store.flush().unwrap();
        drop(store);
        let again = Pair(Pair::open(directory.path()).0, expected);
        again.check();
        assert_eq!(names(directory.path()), ["0"]);

        assert!(again.0.compact(LOW).unwrap());
        let full = DiskRoom {
            free_bytes: KEPT_FREE_BYTES - 1,
            ..LOW
        };
        assert!(!again.0.compact(full).unwrap(), "without room it is given up");
        std::thread::sleep(RELEASE);
        let _ = again.0.compact(full).unwrap();
        assert_eq!(names(directory.path()), ["0"]);
        again.check();
        assert!(!again.0.compact(LOW).unwrap(), "not again at once");
    }

    #[test]
    fn worth_it() {
        const MIB: u64 = 1 << 20;
        let roomy = DiskRoom {
            free_bytes: 900 * MIB,
            ..LOW
        };
        assert!(is_worth_it(LOW, MIB, 19 * MIB, 0));
        assert!(!is_worth_it(LOW, MIB, 17 * MIB, 0), "little to win");
        assert!(!is_worth_it(roomy, MIB, 60 * MIB, 0), "there is room");
        assert!(is_worth_it(roomy, MIB, 70 * MIB, 0));
        assert!(!is_worth_it(LOW, 60 * MIB, 130 * MIB, 0), "most of it is rows");
        assert!(
            !is_worth_it(LOW, 20 * MIB, 100 * MIB, 60 * MIB),
            "it did not help before"
        );
        assert_eq!(needed(20 * MIB), 52 * MIB);
    }
}
