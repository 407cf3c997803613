//! Those who use a cluster while something fails, and how long each had to wait.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

/// Not `fadvise`: that may wait until the kernel has run work of its own on every processor (`lru_add_drain_all`), and was seen
/// to take 3.9 s on a machine short of processors.
fn past_the_cache(path: &Path) -> io::Result<File> {
    let direct = OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(direct).open(path)
}

/// Between two operations: the measure should wait for the cluster, not the cluster for it.
const PACE: Duration = Duration::from_millis(5);

const BLOCK: usize = 64 << 10;
const BLOCKS: u64 = 64;

/// Does one thing again and again, until told to stop, and notes the longest time from one success to the next.
#[derive(Debug)]
pub struct Actor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    origin: Instant,
    /// Of the last success, in microseconds since `origin`.
    last: AtomicU64,
    longest_us: AtomicU64,
    done: AtomicU64,
    errors: Mutex<Vec<String>>,
}

impl Shared {
    fn now_us(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Actor {
    /// `act` gets the number of the attempt.
    pub fn start(mut act: impl FnMut(u64) -> io::Result<()> + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            origin: Instant::now(),
            last: AtomicU64::new(0),
            longest_us: AtomicU64::new(0),
            done: AtomicU64::new(0),
            errors: Mutex::default(),
        });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for attempt in 0.. {
                    if shared.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    match act(attempt) {
                        Ok(()) => {
                            let now = shared.now_us();
                            let before = shared.last.swap(now, Ordering::SeqCst);
                            shared.longest_us.fetch_max(now - before, Ordering::SeqCst);
                            shared.done.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(error) => {
                            let mut errors = shared.errors.lock().unwrap_or_else(PoisonError::into_inner);
                            errors.push(error.to_string());
                        }
                    }
                    thread::sleep(PACE);
                }
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Reads blocks of a file that is made for it, past every cache of the kernel, and looks at what it gets.
    ///
    /// # Errors
    /// When the file can not be prepared.
    pub fn reader(at: &Path) -> io::Result<Self> {
        let path = at.join("read");
        let block = |number: u64| vec![u8::try_from(number % 251).unwrap_or_default(); BLOCK];
        let mut file = File::create(&path)?;
        for number in 0..BLOCKS {
            file.write_all(&block(number))?;
        }
        file.sync_all()?;
        let file = past_the_cache(&path)?;
        Ok(Self::start(move |attempt| {
            let number = attempt.wrapping_mul(29) % BLOCKS;
            let mut got = vec![0; BLOCK];
            file.read_exact_at(&mut got, number * BLOCK as u64)?;
            if got == block(number) {
                Ok(())
            } else {
                Err(io::Error::other(format!("block {number} came back changed")))
            }
        }))
    }

    /// Reads the last kilobyte of a file that grows under another's hands, and counts the times at which it was not there yet although the
    /// file's length said so.
    #[must_use]
    pub fn follower(path: PathBuf, short: Arc<AtomicU64>) -> Self {
        Self::start(move |_| {
            let file = past_the_cache(&path)?;
            let at = file.metadata()?.len().saturating_sub(1_000);
            match file.read_exact_at(&mut [0; 1_000], at) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    short.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                }
                result => result,
            }
        })
    }

    /// Makes, asks for and removes files.
    #[must_use]
    pub fn metadata_user(at: PathBuf) -> Self {
        Self::start(move |attempt| {
            let path = at.join(format!("m{attempt}"));
            drop(File::create(&path)?);
            let _ = fs::metadata(&path)?;
            fs::remove_file(&path)
        })
    }

    /// Forgets what was.
    pub fn begin(&self) {
        self.shared.last.store(self.shared.now_us(), Ordering::SeqCst);
        self.shared.longest_us.store(0, Ordering::SeqCst);
    }

    /// Longest time from one success to the next since [`Self::begin`], the one that has not come yet included.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let waiting = self
            .shared
            .now_us()
            .saturating_sub(self.shared.last.load(Ordering::SeqCst));
        Duration::from_micros(self.shared.longest_us.load(Ordering::SeqCst).max(waiting))
    }

    #[must_use]
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        self.shared
            .errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
