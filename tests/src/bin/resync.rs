//! What a node with an empty disk costs the others: 2 GiB on the cluster, one node's disk emptied, its return measured, with a client that
//! appends and syncs, one that writes and syncs single blocks, and one that reads blocks past every cache, before and meanwhile.
//!
//! `cargo run --release -p dfs-tests --bin resync [MIB]`, as root, on a machine with nothing else to do.
#![expect(clippy::print_stdout, clippy::expect_used, reason = "a tool that measures")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use dfs_tests::DevCluster;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 4096;

/// Before each operation: a client that asks as fast as it can measures nothing but itself.
const PACE: Duration = Duration::from_millis(2);

/// What the load left to the kernel and to the stores is done by then.
const SETTLE: Duration = Duration::from_secs(15);

const IDLE: Duration = Duration::from_secs(20);
const HEALTHY: Duration = Duration::from_mins(5);
const O_DIRECT: i32 = 0o40_000;

/// What a node with an empty disk costs the others. Needs root.
#[derive(Parser)]
struct Options {
    /// How much is on the cluster.
    #[arg(default_value_t = 2_048)]
    mib: u64,
}

/// A buffer whose place in memory suits `O_DIRECT`.
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// Does it until told to stop; how long each took.
fn again_and_again(stop: &AtomicBool, mut act: impl FnMut(u64)) -> Vec<Duration> {
    let mut took = Vec::new();
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep(PACE);
        let start = Instant::now();
        act(turn);
        took.push(start.elapsed());
    }
    took.sort_unstable();
    took
}

fn load(at: &Path, stop: &AtomicBool, until: impl FnOnce()) -> Vec<(&'static str, Vec<Duration>)> {
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(at.join("log"))
        .expect("a file");
    let blocks = File::options()
        .write(true)
        .open(at.join("blocks"))
        .expect("it was made");
    let read = File::options()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(at.join("blocks"))
        .expect("it was made");
    stop.store(false, Ordering::Relaxed);
    thread::scope(|scope| {
        let append = scope.spawn(|| {
            again_and_again(stop, |_| {
                log.write_all(&[7; 1000])
                    .and_then(|()| log.sync_data())
                    .expect("an append");
            })
        });
        let write = scope.spawn(|| {
            again_and_again(stop, |turn| {
                let place = turn.wrapping_mul(2_654_435_761) % BLOCKS;
                blocks
                    .write_all_at(&[turn as u8; BLOCK], place * BLOCK as u64)
                    .and_then(|()| blocks.sync_data())
                    .expect("a write");
            })
        });
        let read = scope.spawn(|| {
            let mut buffer = Box::new(Aligned([0; BLOCK]));
            again_and_again(stop, |turn| {
                let place = turn.wrapping_mul(40_503) % BLOCKS;
                read.read_exact_at(&mut buffer.0, place * BLOCK as u64).expect("a read");
            })
        });
        until();
        stop.store(true, Ordering::Relaxed);
        vec![
            ("append 1 kB + fdatasync", append.join().expect("no panic")),
            ("write 4 KiB + fdatasync", write.join().expect("no panic")),
            ("read 4 KiB, O_DIRECT", read.join().expect("no panic")),
        ]
    })
}

fn ms(took: &[Duration], percent: usize) -> f64 {
    let at = (took.len() * percent / 100).min(took.len() - 1);
    took[at].as_secs_f64() * 1e3
}

fn main() {
    let Options { mib } = Options::parse();
    let cluster = DevCluster::up();
    let at = &cluster.mount;
    let mut random = File::open("/dev/urandom").expect("/dev/urandom");
    let mut piece = vec![0; 1 << 20];
    std::io::Read::read_exact(&mut random, &mut piece).expect("random bytes");
    for number in 0..mib.div_ceil(64) {
        let mut file = File::create(at.join(format!("data-{number}"))).expect("a file");
        for part in 0..64_u64.min(mib - number * 64) {
            piece[..8].copy_from_slice(&(number * 64 + part).to_le_bytes());
            file.write_all(&piece).expect("a write");
        }
        file.sync_all().expect("a sync");
    }
    fs::write(at.join("blocks"), vec![1; BLOCK * BLOCKS as usize]).expect("a file");
    cluster.wait_at_rest(HEALTHY);

    thread::sleep(SETTLE);

    let stop = AtomicBool::new(false);
    let mut idle = load(at, &stop, || thread::sleep(IDLE));
    cluster.kill("storage-2");
    let disk = cluster.data.join("nodes/storage-2/data");
    fs::remove_dir_all(&disk).expect("its disk");
    thread::sleep(Duration::from_secs(2));
    let mut took = Duration::ZERO;
    let busy = load(at, &stop, || {
        let start = Instant::now();
        cluster.start("storage-2");
        let _ = cluster.wait_healthy(HEALTHY);
        took = start.elapsed();
    });
    thread::sleep(SETTLE);
    // A noisy machine is noisy before and afterwards.
    for ((_, before), (_, after)) in idle.iter_mut().zip(load(at, &stop, || thread::sleep(IDLE))) {
        before.extend(after);
        before.sort_unstable();
    }
    println!(
        "{mib} MiB: healthy after {:.1} s, {:.0} MiB/s",
        took.as_secs_f64(),
        mib as f64 / took.as_secs_f64()
    );
    println!("\n| operation | idle p50 / p99 ms (n) | meanwhile p50 / p99 ms (n) | p99 ratio |\n|---|---|---|---|");
    for ((what, before), (_, during)) in idle.iter().zip(&busy) {
        println!(
            "| {what} | {:.2} / {:.2} ({}) | {:.2} / {:.2} ({}) | {:.2} |",
            ms(before, 50),
            ms(before, 99),
            before.len(),
            ms(during, 50),
            ms(during, 99),
            during.len(),
            ms(during, 99) / ms(before, 99)
        );
    }
    cluster.verify_replicas();
}
