//! Open directories: entries that were fetched a moment ago, and what their fsync has told.
//!
//! The kernel asks in pages of a few KiB, the cluster answers in hundreds of entries. The last
//! answer is kept for a moment, so that reading on, or seeking within it, asks nobody. Cookies are
//! stable and rise, so nothing is lost when it is thrown away.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_client::{Client, OpenDirectory};
use dfs_common::wire::namespace::{Attributes, DirectoryEntry, FileKind};
use dfs_common::{Error, ErrorCode, InodeId, Result};
use fuser::FileHandle;
use parking_lot::Mutex;

/// Entries asked for at a time: fills the kernel's usual 32 KiB, and is a small message.
const PAGE_ENTRIES: u32 = 512;

/// Entries asked for where nobody reads on: whoever seeks may go somewhere else next.
const SEEK_ENTRIES: u32 = 64;

/// How old attributes may be that `readdirplus` gives out. A listing reads on at once; a program that dawdles gets new ones.
const FRESH: Duration = Duration::from_millis(100);

/// Offsets of the entries that no server sends. Cookies of real ones are 3 or more.
pub(crate) const DOT: u64 = 1;
pub(crate) const DOT_DOT: u64 = 2;

/// Directories whose attributes are remembered until they are opened.
const MAX_SEEN: usize = 4_096;

#[derive(Debug, Default)]
pub(crate) struct Directories {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
    /// Attributes that the kernel was told last.
    seen: Mutex<HashMap<InodeId, Attributes>>,
}

#[derive(Debug)]
struct Open {
    inode: InodeId,
    directory: Arc<OpenDirectory>,
    window: Option<Window>,
    /// As they were before it was opened, for when it is removed.
    attributes: Option<Attributes>,
}

/// A directory that is gone has no entries any more, which is no error: readdir(3) ends at ENOENT.
fn ends_if_removed(error: Error) -> Error {
    if error.code == ErrorCode::StaleInode {
        Error::new(ErrorCode::NotFound, error.detail)
    } else {
        error
    }
}

/// What one answer had.
#[derive(Clone, Debug)]
struct Window {
    /// Cookie after which `entries` go on.
    after: u64,
    /// In order of their cookies.
    entries: Arc<[DirectoryEntry]>,
    /// Whether the directory ends there.
    end: bool,
    fetched: Instant,
}

impl Window {
    /// Where in it the reading goes on after `offset`; `None` if it has not what comes next.
    fn position(&self, offset: u64) -> Option<usize> {
        let next = self.entries.partition_point(|entry| entry.cookie <= offset);
        (offset >= self.after && (next < self.entries.len() || self.end)).then_some(next)
    }

    /// Whether `offset` is its last entry: what comes next was not asked for yet.
    fn ends_at(&self, offset: u64) -> bool {
        self.entries.last().is_some_and(|last| last.cookie == offset)
    }
}

/// Entries of one reading, ready to be put into the kernel's buffer.
#[derive(Debug)]
pub(crate) struct Listing {
    /// `.` and `..`, if the reading starts before them, with their offsets.
    pub(crate) dots: Vec<(InodeId, u64, &'static str)>,
    entries: Arc<[DirectoryEntry]>,
    next: usize,
}

impl Listing {
    /// Gives every entry to `put` until it says that the buffer is full.
    pub(crate) fn fill(&self, mut put: impl FnMut(u64, &[u8], &Attributes) -> bool) {
        for entry in &self.entries[self.next..] {
            if put(entry.cookie, entry.name.as_bytes(), &entry.attributes) {
                return;
            }
        }
    }
}

impl Directories {
    pub(crate) fn open(&self, client: &Client, inode: InodeId) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let directory = Arc::new(client.open_directory(inode));
        let recent = client.recent_directory(inode).map(|(attributes, _)| attributes);
        let attributes = recent.or_else(|| self.seen.lock().get(&inode).cloned());
        self.open.lock().insert(
            handle,
            Open {
                inode,
                directory,
                window: None,
                attributes,
            },
        );
        FileHandle(handle)
    }

    /// The kernel is told these attributes.
    pub(crate) fn note(&self, attributes: &Attributes) {
        if attributes.kind != FileKind::Directory {
            return;
        }
        let mut seen = self.seen.lock();
        if seen.len() >= MAX_SEEN {
            seen.clear();
        }
        seen.insert(attributes.inode, attributes.clone());
    }

    /// What a directory that was removed while it is open looks like: as it was, without links and
    /// entries.
    pub(crate) fn removed(&self, inode: InodeId) -> Option<Attributes> {
        let open = self.open.lock();
        let mut handles = open.values().filter(|open| open.inode == inode);
        let last = handles.find_map(|open| open.attributes.as_ref())?;
        Some(Attributes {
            nlink: 0,
            length_bytes: 0,
            ..last.clone()
        })
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
            dots.push((client.parent(inode).await.map_err(ends_if_removed)?, DOT_DOT, ".."));
        }
        // From the beginning it is always read anew: that is what rewinddir(3) promises.
        let after = if offset <= DOT_DOT { 0 } else { offset };
        let known = self.open.lock().get(&handle.0).and_then(|open| open.window.clone());
        if let Some(window) = &known
            && after != 0
            && window.fetched.elapsed() < FRESH
            && let Some(next) = window.position(after)
        {
            return Ok(Listing {
                dots,
                entries: Arc::clone(&window.entries),
                next,
            });
        }
        let near = |window: Window| window.position(after).is_some() || window.ends_at(after);
        let reads_on = after == 0 || known.is_some_and(near);
        let limit = if reads_on { PAGE_ENTRIES } else { SEEK_ENTRIES };
        let fetched = Instant::now();
        let (entries, end) = client
            .read_directory(inode, after, limit)
            .await
            .map_err(ends_if_removed)?;
        let entries: Arc<[DirectoryEntry]> = entries.into();
        if let Some(open) = self.open.lock().get_mut(&handle.0) {
            open.window = Some(Window {
                after,
                entries: Arc::clone(&entries),
                end,
                fetched,
            });
        }
        Ok(Listing { dots, entries, next: 0 })
    }
}
