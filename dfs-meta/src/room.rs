//! Room on the disk of a metadata server.
//!
//! A metadata server can not refuse what the group has committed: it has to log and to apply it. So
//! room is kept for what must go on when there is none left: deleting, administering, elections.
//! Three rules, from early to late:
//!
//! - The leader refuses what makes the file system larger as soon as its disk is
//!   [`RoomLeft::Short`].
//! - A file of its own, the ballast, holds room that nobody else can take. It is removed when the
//!   disk is full, and made again when there is room for it and as much again.
//! - Whoever writes when even that is used up waits, for as long as it takes, and goes on by
//!   itself. Log and snapshots wait first: the last bytes are for the store of the applied state,
//!   which can not go on after a write that failed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use dfs_common::wire::meta::DiskRoom;
use dfs_common::{DiskCall, Meaning, Scarce, errno};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate, statvfs};

const BALLAST: &str = "ballast";

/// What is kept is counted in units: this part of the disk, within bounds.
const UNIT_FRACTION: u64 = 64;
const UNIT_MIN_BYTES: u64 = 16 << 20;
const UNIT_MAX_BYTES: u64 = 64 << 20;

/// Units in the ballast, and units free beside it below which the disk is short.
const BALLAST_UNITS: u64 = 2;
const SHORT_UNITS: u64 = 2;

/// So much more than what makes it short again must be free before the ballast is made.
const AGAIN_UNITS: u64 = 1;

/// The applied state is not written below this.
const FLOOR_BYTES: u64 = 4 << 20;

/// Log and snapshots leave this much to the applied state.
const RESERVED_BYTES: u64 = 8 << 20;

/// The ballast is removed below this.
const BALLAST_GOES_BYTES: u64 = RESERVED_BYTES + (4 << 20);

/// A batch takes at most so many times its size there.
const STATE_TIMES: u64 = 2;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// How a disk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RoomLeft {
    /// Not even what must go on can be written.
    Out,
    /// What makes the file system larger is refused.
    Short,
    Ample,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    MakeBallast,
    RemoveBallast,
}

/// What is known of a disk.
#[derive(Clone, Copy, Debug)]
struct Look {
    total_bytes: u64,
    /// Without what only root may take.
    free_bytes: u64,
    has_ballast: bool,
    /// The next snapshot needs about this much.
    snapshot_bytes: u64,
}

impl Look {
    fn unit(self) -> u64 {
        (self.total_bytes / UNIT_FRACTION).clamp(UNIT_MIN_BYTES, UNIT_MAX_BYTES)
    }

    fn ballast(self) -> u64 {
        BALLAST_UNITS * self.unit()
    }

    /// With less free than this, the disk is short.
    fn kept(self) -> u64 {
        let missing = if self.has_ballast { 0 } else { self.ballast() };
        SHORT_UNITS * self.unit() + self.snapshot_bytes + missing
    }

    fn left(self) -> RoomLeft {
        // Not measured: nothing is known against it.
        if self.total_bytes == 0 || self.free_bytes >= self.kept() {
            RoomLeft::Ample
        } else if self.has_ballast || self.free_bytes > FLOOR_BYTES {
            RoomLeft::Short
        } else {
            RoomLeft::Out
        }
    }

    /// Somebody needs `wanted_bytes` free.
    fn step(self, wanted_bytes: u64) -> Step {
        if self.total_bytes == 0 {
            Step::Nothing
        } else if self.has_ballast && self.free_bytes <= BALLAST_GOES_BYTES.max(wanted_bytes) {
            Step::RemoveBallast
        } else if !self.has_ballast && self.free_bytes >= self.kept() + AGAIN_UNITS * self.unit() {
            Step::MakeBallast
        } else {
            Step::Nothing
        }
    }
}

/// The room on one disk; see the module. Every method may block on the disk.
#[derive(Debug)]
pub struct Room {
    directory: PathBuf,
    /// One at a time looks and acts.
    ballast: Mutex<Ballast>,
    total_bytes: AtomicU64,
    free_bytes: AtomicU64,
    kept_bytes: AtomicU64,
    left: Mutex<RoomLeft>,
    snapshot_bytes: AtomicU64,
    /// Logged since the last snapshot: the next one is at most larger by that.
    logged_bytes: AtomicU64,
    closing: AtomicBool,
}

#[derive(Debug)]
struct Ballast {
    path: PathBuf,
    is_there: bool,
}

