//! Overwrites in place, small appends that share blocks, and fsync by whoever wrote or did not, while power is cut.
//!
//! `cell` says what is written, `judge` what may be read, `tally` what came of it: all three are pure. `driver` draws what happens to one
//! file and has it done by processes of `hand`; `signals` is how they learn of power cuts and dead mounts.

pub mod cell;
pub mod driver;
pub mod hand;
pub mod judge;
#[cfg(test)]
mod judge_tests;
pub mod signals;
pub mod tally;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use cell::Shape;
use driver::{Driver, Pattern, Work};
use signals::Signals;
use tally::Tally;

pub use driver::{DOOMED, MOUNTS};

use crate::host_cluster::HostCluster;

/// Cells, bytes each, and which comes next: whole blocks; eight to a block; across blocks; a log of small records; a log of larger ones.
const FILES: [(usize, usize, Pattern); 5] = [
    (6, 4096, Pattern::Hot),
    (16, 512, Pattern::Hot),
    (12, 1000, Pattern::Hot),
    (120, 104, Pattern::Log),
    (24, 1000, Pattern::Log),
];

/// How many of the files take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    All,
    /// One of them, by a number of any size: nobody else's sync makes durable what its own did not.
    One(u64),
}

impl Files {
    fn takes(self, file: usize) -> bool {
        match self {
            Self::All => true,
            Self::One(number) => number % FILES.len() as u64 == file as u64,
        }
    }
}

/// All files of one load, each with a thread and four processes of its own.
#[derive(Debug)]
pub struct Overwrites {
    pub signals: Arc<Signals>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Overwrites {
    /// The cluster has [`MOUNTS`] mounts, and the last of them is nobody else's.
    #[must_use]
    pub fn start(cluster: &HostCluster, seed: u64, tag: &str, files: Files) -> Self {
        let signals = Arc::new(Signals::default());
        let directories: Vec<PathBuf> = cluster
            .mount_points()
            .iter()
            .map(|mount| mount.join(format!("overwrites{tag}")))
            .collect();
        fs::create_dir(&directories[0]).expect("a fresh directory");
        let start = |(number, (cells, cell_bytes, pattern)): (usize, &(usize, usize, Pattern))| {
            let work = Work {
                name: format!("cells-{number}"),
                shape: Shape {
                    file: number as u32 + 1,
                    cells: *cells,
                    cell_bytes: *cell_bytes,
                },
                pattern: *pattern,
                seed: seed ^ (number as u64 + 1) << 40,
                log: cluster.log(&format!("overwrites{tag}-{number}")),
            };
            let driver = Driver::new(work, &directories, Arc::clone(&signals));
            thread::spawn(move || driver.run())
        };
        let taken = FILES.iter().enumerate().filter(|(number, _)| files.takes(*number));
        let threads = taken.map(start).collect();
        Self { signals, threads }
    }

    /// Stops, looks at everything through every mount, and says what was found.
    #[must_use]
    pub fn finish(mut self) -> Tally {
        self.signals.stop();
        let mut tally = Tally::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(found) => tally.add(found),
                Err(_) => tally.failed("a thread died".to_owned()),
            }
        }
        tally
    }
}

impl Drop for Overwrites {
    fn drop(&mut self) {
        self.signals.stop();
    }
}
