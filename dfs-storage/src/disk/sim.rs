//! A disk in memory for tests: what is there now, what a power cut would leave, and faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile};

/// Smallest unit that a medium writes whole.
const SECTOR_BYTES: usize = 512;

/// What a crash leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// kill -9: all that was written, the page cache lives on.
    Kill,
    /// Power cut: only what was synced.
    Power,
    /// Power cut: what was synced, and a seeded half of the other sectors.
    Torn(u64),
}

/// An operation that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Write,
    Read,
    Sync,
    Replace,
}

/// What a disk does wrong without saying so, or once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// A write is acknowledged and never done.
    LostWrite,
    /// A write goes to another place of its file, this many sectors on.
    Misdirected(usize),
    /// The operation fails once, with this number of Linux. After a failed sync the kernel believes its pages to be clean,
    /// as Linux does.
    FailsOnce(Operation, i32),
}

#[derive(Clone, Default)]
struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Contents>,
    /// Operations that change something, so far.
    steps: u64,
    crash_at: Option<u64>,
    fault: Option<(Operation, u64, i32)>,
    capacity_bytes: Option<u64>,
    /// What goes wrong, after so many more operations of its kind.
    mishap: Option<(Mishap, u64)>,
    /// Mishaps that came to pass.
    mishaps: u64,
    /// Failures of writes and syncs that were reported.
    failures: u64,
}

impl Inner {
    fn step(&mut self, operation: Operation) -> io::Result<()> {
        if let Some((which, left, errno)) = &mut self.fault
            && *which == operation
        {
            if *left == 0 {
                return Err(io::Error::from_raw_os_error(*errno));
            }
            *left -= 1;
        }
        if operation == Operation::Read {
            return Ok(());
        }
        if self.crash_at.is_some_and(|at| self.steps >= at) {
            return Err(io::Error::other("the machine is down"));
        }
        self.steps += 1;
        Ok(())
    }

    /// Whether the mishap that is due for `operation` happens now.
    fn mishap(&mut self, operation: Operation) -> Option<Mishap> {
        let (mishap, left) = self.mishap.as_mut()?;
        let its = match mishap {
            Mishap::LostWrite | Mishap::Misdirected(_) => Operation::Write,
            Mishap::FailsOnce(operation, _) => *operation,
        };
        if its != operation {
            return None;
        }
        if *left > 0 {
            *left -= 1;
            return None;
        }
        self.mishaps += 1;
        if matches!(operation, Operation::Write | Operation::Sync) && matches!(mishap, Mishap::FailsOnce(..)) {
            self.failures += 1;
        }
        self.mishap.take().map(|(mishap, _)| mishap)
    }

    fn contents(&mut self, name: &str) -> io::Result<&mut Contents> {
        self.files.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Cheap to clone; clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimDisk").finish_non_exhaustive()
    }
}

impl SimDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// Operations that changed something, so far.
    pub fn steps(&self) -> u64 {
        self.inner.lock().steps
    }

    /// The machine goes down after `steps` such operations; a write at that moment gets half through.
    pub fn crash_at(&self, steps: u64) {
        self.inner.lock().crash_at = Some(steps);
    }

    /// `operation` fails with this number of Linux from its `after`-th next use on, until [`Self::heal`].
    pub fn fail(&self, operation: Operation, after: u64, errno: i32) {
        self.inner.lock().fault = Some((operation, after, errno));
    }

    pub fn heal(&self) {
        self.inner.lock().fault = None;
    }

    /// `mishap` happens at the `after`-th next operation of its kind, once.
    pub fn spoil(&self, mishap: Mishap, after: u64) {
        self.inner.lock().mishap = Some((mishap, after));
    }

    /// Mishaps that came to pass.
    pub fn mishaps(&self) -> u64 {
        self.inner.lock().mishaps
    }

    /// Failures of writes and syncs that this disk reported.
    pub fn failures(&self) -> u64 {
        self.inner.lock().failures
    }

    /// Creating files beyond this is `StorageFull`.
    pub fn limit(&self, bytes: u64) {
        self.inner.lock().capacity_bytes = Some(bytes);
    }

    /// Flips bits of a stored byte, on the medium and in memory.
    pub fn rot(&self, name: &str, offset: usize, mask: u8) {
        const SECTOR: usize = 512;
        if let Some(contents) = self.inner.lock().files.get_mut(name) {
            let sector = offset / SECTOR * SECTOR..(offset / SECTOR + 1) * SECTOR;
            // It is the medium that rots: what has not been written to it yet is read from memory.
            let synced = contents.live.get(sector.clone()) == contents.durable.get(sector);
            if let Some(durable) = contents.durable.get_mut(offset) {
                *durable ^= mask;
            }
            if let Some(live) = contents.live.get_mut(offset).filter(|_| synced) {
                *live ^= mask;
            }
        }
    }

    /// Name and size of every file.
    pub fn files(&self) -> Vec<(String, usize)> {
        let inner = self.inner.lock();
        inner
            .files
            .iter()
            .map(|(name, file)| (name.clone(), file.live.len()))
            .collect()
    }

    /// Another disk that holds what a crash now would leave.
    #[must_use]
    pub fn image(&self, image: Image) -> Self {
        let mut files = self.inner.lock().files.clone();
        let mut random = match image {
            Image::Torn(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            Image::Kill | Image::Power => 1,
        };
        for contents in files.values_mut() {
            match image {
                Image::Kill => contents.durable.clone_from(&contents.live),
                Image::Power => {}
                Image::Torn(_) => {
                    // A file that was left without a sync has nothing on the medium yet.
                    let size = contents.live.len().max(contents.durable.len());
                    contents.durable.resize(size, 0);
                    for &sector in &contents.dirty {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        if random & 1 == 1 {
                            let range = sector * SECTOR_BYTES..((sector + 1) * SECTOR_BYTES).min(contents.live.len());
                            contents.durable[range.clone()].copy_from_slice(&contents.live[range]);
                        }
                    }
                }
            }
            contents.live.clone_from(&contents.durable);
            contents.dirty.clear();
        }
        Self {
            inner: Arc::new(Mutex::new(Inner {
                files,
                ..Inner::default()
            })),
        }
    }
}

