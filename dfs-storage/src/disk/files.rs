//! Open files of a directory, within a bound: a store has a file for every 64 MiB, and a process has few descriptors.
//!
//! A file is opened when it is used. When too many are open, those that were not used for longest are closed. Invariant: a file is
//! open from its first write until a sync of it has succeeded. The kernel tells of a failed writeback through the open file, and
//! might forget it with the file.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Files that are kept open. A segment in use is a few milliseconds away when it is not.
const MOST_OPEN: usize = 256;

/// Of the descriptors that a process may have, the part that segments may take.
const PART_OF_LIMIT: u64 = 4;

/// Kept open whatever the limit is: the active segment, the one before, and one for readers.
const LEAST_OPEN: usize = 4;

/// Those of one directory.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    /// In the order in which they were opened or last passed over.
    open: Mutex<VecDeque<Weak<Segment>>>,
}

/// A file that is open when it has to be.
#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    files: Arc<OpenFiles>,
    file: Mutex<Option<Arc<File>>>,
    /// Since it was last passed over.
    used: AtomicBool,
    /// Writes that have begun, and those that have ended.
    begun: AtomicU64,
    ended: AtomicU64,
    kept: AtomicBool,
    /// Had ended when the last sync that succeeded began. If all that ever began had, the file holds nothing unsynced.
    synced: AtomicU64,
    /// A sync has succeeded, so nothing from before this process is unsynced either.
    ever_synced: AtomicBool,
}

/// As many as the limit allows now: it may be changed while the process runs.
fn most_open() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let part = limit.map_or(u64::MAX, |limit| limit / PART_OF_LIMIT);
    usize::try_from(part).unwrap_or(usize::MAX).clamp(LEAST_OPEN, MOST_OPEN)
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    errno == Some(Errno::MFILE.raw_os_error()) || errno == Some(Errno::NFILE.raw_os_error())
}

impl OpenFiles {
    /// Opens something; if there is no descriptor for it, after closing what can be closed.
    pub(super) fn with_room<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if is_out_of_descriptors(&error) => {
                self.close_down_to(0);
                open()
            }
            opened => opened,
        }
    }

    pub(super) fn segment(self: &Arc<Self>, path: PathBuf, file: Option<File>) -> Arc<Segment> {
        let is_open = file.is_some();
        let segment = Arc::new(Segment {
            path,
            files: Arc::clone(self),
            file: Mutex::new(file.map(Arc::new)),
            used: AtomicBool::new(true),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            ever_synced: AtomicBool::new(false),
            kept: AtomicBool::new(false),
        });
        if is_open {
            self.opened(&segment);
        }
        segment
    }

    fn opened(&self, segment: &Arc<Segment>) {
        self.open.lock().push_back(Arc::downgrade(segment));
        self.close_down_to(most_open());
    }

    /// Closes what was not used for longest and is synced, until no more than `most` are open, or none of them can be closed.
    fn close_down_to(&self, most: usize) {
        let mut open = self.open.lock();
        // Each is passed over once for having been used, and once for not being synced.
        let mut looks = 2 * open.len();
        while open.len() > most && looks > 0 {
            looks -= 1;
            let Some(weak) = open.pop_front() else {
                return;
            };
            let Some(segment) = weak.upgrade() else {
                continue;
            };
            if segment.used.swap(false, Ordering::Relaxed) && most > 0 || !segment.close() {
                open.push_back(weak);
            }
        }
    }

    /// How many are open.
    #[cfg(test)]
    fn count(&self) -> usize {
        self.open.lock().iter().filter(|weak| weak.strong_count() > 0).count()
    }
}

impl Segment {
    fn open(self: &Arc<Self>) -> io::Result<Arc<File>> {
        self.used.store(true, Ordering::Relaxed);
        if let Some(file) = &*self.file.lock() {
            return Ok(Arc::clone(file));
        }
        // Two may do this at the same time; one of the files is then closed again, and nothing was written through it.
        let opened = self
            .files
            .with_room(|| OpenOptions::new().read(true).write(true).open(&self.path))?;
        let file = {
            let mut file = self.file.lock();
            if let Some(file) = &*file {
                return Ok(Arc::clone(file));
            }
            let opened = Arc::new(opened);
            *file = Some(Arc::clone(&opened));
            opened
        };
        self.files.opened(self);
        Ok(file)
    }

    /// See [`super::DiskFile::keep_open`].
    pub(super) fn keep_open(self: &Arc<Self>, keep: bool) -> io::Result<()> {
        self.kept.store(keep, Ordering::Release);
        if keep {
            self.open()?;
        }
        Ok(())
    }

    /// Closes it, unless it is to stay open or has something that no sync covers.
    fn close(&self) -> bool {
        let mut file = self.file.lock();
        if self.kept.load(Ordering::Acquire)
            || self.begun.load(Ordering::Acquire) != self.synced.load(Ordering::Acquire)
        {
            return false;
        }
        *file = None;
        true
    }

