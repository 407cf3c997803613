//! The store on disk: sled, with every value sealed and its key as associated data, so that a row moved to another key
//! does not open.
//!
//! sled 0.34 keeps batches atomic and in order over a crash, but its flush does not make the file's size durable and its
//! recovery may panic on damage. Neither matters here: whatever is missing or broken is rebuilt from the log. That it is noticed is
//! this module's: every batch carries a digest of all rows, and a store whose rows do not add up to it does not open. (A value that
//! rotted would not open either, but a row that is gone would just not be there.)
//!
//! The database stands in a numbered directory inside the store's own. sled does not give the room
//! of removed rows back to the file system, so a database that is much larger than its rows is
//! copied to the next number while it is in use, see [`compaction`](super::compaction). The lowest
//! number is the one that counts.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dfs_common::wire::meta::DiskRoom;
use parking_lot::{Mutex, RwLock};

use super::compaction::Compaction;
use super::{Batch, Row, Rows, Store, StoreError};

/// Memory for sled's page cache.
const CACHE_BYTES: u64 = 128 << 20;

/// How often sled writes out what it has, in the background. Seldom: it shares the disk with the log, and what is lost
/// is replayed.
const FLUSH_EVERY_MS: u64 = 2_000;

/// Key of the digest: above those of all rows.
pub(super) const DIGEST_KEY: [u8; 2] = [0xff, 0x01];

/// What one row adds to the digest. Sums over rows in any order, so that a batch changes it by its own rows alone.
fn weight(key: &[u8], sealed: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(sealed);
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(first)
}

/// What all rows add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    digest: u128,
    /// Keys and sealed values.
    pub(super) bytes: u64,
}

impl Sum {
    pub(super) fn add(&mut self, key: &[u8], sealed: &[u8]) {
        self.digest = self.digest.wrapping_add(weight(key, sealed));
        self.bytes += (key.len() + sealed.len()) as u64;
    }

    pub(super) fn remove(&mut self, key: &[u8], sealed: &[u8]) {
        self.digest = self.digest.wrapping_sub(weight(key, sealed));
        self.bytes = self.bytes.saturating_sub((key.len() + sealed.len()) as u64);
    }
}

/// The sum of what is there, if that is what the last batch left.
fn checked_sum(tree: &sled::Tree) -> Result<Sum, String> {
    let mut recorded = None;
    let mut sum = Sum::default();
    for row in tree {
        let (key, value) = row.map_err(|error| error.to_string())?;
        if key == DIGEST_KEY {
            let bytes: &[u8] = &value;
            recorded = Some(u128::from_le_bytes(bytes.try_into().map_err(|_| "its digest is none")?));
        } else {
            sum.add(&key, &value);
        }
    }
    if recorded.unwrap_or(0) == sum.digest {
        Ok(sum)
    } else {
        Err("its rows do not add up to its digest: some are lost or damaged".into())
    }
}

/// Makes rows that were changed behind the store's back add up.
#[cfg(test)]
pub(crate) fn redigest(tree: &sled::Tree) {
    let mut sum = Sum::default();
    for (key, value) in tree.iter().flatten().filter(|(key, _)| key != &DIGEST_KEY) {
        sum.add(&key, &value);
    }
    tree.insert(DIGEST_KEY, &sum.digest.to_le_bytes()).unwrap();
}

pub(super) fn backend(doing: &'static str) -> impl Fn(sled::Error) -> StoreError {
    move |source| StoreError::Backend {
        doing,
        source: Box::new(source),
    }
}

/// One sled database and its directory.
pub(super) struct Database {
    pub(super) path: PathBuf,
    /// `None` once it is closed.
    handles: Option<(sled::Tree, sled::Db)>,
}

/// sled writes out what it has when it is closed. After a write that failed it waits for that for
/// ever.
const CLOSES_WITHIN: Duration = Duration::from_secs(10);

