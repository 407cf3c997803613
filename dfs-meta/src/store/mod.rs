//! Applied state on disk: an ordered map of rows behind a narrow trait.
//!
//! The store is a cache of what the log says and never the only copy of anything: whoever finds that it does not open,
//! or does not match the log, deletes it and rebuilds it from snapshot and log. So nothing here syncs on the path of a
//! command, and a commit only has to be atomic: after a crash either all rows of a batch are there or none, and batches
//! survive in order. [`keys`] has the keys of every kind of row.

mod compaction;
pub mod keys;
mod memory;
mod overlay;
mod sealed;
mod typed;
mod write_back;

use std::collections::BTreeMap;

use dfs_common::wire::meta::DiskRoom;
use dfs_common::{ClusterId, Error, ErrorCode};

pub use memory::MemoryStore;
pub use overlay::Overlay;
#[cfg(test)]
pub(crate) use sealed::redigest;
pub use sealed::{SledStore, ValueSealer};
pub use typed::{decode, encode, for_each_row, get};
pub use write_back::WriteBack;

/// A row: its key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Why the store did not do what it was asked. All of these mean: stop using this store, and rebuild it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the metadata store in {directory} does not open; delete the directory and it is rebuilt from the log")]
    Open {
        directory: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the metadata store failed while it was {doing}")]
    Backend {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another key, or bytes that changed under us.
    #[error("a row of the metadata store does not open (wrong key, or damaged); rebuild the store from the log")]
    Unsealable {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("a row of kind {kind:?} in the metadata store is not readable; rebuild the store from the log")]
    Row {
        kind: char,
        #[source]
        source: Error,
    },
    #[error("a row can not be encoded")]
    Encode(#[source] Error),
    #[error("the metadata store breaks a rule of its own: {0}; rebuild the store from the log")]
    Broken(String),
    #[error("the metadata store belongs to cluster {found}, this server to {wanted}")]
    OtherCluster { found: ClusterId, wanted: ClusterId },
    #[error("the metadata store has format {found}, this version reads {wanted}; rebuild it from the log")]
    OtherFormat { found: u32, wanted: u32 },
    #[error(
        "so much changed during the snapshot that its copies passed {limit_bytes} bytes; it is given up, try again later"
    )]
    SnapshotTooSlow { limit_bytes: usize },
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let mut detail = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            detail = format!("{detail}: {cause}");
            source = cause.source();
        }
        Self::new(ErrorCode::Internal, detail)
    }
}

/// Reading rows, from a store or through a batch that is not committed yet.
pub trait Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Rows with `from <= key < to` in order of keys, at most `limit`. Nothing if `to <= from`.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError>;
}

/// An ordered map with atomic batches.
pub trait Store: Rows + Send + Sync + 'static {
    /// All of the batch or nothing of it.
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;

    /// Removes every row. Not atomic: a crash leaves some.
    fn clear(&self) -> Result<(), StoreError>;

    /// Does one bounded piece of what gives room back to the disk, which stands like this. For the
    /// thread that commits.
    /// `true`: there is more to do.
    fn compact(&self, _disk: DiskRoom) -> Result<bool, StoreError> {
        Ok(false)
    }
}

/// Rows to write (`Some`) and to delete (`None`) together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Keys and values, those that later ones replaced as well.
    bytes: usize,
}

impl Batch {
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.rows.insert(key, Some(value));
    }

    pub fn delete(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.rows.insert(key, None);
    }

    /// What this batch says about a key: nothing, deleted, or a value.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.rows.get(key).map(Option::as_deref)
    }

    /// Later rows win.
    pub fn append(&mut self, later: Self) {
        self.bytes += later.bytes;
        // Not BTreeMap::append, which goes through all that is here already.
        self.rows.extend(later.rows);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// At least what its keys and values take.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// In order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.rows.iter().map(|(key, value)| (key.as_slice(), value.as_deref()))
    }

    fn range(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = (&Vec<u8>, &Option<Vec<u8>>)> {
        let empty = to <= from;
        self.rows
            .range::<[u8], _>((
                std::ops::Bound::Included(from),
                if empty {
                    std::ops::Bound::Included(from)
                } else {
                    std::ops::Bound::Excluded(to)
                },
            ))
            .filter(move |_| !empty)
    }

    fn into_rows(self) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        self.rows
    }
}
