//! Open directories: entries that were fetched but did not fit into the kernel's buffer, and what their fsync has told.
//!
//! The kernel asks in pages of a few KiB, the cluster answers in hundreds of entries. What is left over waits here for
//! the next call at exactly the place where it goes on. Cookies are stable, so nothing is lost when it is thrown away.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_client::{Client, OpenDirectory};
use dfs_common::wire::namespace::{Attributes, DirectoryEntry};
use dfs_common::{Error, ErrorCode, InodeId, Result};
use fuser::FileHandle;
use parking_lot::Mutex;

/// Entries asked for at a time: fills the kernel's usual 32 KiB, and is a small message.
const PAGE_ENTRIES: u32 = 512;

/// How old attributes may be that `readdirplus` gives out. A listing reads on at once; a program that dawdles gets new ones.
const FRESH: Duration = Duration::from_millis(100);

/// Offsets of the entries that no server sends. Cookies of real ones are 3 or more.
pub(crate) const DOT: u64 = 1;
pub(crate) const DOT_DOT: u64 = 2;

#[derive(Debug, Default)]
pub(crate) struct Directories {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

#[derive(Debug)]
struct Open {
    directory: Arc<OpenDirectory>,
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    /// Cookie after which `entries` go on.
    after: u64,
    entries: VecDeque<DirectoryEntry>,
    end: bool,
    fetched: Instant,
}

/// Entries of one reading, ready to be put into the kernel's buffer.
#[derive(Debug)]
pub(crate) struct Listing {
    /// `.` and `..`, if the reading starts before them, with their offsets.
    pub(crate) dots: Vec<(InodeId, u64, &'static str)>,
    after: u64,
    entries: VecDeque<DirectoryEntry>,
    end: bool,
    fetched: Instant,
}

impl Listing {
    /// Gives every entry to `put` until it says that the buffer is full.
    pub(crate) fn fill(&mut self, mut put: impl FnMut(u64, &[u8], &Attributes) -> bool) {
        while let Some(entry) = self.entries.front() {
            if put(entry.cookie, entry.name.as_bytes(), &entry.attributes) {
                return;
            }
            self.after = entry.cookie;
            self.entries.pop_front();
        }
    }
}

impl Directories {
    pub(crate) fn open(&self, client: &Client, inode: InodeId) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let directory = Arc::new(client.open_directory(inode));
        self.open.lock().insert(handle, Open { directory, rest: None });
        FileHandle(handle)
    }

    pub(crate) async fn fsync(&self, client: &Client, handle: FileHandle) -> Result<()> {
        let known = self.open.lock().get(&handle.0).map(|open| Arc::clone(&open.directory));
        let directory = known.ok_or_else(|| {
            let detail = format!("directory handle {} is not open", handle.0);
            Error::new(ErrorCode::BadHandle, detail)
        })?;
        client.fsync_directory(&directory).await
    }

    pub(crate) fn close(&self, handle: FileHandle) {
        self.open.lock().remove(&handle.0);
    }

    /// What comes after `offset`.
    pub(crate) async fn list(
        &self,
        client: &Client,
        inode: InodeId,
        handle: FileHandle,
        offset: u64,
    ) -> Result<Listing> {
        let mut dots = Vec::new();
        if offset < DOT {
            dots.push((inode, DOT, "."));
        }
        if offset < DOT_DOT {
            dots.push((client.parent(inode).await?, DOT_DOT, ".."));
        }
        let after = if offset <= DOT_DOT { 0 } else { offset };
        let rest = self.open.lock().get_mut(&handle.0).and_then(|open| open.rest.take());
        if let Some(rest) = rest.filter(|rest| rest.after == after && after != 0 && rest.fetched.elapsed() < FRESH)
            && (rest.end || !rest.entries.is_empty())
        {
            return Ok(Listing {
                dots,
                after,
                entries: rest.entries,
                end: rest.end,
                fetched: rest.fetched,
            });
        }
        let fetched = Instant::now();
        let (entries, end) = client.read_directory(inode, after, PAGE_ENTRIES).await?;
        Ok(Listing {
            dots,
            after,
            entries: entries.into(),
            end,
            fetched,
        })
    }

    /// Keeps what did not fit.
    pub(crate) fn keep(&self, handle: FileHandle, listing: Listing) {
        let rest = Rest {
            after: listing.after,
            entries: listing.entries,
            end: listing.end,
            fetched: listing.fetched,
        };
        if let Some(open) = self.open.lock().get_mut(&handle.0) {
            open.rest = Some(rest);
        }
    }
}