    pub(super) fn read<T>(self: &Arc<Self>, read: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        read(&*self.open()?)
    }

    pub(super) fn write(self: &Arc<Self>, write: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let file = loop {
            let file = self.open()?;
            let open = self.file.lock();
            // It may have been closed in between. From here on it is not.
            if open.as_ref().is_some_and(|open| Arc::ptr_eq(open, &file)) {
                self.begun.fetch_add(1, Ordering::AcqRel);
                break file;
            }
        };
        let written = write(&file);
        self.ended.fetch_add(1, Ordering::AcqRel);
        written
    }

    /// Needs no descriptor when it covers nothing new: any error of a sync condemns a store, and a
    /// missing descriptor must not.
    pub(super) fn sync(self: &Arc<Self>) -> io::Result<()> {
        let ended = self.ended.load(Ordering::Acquire);
        if self.file.lock().is_none() && self.ever_synced.load(Ordering::Acquire) {
            // It was closed, so all that was ever written to it had been synced.
            return Ok(());
        }
        self.open()?.sync_data()?;
        self.synced.fetch_max(ended, Ordering::AcqRel);
        self.ever_synced.store(true, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(directory: &std::path::Path, files: &Arc<OpenFiles>, number: usize) -> Arc<Segment> {
        let path = directory.join(number.to_string());
        std::fs::write(&path, b"....").unwrap();
        files.segment(path, None)
    }

    fn write(segment: &Arc<Segment>, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        segment.write(|file| file.write_all_at(bytes, 0)).unwrap();
    }

    fn read(segment: &Arc<Segment>) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; 4];
        segment.read(|file| file.read_exact_at(&mut bytes, 0)).unwrap();
        bytes
    }

    #[test]
    fn no_more_are_open_than_may_be_and_all_can_be_used() {
        let directory = tempfile::tempdir().unwrap();
        let files = Arc::new(OpenFiles::default());
        let most = most_open();
        let segments: Vec<_> = (0..most + 50)
            .map(|number| make(directory.path(), &files, number))
            .collect();
        for _ in 0..2 {
            for segment in &segments {
                write(segment, b"once");
                segment.sync().unwrap();
                assert!(files.count() <= most);
            }
        }
        assert!(segments.iter().all(|segment| read(segment) == b"once"));
        assert!(files.count() <= most);
        drop(segments);
        assert_eq!(files.count(), 0);
    }

    #[test]
    fn what_is_not_synced_stays_open() {
        let directory = tempfile::tempdir().unwrap();
        let files = Arc::new(OpenFiles::default());
        let dirty = make(directory.path(), &files, 0);
        write(&dirty, b"news");
        let clean = make(directory.path(), &files, 1);
        assert_eq!(read(&clean), b"....");
        files.close_down_to(0);
        assert!(
            dirty.file.lock().is_some(),
            "its kernel's file knows of a failed writeback"
        );
        assert!(clean.file.lock().is_none());
        dirty.sync().unwrap();
        dirty.keep_open(true).unwrap();
        files.close_down_to(0);
        assert!(dirty.file.lock().is_some(), "it is to stay open");
        dirty.keep_open(false).unwrap();
        files.close_down_to(0);
        assert!(dirty.file.lock().is_none());
        // A sync that began before a write ended does not cover it.
        dirty
            .write(|file| {
                dirty.sync().unwrap();
                std::os::unix::fs::FileExt::write_all_at(file, b"late", 0)
            })
            .unwrap();
        files.close_down_to(0);
        assert!(dirty.file.lock().is_some());
        assert_eq!(read(&dirty), b"late");
    }

    #[test]
    fn a_sync_of_what_is_synced_needs_no_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let files = Arc::new(OpenFiles::default());
        let segment = make(directory.path(), &files, 0);
        // Whatever reason there is why it can not be opened.
        let make_unopenable = || std::fs::rename(directory.path().join("0"), directory.path().join("away")).unwrap();
        write(&segment, b"news");
        segment.sync().unwrap();
        files.close_down_to(0);
        make_unopenable();
        segment.sync().unwrap();
        // One that an earlier process may have written has to be opened.
        assert!(make(directory.path(), &files, 1).sync().is_ok());
        assert!(files.segment(directory.path().join("0"), None).sync().is_err());
    }

    #[test]
    fn a_missing_descriptor_is_got_by_closing_others() {
        let directory = tempfile::tempdir().unwrap();
        let files = Arc::new(OpenFiles::default());
        let segment = make(directory.path(), &files, 0);
        assert_eq!(read(&segment), b"....");
        let tried = std::cell::Cell::new(0);
        let opened = files.with_room(|| {
            tried.set(tried.get() + 1);
            match tried.get() {
                1 => Err(io::Error::from(rustix::io::Errno::MFILE)),
                _ => Ok("open"),
            }
        });
        assert_eq!((opened.unwrap(), tried.get()), ("open", 2));
        assert!(segment.file.lock().is_none());
        assert_eq!(read(&segment), b"....");
    }
}
