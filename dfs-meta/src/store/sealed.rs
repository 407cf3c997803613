//! The store on disk: sled, with every value sealed and its key as associated data, so that a row moved to another key
//! does not open.
//!
//! sled 0.34 keeps batches atomic and in order over a crash, but its flush does not make the file's size durable and its
//! recovery may panic on damage. Neither matters here: whatever is missing or broken is rebuilt from the log.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::{Batch, Row, Rows, Store, StoreError};

/// Memory for sled's page cache.
const CACHE_BYTES: u64 = 128 << 20;

/// How often sled writes out what it has, in the background. Seldom: it shares the disk with the log, and what is lost
/// is replayed.
const FLUSH_EVERY_MS: u64 = 2_000;

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
            Ok::<_, sled::Error>((database, tree))
        }));
        match opened {
            Ok(Ok((database, tree))) => Ok(Self {
                tree,
                database,
                sealer: Box::new(sealer),
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
        for (key, value) in batch.into_rows() {
            match value {
                Some(value) => {
                    let value = self.sealer.seal(&key, &value).map_err(StoreError::Encode)?;
                    sealed.insert(key, value);
                }
                None => sealed.remove(key),
            }
        }
        self.tree.apply_batch(sealed).map_err(backend("committing a batch"))
    }

    fn clear(&self) -> Result<(), StoreError> {
        self.tree.clear().map_err(backend("clearing"))
    }
}
