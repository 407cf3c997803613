//! What every kind of load has: a stop, a clock, and what its user felt.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Errors that are kept in words.
const EXAMPLES: usize = 8;

/// Shared by the threads of one load.
#[derive(Debug)]
pub struct Felt {
    pub began: Instant,
    stop: AtomicBool,
    done: AtomicU64,
    errors: AtomicU64,
    longest_us: AtomicU64,
    examples: Mutex<Vec<String>>,
    violations: Mutex<Vec<String>>,
}

impl Felt {
    #[must_use]
    pub fn new(began: Instant) -> Self {
        Self {
            began,
            stop: AtomicBool::new(false),
            done: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            longest_us: AtomicU64::new(0),
            examples: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// An operation is over.
    pub fn note<T>(&self, what: impl FnOnce() -> String, started: Instant, result: &io::Result<T>) {
        let took = started.elapsed();
        self.longest_us
            .fetch_max(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
        match result {
            Ok(_) => {
                self.done.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                self.errors.fetch_add(1, Ordering::SeqCst);
                let mut examples = self.examples.lock().expect("no panic under it");
                if examples.len() < EXAMPLES {
                    examples.push(format!(
                        "at {:.1} s, after {took:.1?}: {}: {error}",
                        self.began.elapsed().as_secs_f64(),
                        what()
                    ));
                }
            }
        }
    }

    /// Something that must never be.
    pub fn violation(&self, what: impl std::fmt::Display) {
        let at = self.began.elapsed().as_secs_f64();
        self.violations
            .lock()
            .expect("no panic under it")
            .push(format!("at {at:.1} s: {what}"));
    }

    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().expect("no panic under it").clone()
    }

    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::SeqCst))
    }

    #[must_use]
    pub fn examples(&self) -> Vec<String> {
        self.examples.lock().expect("no panic under it").clone()
    }
}
