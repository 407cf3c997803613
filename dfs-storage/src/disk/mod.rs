//! The disk as the block log sees it: one directory of fixed-size segments and a few small files.
//!
//! Narrow on purpose, so that a simulated disk (live, durable and torn images, injected faults) can stand in for the
//! real one in every test. What the log assumes of a disk is what is written here, and no more:
//! a write is visible to every later read at once; it survives the process at once; it survives a power cut after
//! [`Disk::sync_data`] of its file returned `Ok`, until then any subset of its 512-byte sectors may; a file's name survives after
//! [`Disk::sync_directory`]; a failed sync says nothing about what is on the medium and is never repeated.

mod files;
mod real;
pub mod sim;

use std::io;
use std::sync::Arc;

use dfs_common::{DiskCall, Meaning, Scarce};

pub use real::RealDisk;
pub(crate) use real::usable_bytes;
pub use sim::SimDisk;

/// A directory on a disk. Calls block; every one may be made from any thread.
pub trait Disk: Send + Sync + 'static {
    /// Makes file `name` of `size_bytes` zeros with all its space reserved, or fails with nothing left behind. Nothing is written yet: the
    /// first sync of each part also commits its extents.
    ///
    /// # Errors
    /// See [`meaning`]: after most the disk is still to be trusted.
    fn create(&self, name: &str, size_bytes: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Replaces (or makes) `name` by `parts`, all or nothing: temporary file, sync, rename, sync of the directory.
    fn replace(&self, name: &str, parts: &[&[u8]]) -> io::Result<()>;
    /// Makes `name` as far as it still goes: durable or not, for a later start on this very machine. For a disk that fails.
    fn leave(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// The whole of a file.
    fn read_file(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Makes created and removed names durable.
    fn sync_directory(&self) -> io::Result<()>;
}

/// An open file of a [`Disk`].
pub trait DiskFile: Send + Sync {
    /// Writes all of `parts`, one after the other, at `offset`; never beyond the size the file was made with.
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;
    /// Fills `into`; a file that ends before that is `UnexpectedEof`.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    fn size_bytes(&self) -> io::Result<u64>;
    fn sync_data(&self) -> io::Result<()>;
    /// Whether it stays open until this is called again: what is written to it then needs nothing that may have run out.
    fn keep_open(&self, _keep: bool) -> io::Result<()> {
        Ok(())
    }
}

/// What an error of a call of this kind says about the disk.
pub(crate) fn meaning(call: DiskCall, error: &io::Error) -> Meaning {
    match error.raw_os_error() {
        Some(errno) => dfs_common::errno::meaning(call, errno),
        // Of this crate's own making.
        None if error.kind() == io::ErrorKind::StorageFull && call != DiskCall::Sync => Meaning::NotNow(Scarce::Space),
        None => Meaning::Broken,
    }
}
