//! What a cluster keeps of files that are gone: files are made, written and removed in rounds, and
//! after each one the memory of every process and the disk use of every server are measured, once
//! more after a restart.
//!
//! `cargo xtask long turnover [--files N]`, as root, on a machine with nothing else to do.
#![expect(clippy::print_stdout, clippy::expect_used, reason = "a tool that measures")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use dfs_tests::{DevCluster, shell};

const PROCESSES: [&str; 7] = [
    "meta-1",
    "meta-2",
    "meta-3",
    "storage-1",
    "storage-2",
    "storage-3",
    "mount",
];
const BLOCK: usize = 4096;
const CHUNK_BYTES: u64 = 4 << 20;
const HEALTHY: Duration = Duration::from_mins(5);

/// The first rounds fill caches; later ones are compared with this one.
const REFERENCE_ROUND: u64 = 2;

/// Growth that is allowed: a fifth, and what memory and disks vary by.
const ALLOWED_PERCENT: u64 = 120;
const ALLOWED_MIB: u64 = 24;

/// Makes and removes files in rounds, and measures what is left of them. Needs root.
#[derive(Parser)]
struct Options {
    /// In all rounds together.
    #[arg(long, default_value_t = 500_000)]
    files: u64,
    /// Of each file; one block is written to each.
    #[arg(long, default_value_t = 4)]
    chunks: u64,
    #[arg(long, default_value_t = 10)]
    rounds: u64,
    #[arg(long, default_value_t = 8)]
    threads: u64,
    /// Quiet after each round.
    #[arg(long, default_value_t = 45)]
    quiet_seconds: u64,
}

/// MiB by process, in the order of [`PROCESSES`].
struct Measured {
    memory: Vec<u64>,
    /// The mount has none.
    disk: Vec<u64>,
}

impl Measured {
    fn of(cluster: &DevCluster) -> Self {
        let memory = |name: &&str| {
            let status = fs::read_to_string(format!("/proc/{}/status", cluster.pid(name))).expect("it runs");
            let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
            let kib = line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
            kib.expect("a number") >> 10
        };
        let disk = |name: &&str| {
            let data = cluster.data.join("nodes").join(name).join("data");
            let used = shell(&format!("(du -sm {} 2>/dev/null || true) | cut -f1", data.display()));
            used.trim().parse().expect("a number")
        };
        Self {
            memory: PROCESSES.iter().map(memory).collect(),
            disk: PROCESSES[..6].iter().map(disk).collect(),
        }
    }

    fn row(&self, what: &str, took: Duration) -> String {
        let words = |figures: &[u64]| {
            let words: Vec<String> = figures.iter().map(u64::to_string).collect();
            words.join(" | ")
        };
        format!(
            "| {what} | {:.0} s | {} | {} |",
            took.as_secs_f64(),
            words(&self.memory),
            words(&self.disk)
        )
    }

    /// What has grown since.
    fn grown(&self, since: &Self) -> Vec<String> {
        let kinds = [
            ("memory", &since.memory, &self.memory),
            ("disk", &since.disk, &self.disk),
        ];
        let mut grown = Vec::new();
        for (kind, before, after) in kinds {
            for ((name, before), after) in PROCESSES.iter().zip(before).zip(after) {
                if *after > before * ALLOWED_PERCENT / 100 + ALLOWED_MIB {
                    grown.push(format!("{name}: {kind} grew from {before} to {after} MiB"));
                }
            }
        }
        grown
    }
}

fn make_and_remove(at: &Path, files: u64, chunks: u64, stamp: u64) {
    fs::create_dir(at).expect("a directory");
    let mut block = [7; BLOCK];
    for number in 0..files {
        let file = File::create(at.join(number.to_string())).expect("a file");
        for chunk in 0..chunks {
            block[..8].copy_from_slice(&(stamp + number * chunks + chunk).to_le_bytes());
            file.write_all_at(&block, chunk * CHUNK_BYTES).expect("a write");
        }
    }
    for number in 0..files {
        fs::remove_file(at.join(number.to_string())).expect("it was made");
    }
    fs::remove_dir(at).expect("it is empty");
}

fn main() -> ExitCode {
    let options = Options::parse();
    let cluster = DevCluster::up();
    let share = options.files / options.rounds / options.threads;
    println!(
        "{} files and {} chunks, {} rounds, {} threads; MiB of memory, then MiB of disk",
        share * options.rounds * options.threads,
        share * options.rounds * options.threads * options.chunks,
        options.rounds,
        options.threads
    );
    println!(
        "| | took | {} | {} |",
        PROCESSES.join(" | "),
        PROCESSES[..6].join(" | ")
    );
    println!("|{}", "---|".repeat(PROCESSES.len() + 8));
    println!("{}", Measured::of(&cluster).row("start", Duration::ZERO));
    let mut reference = None;
    let mut last = None;
    for round in 1..=options.rounds {
        let start = Instant::now();
        thread::scope(|scope| {
            for number in 0..options.threads {
                let at = cluster.mount.join(format!("round-{round}-{number}"));
                scope.spawn(move || make_and_remove(&at, share, options.chunks, round << 40 | number << 32));
            }
        });
        let took = start.elapsed();
        thread::sleep(Duration::from_secs(options.quiet_seconds));
        let measured = Measured::of(&cluster);
        println!("{}", measured.row(&format!("round {round}"), took));
        if round == REFERENCE_ROUND {
            reference = Some(measured);
        } else {
            last = Some(measured);
        }
    }
    let start = Instant::now();
    let _ = cluster.down().expect_ok("dev down");
    let _ = cluster.start_all().expect_ok("dev up");
    let _ = cluster.wait_healthy(HEALTHY);
    let restarted = Measured::of(&cluster);
    println!("{}", restarted.row("restart", start.elapsed()));
    cluster.verify_replicas();
    let Some(reference) = reference else {
        println!("too few rounds to compare");
        return ExitCode::FAILURE;
    };
    let grown: Vec<String> = last
        .iter()
        .chain([&restarted])
        .flat_map(|now| now.grown(&reference))
        .collect();
    for line in &grown {
        println!("{line}");
    }
    if grown.is_empty() {
        println!("passed: nothing has grown since round {REFERENCE_ROUND}");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
