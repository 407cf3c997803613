//! The store on disk: sled, with every value sealed and its key as associated data, so that a row moved to another key
//! does not open.
//!
//! sled 0.34 keeps batches atomic and in order over a crash, but its flush does not make the file's size durable and its
//! recovery may panic on damage. Neither matters here: whatever is missing or broken is rebuilt from the log. That it is noticed is
//! this module's: every batch carries a digest of all rows, and a store whose rows do not add up to it does not open. (A value that
//! rotted would not open either, but a row that is gone would just not be there.)

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parking_lot::Mutex;

use super::{Batch, Row, Rows, Store, StoreError};

/// Memory for sled's page cache.
const CACHE_BYTES: u64 = 128 << 20;

/// How often sled writes out what it has, in the background. Seldom: it shares the disk with the log, and what is lost
/// is replayed.
const FLUSH_EVERY_MS: u64 = 2_000;

/// Key of the digest: above those of all rows.
const DIGEST_KEY: [u8; 2] = [0xff, 0x01];

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

/// The digest of what is there, if that is what the last batch left.
fn checked_digest(tree: &sled::Tree) -> Result<u128, String> {
    let mut recorded = None;
    let mut sum = 0_u128;
    for row in tree {
        let (key, value) = row.map_err(|error| error.to_string())?;
        if key == DIGEST_KEY {
            let bytes: &[u8] = &value;
            recorded = Some(u128::from_le_bytes(bytes.try_into().map_err(|_| "its digest is none")?));
        } else {
            sum = sum.wrapping_add(weight(&key, &value));
        }
    }
    match recorded {
        None if sum == 0 => Ok(0),
        Some(recorded) if recorded == sum => Ok(sum),
        _ => Err("its rows do not add up to its digest: some are lost or damaged".into()),
    }
}

/// Makes rows that were changed behind the store's back add up.
#[cfg(test)]
pub(crate) fn redigest(tree: &sled::Tree) {
    let rows = tree.iter().flatten().filter(|(key, _)| key != &DIGEST_KEY);
    let sum = rows.fold(0_u128, |sum, (key, value)| sum.wrapping_add(weight(&key, &value)));
    tree.insert(DIGEST_KEY, &sum.to_le_bytes()).unwrap();
}

/// Seals values; `associated` is the row's key.
pub trait ValueSealer: Send + Sync + 'static {
    fn seal(&self, associated: &[u8], plain: &[u8]) -> Result<Vec<u8>, dfs_common::Error>;
    fn open(&self, associated: &[u8], sealed: &[u8]) -> Result<Vec<u8>, dfs_common::Error>;
}

/// Rows in sled, values sealed.
pub struct SledStore {
    // Dropped before `database`, which owns the files.
    tree: sled::Tree,
    database: sled::Db,
    sealer: Box<dyn ValueSealer>,
    /// Of all rows. Held over a commit.
    digest: Mutex<u128>,
}

impl fmt::Debug for SledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledStore").finish_non_exhaustive()
    }
}

fn backend(doing: &'static str) -> impl Fn(sled::Error) -> StoreError {
    move |source| StoreError::Backend {
        doing,
        source: Box::new(source),
    }
}

impl SledStore {
    /// Opens or makes the store in `directory`.
    ///
    /// # Errors
    /// [`StoreError::Open`] when sled does not open it; the caller deletes the directory and rebuilds.
    pub fn open(directory: &Path, sealer: impl ValueSealer) -> Result<Self, StoreError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
            directory: directory.display().to_string(),
            source,
        };
        let config = sled::Config::new()
            .path(directory)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        // Recovery of damaged files panics in places; that is one more way not to open.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = config.open()?;
            let tree = database.open_tree("rows")?;
            let digest = checked_digest(&tree);
            Ok::<_, sled::Error>((database, tree, digest))
        }));
        match opened {
            Ok(Ok((_, _, Err(why)))) => Err(failed(why.into())),
            Ok(Ok((database, tree, Ok(digest)))) => Ok(Self {
                tree,
                database,
                sealer: Box::new(sealer),
                digest: Mutex::new(digest),
            }),
            Ok(Err(source)) => Err(failed(Box::new(source))),
            Err(_) => Err(failed("its recovery panicked on damaged files".into())),
        }
    }

    /// Writes out what sled holds in memory, for a quick start next time. Not durable, and not needed to be.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.database.flush().map(|_| ()).map_err(backend("flushing"))
    }

    fn open_value(&self, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.sealer.open(key, sealed).map_err(|source| StoreError::Unsealable {
            source: Box::new(source),
        })
    }
}

impl Rows for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let sealed = self.tree.get(key).map_err(backend("reading a row"))?;
        sealed.map(|sealed| self.open_value(key, &sealed)).transpose()
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        if to <= from {
            return Ok(Vec::new());
        }
        self.tree
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
        let mut sealed = sled::Batch::default();
        let mut held = self.digest.lock();
        let mut digest = *held;
        for (key, value) in batch.into_rows() {
            if let Some(old) = self.tree.get(&key).map_err(backend("reading a row"))? {
                digest = digest.wrapping_sub(weight(&key, &old));
            }
            match value {
                Some(value) => {
                    let value = self.sealer.seal(&key, &value).map_err(StoreError::Encode)?;
                    digest = digest.wrapping_add(weight(&key, &value));
                    sealed.insert(key, value);
                }
                None => sealed.remove(key),
            }
        }
        sealed.insert(&DIGEST_KEY, &digest.to_le_bytes());
        self.tree.apply_batch(sealed).map_err(backend("committing a batch"))?;
        *held = digest;
        Ok(())
    }

    fn clear(&self) -> Result<(), StoreError> {
        let mut digest = self.digest.lock();
        self.tree.clear().map_err(backend("clearing"))?;
        *digest = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values as they are: sealing is tested where it is done.
    struct Plain;

    impl ValueSealer for Plain {
        fn seal(&self, _: &[u8], plain: &[u8]) -> Result<Vec<u8>, dfs_common::Error> {
            Ok(plain.to_vec())
        }
        fn open(&self, _: &[u8], sealed: &[u8]) -> Result<Vec<u8>, dfs_common::Error> {
            Ok(sealed.to_vec())
        }
    }

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
        store.tree.remove(b"c").unwrap();
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