impl Database {
    /// Opens or makes it, and adds its rows up.
    pub(super) fn open(path: PathBuf) -> Result<(Self, Sum), Box<dyn std::error::Error + Send + Sync>> {
        let config = sled::Config::new()
            .path(&path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        // Recovery of damaged files panics in places; that is one more way not to open.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = config.open()?;
            let tree = database.open_tree("rows")?;
            let sum = checked_sum(&tree);
            Ok::<_, sled::Error>((database, tree, sum))
        }));
        match opened {
            Ok(Ok((database, tree, sum))) => {
                let handles = Some((tree, database));
                Ok((Self { path, handles }, sum?))
            }
            Ok(Err(source)) => Err(Box::new(source)),
            Err(_) => Err("its recovery panicked on damaged files".into()),
        }
    }

    /// Commits rows together with the digest that they leave.
    pub(super) fn apply(&self, mut batch: sled::Batch, sum: Sum) -> Result<(), StoreError> {
        batch.insert(&DIGEST_KEY, &sum.digest.to_le_bytes());
        self.tree()?.apply_batch(batch).map_err(backend("committing a batch"))
    }

    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.handles()?.1.flush().map(|_| ()).map_err(backend("flushing"))
    }

    pub(super) fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        self.handles()?.1.size_on_disk().map_err(backend("measuring its files"))
    }

    pub(super) fn tree(&self) -> Result<&sled::Tree, StoreError> {
        self.handles().map(|(tree, _)| tree)
    }

    fn handles(&self) -> Result<&(sled::Tree, sled::Db), StoreError> {
        self.handles
            .as_ref()
            .ok_or_else(|| StoreError::Broken("it is used after it was closed".into()))
    }

    /// Closes it in a thread of its own. Who waits for the end of what this returns is told.
    pub(super) fn close(mut self) -> mpsc::Receiver<()> {
        self.begin_close()
    }

    fn begin_close(&mut self) -> mpsc::Receiver<()> {
        let (closed, told) = mpsc::channel();
        if let Some((tree, database)) = self.handles.take() {
            let close = move || {
                // The database owns the files.
                drop(tree);
                drop(database);
                drop(closed);
            };
            if let Err(error) = thread::Builder::new().name("meta-store-close".into()).spawn(close) {
                tracing::warn!(%error, "no thread to close the applied state in");
            }
        }
        told
    }
}

impl Drop for Database {
    /// The files are free when this returns, unless sled does not let go of them.
    fn drop(&mut self) {
        let ended = self.begin_close().recv_timeout(CLOSES_WITHIN);
        if ended == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!(path = %self.path.display(), "the applied state can not be closed; it is left as it is");
        }
    }
}

/// The number of the database that counts. Removes everything else in the store's directory: a copy
/// that was not finished, and what a finished one has left.
fn numbered(directory: &Path) -> std::io::Result<u64> {
    std::fs::create_dir_all(directory)?;
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
        numbers.push((number, entry.path()));
    }
    let lowest = numbers.iter().filter_map(|(number, _)| *number).min();
    for (_, path) in numbers
        .iter()
        .filter(|(number, _)| number.is_none() || *number != lowest)
    {
        if path.is_dir() {
            std::fs::remove_dir_all(path)?;
        } else {
            std::fs::remove_file(path)?;
        }
    }
    Ok(lowest.unwrap_or(0))
}

/// Seals values; `associated` is the row's key.
pub trait ValueSealer: Send + Sync + 'static {
    fn seal(&self, associated: &[u8], plain: &[u8]) -> Result<Vec<u8>, dfs_common::Error>;
    fn open(&self, associated: &[u8], sealed: &[u8]) -> Result<Vec<u8>, dfs_common::Error>;
}

/// Rows in sled, values sealed.
pub struct SledStore {
    directory: PathBuf,
    sealer: Box<dyn ValueSealer>,
    /// Readers hold it for one call; another one takes its place when it was copied.
    current: RwLock<Database>,
    /// Held over everything that writes.
    writing: Mutex<Writing>,
}

struct Writing {
    /// Of all rows in the current database.
    sum: Sum,
    number: u64,
    compaction: Compaction,
}

impl fmt::Debug for SledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledStore").finish_non_exhaustive()
    }
}

impl SledStore {
    /// Opens or makes the store in `directory`, which has nothing else in it.
    ///
    /// # Errors
    /// [`StoreError::Open`] when sled does not open it; the caller deletes the directory and rebuilds.
    pub fn open(directory: &Path, sealer: impl ValueSealer) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open {
            directory: directory.display().to_string(),
            source,
        };
        let number = numbered(directory).map_err(|error| failed(error.into()))?;
        let (database, sum) = Database::open(directory.join(number.to_string())).map_err(failed)?;
        Ok(Self {
            directory: directory.to_owned(),
            sealer: Box::new(sealer),
            current: RwLock::new(database),
            writing: Mutex::new(Writing {
                sum,
                number,
                compaction: Compaction::default(),
            }),
        })
    }

    /// Writes out what sled holds in memory, for a quick start next time. Not durable, and not needed to be.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.current.read().flush()
    }

    fn open_value(&self, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.sealer.open(key, sealed).map_err(|source| StoreError::Unsealable {
            source: Box::new(source),
        })
    }
}

