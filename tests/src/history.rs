//! A log of fsynced appends whose fate can be checked: what was acknowledged must be there, in order, once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Not a divisor of the block size, so that records tear over blocks if anything can tear them.
pub(crate) const RECORD: usize = 1000;

/// Appends numbered records with fsync until told to stop; a failed append is tried again by number.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    errors: Arc<AtomicU64>,
    waits: Arc<Waits>,
    thread: Option<JoinHandle<()>>,
}

/// How long appends take.
#[derive(Debug)]
struct Waits {
    origin: Instant,
    longest_us: AtomicU64,
    /// Start of the append under way, in microseconds since `origin`; `NONE` between two.
    begun: AtomicU64,
}

const NONE: u64 = u64::MAX;

impl Waits {
    fn now_us(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(NONE - 1)
    }

    fn measure<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = self.now_us();
        self.begun.store(begun, Ordering::SeqCst);
        let result = work();
        self.longest_us.fetch_max(self.now_us() - begun, Ordering::SeqCst);
        self.begun.store(NONE, Ordering::SeqCst);
        result
    }
}

impl Appender {
    #[must_use]
    pub fn start(path: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (acknowledged, errors) = (Arc::default(), Arc::default());
        let waits = Arc::new(Waits {
            origin: Instant::now(),
            longest_us: AtomicU64::new(0),
            begun: AtomicU64::new(NONE),
        });
        let thread = {
            let (path, stop) = (path.to_path_buf(), Arc::clone(&stop));
            let (acknowledged, errors, waits) = (Arc::clone(&acknowledged), Arc::clone(&errors), Arc::clone(&waits));
            thread::spawn(move || append_until(&path, &stop, &acknowledged, &errors, &waits))
        };
        Self {
            path: path.to_path_buf(),
            stop,
            acknowledged,
            errors,
            waits,
            thread: Some(thread),
        }
    }

    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::SeqCst)
    }

    /// Longest time that one append with its fsync took, the one under way included.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let under_way = match self.waits.begun.load(Ordering::SeqCst) {
            NONE => 0,
            begun => self.waits.now_us().saturating_sub(begun),
        };
        Duration::from_micros(self.waits.longest_us.load(Ordering::SeqCst).max(under_way))
    }

    /// Forgets how long appends took so far.
    pub fn begin(&self) {
        self.waits.longest_us.store(0, Ordering::SeqCst);
    }

    /// Stops writing, without judging.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Panics unless all acknowledged records are in the file, in order and whole. A record may stand twice only if
    /// its first attempt was reported as failed.
    #[track_caller]
    pub fn check(&self) {
        if let Err(why) = self.verdict() {
            panic!("{why}");
        }
    }

    /// The same as a value. `Err`: what is wrong.
    ///
    /// # Errors
    /// See [`Self::check`].
    pub fn verdict(&self) -> Result<(), String> {
        let mut bytes = Vec::new();
        File::open(&self.path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(|e| format!("{}: {e}", self.path.display()))?;
        let (mut next, mut repeated) = (0_u64, 0_u64);
        for (at, chunk) in bytes.chunks(RECORD).enumerate() {
            if chunk == record(next) {
                next += 1;
            } else if next > 0 && chunk == record(next - 1) {
                repeated += 1;
            } else if next < self.acknowledged() {
                return Err(format!(
                    "record at {} is wrong, {} in all; {next} were right before it, {} acknowledged; the file is {} bytes long; {}; anew \
                     and past every cache: {}",
                    at * RECORD,
                    wrong_places(&bytes),
                    self.acknowledged(),
                    bytes.len(),
                    describe(chunk, next),
                    self.read_again(at, next)
                ));
            } else {
                // A torn end that nobody was told of is no loss.
                break;
            }
        }
        if next < self.acknowledged() {
            return Err(format!("{} acknowledged, {next} found", self.acknowledged()));
        }
        if repeated > self.errors() {
            return Err(format!("{repeated} records stand twice after {} errors", self.errors()));
        }
        Ok(())
    }
}

impl Appender {
    fn read_again(&self, at: usize, number: u64) -> String {
        let mut bytes = vec![0; RECORD];
        let read = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
            .open(&self.path)
            .and_then(|file| file.read_at(&mut bytes, (at * RECORD) as u64));
        match read {
            Ok(length) => describe(&bytes[..length], number),
            Err(error) => error.to_string(),
        }
    }
}

/// Places whose record is not that of their number, as ranges.
fn wrong_places(bytes: &[u8]) -> String {
    let is_wrong = |(at, chunk): &(usize, &[u8])| *chunk != record(*at as u64);
    let wrong: Vec<usize> = bytes
        .chunks(RECORD)
        .enumerate()
        .filter(is_wrong)
        .map(|(at, _)| at)
        .collect();
    let runs = wrong.chunk_by(|a, b| a + 1 == *b);
    let text: Vec<String> = runs.map(|run| format!("{}+{}", run[0], run.len())).collect();
    text.join(" ")
}

/// What stands where record `number` should, for whoever has to find out why.
fn describe(found: &[u8], number: u64) -> String {
    let near = number.saturating_sub(20)..number + 20;
    if let Some(other) = near.into_iter().find(|other| record(*other) == found) {
        return format!("record {other} stands there");
    }
    let wanted = record(number);
    let differs = |index: &usize| found.get(*index) != wanted.get(*index);
    let first = (0..RECORD).find(differs).unwrap_or(RECORD);
    let last = (0..RECORD).rev().find(differs).unwrap_or_default();
    let kind = if found.iter().all(|byte| *byte == 0) {
        "zero"
    } else {
        "other"
    };
    format!(
        "{} {kind} bytes, different from the {first}th to the {last}th",
        found.len()
    )
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.stop();
    }
}

fn append_until(path: &Path, stop: &AtomicBool, acknowledged: &AtomicU64, errors: &AtomicU64, waits: &Waits) {
    let mut file: Option<File> = None;
    while !stop.load(Ordering::SeqCst) {
        let record = record(acknowledged.load(Ordering::SeqCst));
        let result = waits.measure(|| append(&mut file, path, &record));
        if result.is_ok() {
            acknowledged.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(2));
        } else {
            file = None;
            errors.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn append(file: &mut Option<File>, path: &Path, record: &[u8]) -> io::Result<()> {
    if file.is_none() {
        // A failed append may have left a torn record: go back to the last whole one.
        if let Ok(meta) = fs::metadata(path) {
            let whole = meta.len() / RECORD as u64 * RECORD as u64;
            if whole != meta.len() {
                OpenOptions::new().write(true).open(path)?.set_len(whole)?;
            }
        }
        *file = Some(OpenOptions::new().create(true).append(true).open(path)?);
    }
    let file = file.as_mut().ok_or(io::ErrorKind::NotFound)?;
    file.write_all(record)?;
    file.sync_all()
}

/// Record `number`: its number, then bytes that depend on it.
fn record(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = number.to_le_bytes().to_vec();
    while bytes.len() < RECORD {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(RECORD);
    bytes
}
