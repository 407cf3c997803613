//! The real disk: a directory of a Linux file system.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use super::files::{OpenFiles, Segment};
use super::{Disk, DiskFile};

/// Buffers in one vectored write; the log uses three or four, the kernel takes 1024.
const MAX_PARTS: usize = 16;

#[derive(Debug)]
pub struct RealDisk {
    directory: PathBuf,
    /// The directory itself, open: its sync needs no descriptor when there is none.
    handle: File,
    files: Arc<OpenFiles>,
}

impl RealDisk {
    /// Makes the directory if it is missing.
    pub fn open(directory: impl Into<PathBuf>) -> io::Result<Self> {
        let directory = directory.into();
        std::fs::create_dir_all(&directory)?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent)?;
        }
        let handle = File::open(&directory)?;
        Ok(Self {
            directory,
            handle,
            files: Arc::default(),
        })
    }

    /// Has the kernel forget what it holds of these files, as far as that is on the medium.
    pub(crate) fn forget_cached(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let file = self.files.with_room(|| File::open(entry.path()))?;
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            }
        }
        Ok(())
    }

    pub(crate) fn remove_if_there(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Part of a file system that is left to whatever else lives there: a metadata server, logs, the operating system. Those
/// fare worse on a full disk than a storage node, which says ENOSPC and goes on.
const FLOOR_FRACTION: u64 = 20;
const FLOOR_MIN_BYTES: u64 = 128 << 20;
const FLOOR_MAX_BYTES: u64 = 4 << 30;

/// Bytes that may still be taken from the file system of `directory`.
pub(crate) fn usable_bytes(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    let total = stat.f_blocks.saturating_mul(stat.f_frsize);
    let floor = (total / FLOOR_FRACTION)
        .clamp(FLOOR_MIN_BYTES, FLOOR_MAX_BYTES)
        .min(total / 4);
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(floor))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Disk for RealDisk {
    fn create(&self, name: &str, size_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        if usable_bytes(&self.directory)? < size_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let path = self.path(name);
        let file = self.files.with_room(|| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).open(&path)
        })?;
        let reserved = reserve(&file, size_bytes).and_then(|()| self.handle.sync_all());
        if let Err(error) = reserved {
            // The first error is the one to report; a file left behind is found and reused by the next start.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok(Arc::new(RealFile(self.files.segment(path, Some(file)))))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(name);
        let file = self
            .files
            .with_room(|| OpenOptions::new().read(true).write(true).open(&path))?;
        Ok(Arc::new(RealFile(self.files.segment(path, Some(file)))))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.files
            .with_room(|| std::fs::read_dir(&self.directory))?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name))
    }

    fn replace(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let temporary = self.path(&format!("{name}.tmp"));
        let mut file = self.files.with_room(|| File::create(&temporary))?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()?;
        std::fs::rename(&temporary, self.path(name))?;
        self.handle.sync_all()
    }

    fn leave(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.files.with_room(|| File::create(self.path(name)))?;
        file.write_all(bytes)?;
        // Whether they succeed does not matter: who reads it next reads the same memory.
        let _ = file.sync_all();
        let _ = self.handle.sync_all();
        Ok(())
    }

    fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        self.files.with_room(|| std::fs::read(self.path(name)))
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

fn reserve(file: &File, size_bytes: u64) -> io::Result<()> {
    rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size_bytes)?;
    // Size and extents must be on the medium before fdatasync of the contents may be relied upon.
    file.sync_all()
}

#[derive(Debug)]
struct RealFile(Arc<Segment>);

impl DiskFile for RealFile {
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.0.write(|file| write_all_at(file, offset, parts))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read(|file| file.read_exact_at(into, offset))
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.0.read(|file| Ok(file.metadata()?.len()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn keep_open(&self, keep: bool) -> io::Result<()> {
        self.0.keep_open(keep)
    }
}

fn write_all_at(file: &File, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
    for parts in parts.chunks(MAX_PARTS) {
        let mut slices = [IoSlice::new(&[]); MAX_PARTS];
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        let mut left = &mut slices[..parts.len()];
        // A write may be cut short by a signal or a full disk; the next one then says which.
        while left.iter().any(|slice| !slice.is_empty()) {
            let written = match rustix::io::pwritev(file, left, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            offset += written as u64;
            IoSlice::advance_slices(&mut left, written);
        }
    }
    Ok(())
}