impl Rows for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let sealed = self.current.read().tree()?.get(key).map_err(backend("reading a row"))?;
        sealed.map(|sealed| self.open_value(key, &sealed)).transpose()
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        if to <= from {
            return Ok(Vec::new());
        }
        self.current
            .read()
            .tree()?
            .range(from..to)
            .take(limit)
            .map(|row| {
                let (key, sealed) = row.map_err(backend("reading rows"))?;
                let value = self.open_value(&key, &sealed)?;
                Ok((key.to_vec(), value))
            })
            .collect()
    }
}

impl Store for SledStore {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut writing = self.writing.lock();
        let current = self.current.read();
        let mut sealed = sled::Batch::default();
        let mut sum = writing.sum;
        let mut copied = writing.compaction.batch();
        for (key, value) in batch.into_rows() {
            let old = current.tree()?.get(&key).map_err(backend("reading a row"))?;
            if let Some(old) = &old {
                sum.remove(&key, old);
            }
            let value = value
                .map(|value| self.sealer.seal(&key, &value).map_err(StoreError::Encode))
                .transpose()?;
            if let Some(value) = &value {
                sum.add(&key, value);
            }
            if let Some(copied) = &mut copied {
                copied.row(&key, old.as_deref(), value.as_deref());
            }
            match value {
                Some(value) => sealed.insert(key, value),
                None => sealed.remove(key),
            }
        }
        current.apply(sealed, sum)?;
        writing.sum = sum;
        writing.compaction.commit(copied);
        Ok(())
    }

    fn clear(&self) -> Result<(), StoreError> {
        let mut writing = self.writing.lock();
        writing.compaction.give_up("the state is replaced");
        self.current.read().tree()?.clear().map_err(backend("clearing"))?;
        writing.sum = Sum::default();
        Ok(())
    }

    fn compact(&self, disk: DiskRoom) -> Result<bool, StoreError> {
        let mut writing = self.writing.lock();
        let Writing {
            sum,
            number,
            compaction,
        } = &mut *writing;
        let next = self.directory.join((*number + 1).to_string());
        let copy = compaction.step(&self.current.read(), *sum, disk, next, Instant::now())?;
        if let Some(copy) = copy {
            let before = std::mem::replace(&mut *self.current.write(), copy);
            *number += 1;
            compaction.left_behind(before, Instant::now());
        }
        Ok(compaction.is_under_way())
    }
}

/// Values as they are: sealing is tested where it is done.
#[cfg(test)]
pub(super) struct Plain;

#[cfg(test)]
impl ValueSealer for Plain {
    fn seal(&self, _: &[u8], plain: &[u8]) -> Result<Vec<u8>, dfs_common::Error> {
        Ok(plain.to_vec())
    }
    fn open(&self, _: &[u8], sealed: &[u8]) -> Result<Vec<u8>, dfs_common::Error> {
        Ok(sealed.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(rows: &[(&[u8], Option<&[u8]>)]) -> Batch {
        let mut batch = Batch::default();
        for (key, value) in rows {
            match value {
                Some(value) => batch.put(key.to_vec(), value.to_vec()),
                None => batch.delete(key.to_vec()),
            }
        }
        batch
    }

    #[test]
    fn a_store_with_a_lost_or_changed_row_does_not_open() {
        let directory = tempfile::tempdir().unwrap();
        let open = || SledStore::open(directory.path(), Plain);
        let store = open().unwrap();
        store
            .commit(batch(&[(b"a", Some(b"1")), (b"b", Some(b"2")), (b"c", Some(b"3"))]))
            .unwrap();
        store
            .commit(batch(&[(b"a", Some(b"4")), (b"b", None), (b"x", None)]))
            .unwrap();
        assert_eq!(store.scan(&[], &[0xff], 10).unwrap().len(), 2);
        store.flush().unwrap();
        drop(store);
        let store = open().unwrap();
        store.current.read().tree().unwrap().remove(b"c").unwrap();
        store.flush().unwrap();
        drop(store);
        let error = dfs_common::Error::from(open().unwrap_err());
        assert!(error.detail.contains("do not add up"), "{error}");
    }

    #[test]
    fn an_emptied_store_opens() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path(), Plain).unwrap();
        store.commit(batch(&[(b"a", Some(b"1"))])).unwrap();
        store.clear().unwrap();
        store.flush().unwrap();
        drop(store);
        let store = SledStore::open(directory.path(), Plain).unwrap();
        store.commit(batch(&[(b"a", Some(b"1"))])).unwrap();
        assert_eq!(store.get(b"a").unwrap().unwrap(), b"1");
    }
}