impl Room {
    /// Of the disk under `directory`. Makes the ballast if there is room for it; gives it up if
    /// there is none.
    pub fn open(directory: &Path) -> Self {
        let path = directory.join(BALLAST);
        // A copied directory has a ballast without anything in it.
        let is_there = fs::metadata(&path).is_ok_and(|found| found.len() > 0 && found.blocks() * 512 >= found.len());
        if !is_there {
            let _ = fs::remove_file(&path);
        }
        let this = Self {
            directory: directory.to_owned(),
            ballast: Mutex::new(Ballast { path, is_there }),
            total_bytes: AtomicU64::new(0),
            free_bytes: AtomicU64::new(0),
            kept_bytes: AtomicU64::new(0),
            left: Mutex::new(RoomLeft::Ample),
            snapshot_bytes: AtomicU64::new(0),
            logged_bytes: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        };
        this.look();
        this
    }

    /// Whether a server would have to wait for room on this disk. Changes nothing there.
    pub fn is_out(directory: &Path) -> bool {
        let ballast = directory.join(BALLAST);
        statvfs(directory).is_ok_and(|found| found.f_bavail * found.f_frsize <= FLOOR_BYTES) && !ballast.exists()
    }

    /// Measures the disk, and makes or removes the ballast. A disk that can not be measured is as
    /// it was.
    pub fn look(&self) -> RoomLeft {
        self.look_for(0).left()
    }

    /// Whether the applied state can take a batch of so many bytes.
    pub fn has_for_state(&self, batch_bytes: u64) -> bool {
        let wanted = FLOOR_BYTES + STATE_TIMES * batch_bytes;
        let look = self.look_for(wanted);
        look.total_bytes == 0 || look.free_bytes > wanted
    }

    /// Whether something else than the applied state can take so many bytes.
    ///
    /// # Errors
    /// ENOSPC if not.
    pub fn check(&self, bytes: u64) -> io::Result<()> {
        match statvfs(&self.directory) {
            Ok(found) if found.f_bavail * found.f_frsize < bytes + RESERVED_BYTES => {
                Err(io::Error::from_raw_os_error(errno::ENOSPC))
            }
            _ => Ok(()),
        }
    }

    fn look_for(&self, wanted_bytes: u64) -> Look {
        let mut ballast = self.ballast.lock();
        let mut look = self.measure(&ballast);
        match look.step(wanted_bytes) {
            Step::Nothing => {}
            Step::MakeBallast => match make(&ballast.path, look.ballast()) {
                Ok(()) => ballast.is_there = true,
                Err(error) => {
                    tracing::debug!(%error, "no room is kept on this disk yet");
                    let _ = fs::remove_file(&ballast.path);
                }
            },
            Step::RemoveBallast => match fs::remove_file(&ballast.path) {
                Ok(()) => {
                    ballast.is_there = false;
                    tracing::warn!(
                        directory = %self.directory.display(),
                        "the disk is full: the room that was kept on it is given up, so that deleting goes on"
                    );
                }
                Err(error) => tracing::warn!(%error, "the room that was kept can not be given up"),
            },
        }
        look = self.measure(&ballast);
        drop(ballast);
        let left = look.left();
        self.kept_bytes.store(look.kept(), Ordering::Relaxed);
        let before = std::mem::replace(&mut *self.left.lock(), left);
        if before != left {
            let free_mib = look.free_bytes >> 20;
            match left {
                RoomLeft::Ample => tracing::info!(free_mib, "there is room on this server's disk again"),
                RoomLeft::Short => {
                    tracing::warn!(free_mib, directory = %self.directory.display(), "this server's disk is nearly full");
                }
                RoomLeft::Out => {
                    tracing::warn!(free_mib, directory = %self.directory.display(), "this server's disk is full: it waits for room");
                }
            }
        }
        look
    }

    fn measure(&self, ballast: &Ballast) -> Look {
        if let Ok(found) = statvfs(&self.directory) {
            self.total_bytes
                .store(found.f_blocks * found.f_frsize, Ordering::Relaxed);
            self.free_bytes
                .store(found.f_bavail * found.f_frsize, Ordering::Relaxed);
        }
        Look {
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
            free_bytes: self.free_bytes.load(Ordering::Relaxed),
            has_ballast: ballast.is_there,
            snapshot_bytes: self.snapshot_bytes.load(Ordering::Relaxed) + self.logged_bytes.load(Ordering::Relaxed),
        }
    }

    /// As it was when somebody looked last.
    pub fn left(&self) -> RoomLeft {
        *self.left.lock()
    }

    /// For people and for the other servers.
    pub fn told(&self) -> DiskRoom {
        DiskRoom {
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
            free_bytes: self.free_bytes.load(Ordering::Relaxed),
            kept_bytes: self.kept_bytes.load(Ordering::Relaxed),
        }
    }

    /// A snapshot had this size; there must be room for the next one.
    pub fn note_snapshot(&self, bytes: u64) {
        self.snapshot_bytes.store(bytes, Ordering::Relaxed);
        self.logged_bytes.store(0, Ordering::Relaxed);
    }