impl Disk for SimDisk {
    fn create(&self, name: &str, size_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.inner.lock();
        inner.step(Operation::Create)?;
        let used: u64 = inner.files.values().map(|file| file.live.len() as u64).sum();
        if inner
            .capacity_bytes
            .is_some_and(|capacity| used + size_bytes > capacity)
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let contents = Contents {
            live: vec![0; size_bytes as usize],
            durable: vec![0; size_bytes as usize],
            dirty: BTreeSet::new(),
        };
        inner.files.insert(name.to_owned(), contents);
        drop(inner);
        self.open(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.inner.lock().contents(name)?;
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            name: name.to_owned(),
        }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner.lock().files.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner
            .files
            .remove(name)
            .map(drop)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn replace(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.step(Operation::Replace)?;
        let bytes = parts.concat();
        let contents = Contents {
            live: bytes.clone(),
            durable: bytes,
            dirty: BTreeSet::new(),
        };
        inner.files.insert(name.to_owned(), contents);
        Ok(())
    }

    fn leave(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if inner.crash_at.is_some_and(|at| inner.steps >= at) {
            return Err(io::Error::other("the machine is down"));
        }
        let contents = Contents {
            live: bytes.to_vec(),
            durable: Vec::new(),
            dirty: (0..bytes.len().div_ceil(SECTOR_BYTES)).collect(),
        };
        inner.files.insert(name.to_owned(), contents);
        Ok(())
    }

    fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut inner = self.inner.lock();
        Ok(inner.contents(name)?.live.clone())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    name: String,
}

impl DiskFile for SimFile {
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut inner = self.disk.inner.lock();
        let mut bytes = parts.concat();
        let mut offset = offset;
        match inner.mishap(Operation::Write) {
            Some(Mishap::LostWrite) => return Ok(()),
            Some(Mishap::FailsOnce(_, errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Mishap::Misdirected(sectors)) => {
                let size = inner.contents(&self.name)?.live.len();
                offset = ((offset as usize + sectors * SECTOR_BYTES) % size.max(1)) as u64;
                bytes.truncate(size - offset as usize);
            }
            None => {}
        }
        let result = inner.step(Operation::Write);
        if result.is_err() {
            if inner.crash_at.is_none_or(|at| inner.steps != at) {
                return result;
            }
            // The first one to meet the crash is cut in half.
            inner.steps += 1;
            bytes.truncate(bytes.len() / 2);
        }
        let contents = inner.contents(&self.name)?;
        let start = offset as usize;
        let into = contents
            .live
            .get_mut(start..start + bytes.len())
            .ok_or(io::ErrorKind::InvalidInput)?;
        into.copy_from_slice(&bytes);
        if !bytes.is_empty() {
            contents
                .dirty
                .extend(start / SECTOR_BYTES..=(start + bytes.len() - 1) / SECTOR_BYTES);
        }
        result
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut inner = self.disk.inner.lock();
        if let Some(Mishap::FailsOnce(_, errno)) = inner.mishap(Operation::Read) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        inner.step(Operation::Read)?;
        let contents = inner.contents(&self.name)?;
        let start = offset as usize;
        let from = contents
            .live
            .get(start..start + into.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.inner.lock().contents(&self.name)?.live.len() as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.disk.inner.lock();
        if let Some(Mishap::FailsOnce(_, errno)) = inner.mishap(Operation::Sync) {
            inner.contents(&self.name)?.dirty.clear();
            return Err(io::Error::from_raw_os_error(errno));
        }
        inner.step(Operation::Sync)?;
        let contents = inner.contents(&self.name)?;
        for &sector in &contents.dirty {
            let range = sector * SECTOR_BYTES..((sector + 1) * SECTOR_BYTES).min(contents.live.len());
            contents.durable[range.clone()].copy_from_slice(&contents.live[range]);
        }
        contents.dirty.clear();
        Ok(())
    }
}