    /// So much was added to the log.
    pub fn note_logged(&self, bytes: u64) {
        self.logged_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Nobody waits for room any more: the server ends.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Makes a disk call again while there is no room for it, giving up the ballast first.
    pub fn patiently<T>(&self, call: DiskCall, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut pause = FIRST_PAUSE;
        loop {
            match attempt() {
                Err(error) if lacks_space(call, &error) && !self.is_closing() => {
                    self.look();
                    thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }
}

/// Whether this call failed for want of room.
pub fn lacks_space(call: DiskCall, error: &io::Error) -> bool {
    let meaning = error.raw_os_error().map(|number| errno::meaning(call, number));
    matches!(meaning, Some(Meaning::NotNow(Scarce::Space)))
}

/// A file that has its bytes, whatever the file system below thinks of reserving.
fn make(path: &Path, size_bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, size_bytes) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    let part = vec![0x5a; 1 << 20];
    for _ in 0..size_bytes >> 20 {
        file.write_all(&part)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn disk(total_mib: u64, free_kib: u64, has_ballast: bool) -> Look {
        Look {
            total_bytes: total_mib * MIB,
            free_bytes: free_kib << 10,
            has_ballast,
            snapshot_bytes: 0,
        }
    }

    #[test]
    fn growth_ends_first_then_the_ballast_goes_then_everybody_waits() {
        // Units of 20 MiB, and two of them in the ballast.
        let at = |free_mib: u64, has_ballast| {
            let look = disk(1_280, free_mib << 10, has_ballast);
            (look.left(), look.step(0))
        };
        assert_eq!(at(300, false), (RoomLeft::Ample, Step::MakeBallast));
        assert_eq!(at(260, true), (RoomLeft::Ample, Step::Nothing));
        assert_eq!(at(39, true), (RoomLeft::Short, Step::Nothing));
        assert_eq!(at(12, true), (RoomLeft::Short, Step::RemoveBallast));
        assert_eq!(at(44, false), (RoomLeft::Short, Step::Nothing));
        assert_eq!(at(4, false), (RoomLeft::Out, Step::Nothing));
        assert_eq!(at(99, false), (RoomLeft::Ample, Step::Nothing));
        assert_eq!(at(100, false), (RoomLeft::Ample, Step::MakeBallast));
    }

    #[test]
    fn no_step_undoes_the_one_before_on_a_disk_of_any_size() {
        for total_mib in [64, 100, 300, 1_000, 10_000, 1_000_000] {
            for part in 0..=1_000 {
                let look = disk(total_mib, total_mib * part * 1024 / 1_000, false);
                if look.step(0) == Step::MakeBallast {
                    let after = Look {
                        free_bytes: look.free_bytes - look.ballast(),
                        has_ballast: true,
                        ..look
                    };
                    assert_eq!(
                        (after.step(0), after.left()),
                        (Step::Nothing, RoomLeft::Ample),
                        "{look:?}"
                    );
                }
                let full = Look {
                    has_ballast: true,
                    ..look
                };
                if full.step(0) == Step::RemoveBallast {
                    let after = Look {
                        free_bytes: full.free_bytes + full.ballast(),
                        has_ballast: false,
                        ..full
                    };
                    assert_eq!(
                        (after.step(0), after.left()),
                        (Step::Nothing, RoomLeft::Short),
                        "{full:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_large_batch_of_the_state_takes_the_ballast() {
        let look = disk(1_280, 30 << 10, true);
        assert_eq!(look.step(29 * MIB), Step::Nothing);
        assert_eq!(look.step(30 * MIB), Step::RemoveBallast);
    }

    #[test]
    fn a_snapshot_must_fit() {
        let look = disk(10_000, 600 << 10, true);
        assert_eq!(look.left(), RoomLeft::Ample);
        let large = Look {
            snapshot_bytes: 500 * MIB,
            ..look
        };
        assert_eq!(large.left(), RoomLeft::Short);
    }

    #[test]
    fn who_waits_goes_on_or_ends() {
        let directory = tempfile::tempdir().unwrap();
        let room = Room::open(directory.path());
        let mut calls = 0;
        let done = room.patiently(DiskCall::Write, || {
            calls += 1;
            if calls < 4 {
                Err(io::Error::from_raw_os_error(errno::ENOSPC))
            } else {
                Ok(calls)
            }
        });
        assert_eq!(done.unwrap(), 4);
        let broken = room.patiently(DiskCall::Write, || {
            Err::<(), _>(io::Error::from_raw_os_error(errno::EIO))
        });
        assert!(broken.is_err());
        room.close();
        let full = || Err::<(), _>(io::Error::from_raw_os_error(errno::ENOSPC));
        assert!(room.patiently(DiskCall::Write, full).is_err());
    }
}
