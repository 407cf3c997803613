//! Levels, by experiment: each pair of a write and a read level over real processes, with faults; what an acknowledgement costs; and that
//! the weakest pair is as weak as it is said to be.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::faults::inject::{Tracer, trace};
use dfs_tests::faults::load::{Load, Plan, Promise};
use dfs_tests::faults::schedule::{META, STORAGE};
use dfs_tests::{HostCluster, dfs};
use serde_json::Value;

const LEVELS: [&str; 3] = ["ONE", "QUORUM", "ALL"];
const BLOCK: usize = 4096;
const HEALED_WITHIN: Duration = Duration::from_mins(1);

/// What one node's appends take longer. Too little for the others to take it for broken (decision 13).
const SLOW_US: u64 = 9_000;

/// Makes each append of a node take this much longer, until it is dropped.
fn slow(cluster: &HostCluster, node: usize, by_us: u64) -> Tracer {
    trace(cluster, node, "pwritev,pwrite64", &format!("delay_enter={by_us}")).expect("it runs")
}

/// A directory whose files are written and read at these levels.
fn directory(at: &Path, write: &str, read: &str) -> PathBuf {
    let at = at.join(format!("{write}-{read}"));
    fs::create_dir(&at).unwrap();
    let _ = dfs(["policy", "set", at.to_str().unwrap(), "--write", write, "--read", read]).expect_ok("policy set");
    at
}

/// Registers at one pair of levels, through both mounts, while a server dies and comes back; what came of it.
fn experiment(cluster: &mut HostCluster, write: usize, read: usize) -> String {
    let (write_level, read_level) = (LEVELS[write], LEVELS[read]);
    let mounts = cluster.mount_points();
    let name = directory(&mounts[0], write_level, read_level);
    let name = name.file_name().unwrap();
    let overlap = (write + 1) + (read + 1) > 3;
    let plan = Plan {
        mounts: mounts.iter().map(|mount| mount.join(name)).collect(),
        seed: (write * 3 + read) as u64,
        register_threads: 2,
        logs: 0,
        names: false,
        promise: if overlap {
            Promise::Linearizable
        } else {
            Promise::NeverBack
        },
        history: cluster.scratch().join(format!("history-{write_level}-{read_level}")),
        tag: String::new(),
    };
    // Nobody else is sure to have what was acknowledged at ONE, so there no head may die; see docs/SEMANTICS.md.
    let victim = if write == 0 { META[read] } else { STORAGE[read] };
    let load = Load::start(&plan, cluster.log("load"));
    thread::sleep(Duration::from_secs(1));
    cluster.kill(victim);
    thread::sleep(Duration::from_millis(700));
    cluster.start(victim);
    thread::sleep(Duration::from_secs(1));
    cluster.wait_healthy(HEALED_WITHIN).unwrap();
    let findings = load.finish();
    assert_eq!(findings.failures, Vec::<String>::new(), "{:?}", findings.lines);
    format!("write {write_level}, read {read_level}: {:?}", findings.lines)
}

#[test]
fn every_pair_keeps_its_promise() {
    let mut cluster = HostCluster::up(2, false);
    for write in 0..3 {
        for read in 0..3 {
            println!("{}", experiment(&mut cluster, write, read));
        }
    }
    let verified = cluster.admin(&["chain", "verify"]);
    assert!(verified.ok(), "{}{}", verified.stdout, verified.stderr);
}

/// A file of one chunk that lies as it should: told its inode and its chain's members, head first.
fn file_where(cluster: &HostCluster, directory: &Path, fits: impl Fn(u64, &[&str]) -> bool) -> PathBuf {
    (0..128)
        .map(|number| {
            let at = directory.join(format!("f{number}"));
            fs::write(&at, [0; BLOCK]).unwrap();
            at
        })
        .find(|at| {
            let place = cluster
                .admin(&["where", at.to_str().unwrap(), "-o", "json"])
                .expect_ok("where");
            let place: Value = serde_json::from_str(&place.stdout).unwrap();
            let members = place["chunks"][0]["chain"]["members"].as_array().unwrap();
            let names: Vec<&str> = members.iter().map(|member| member["name"].as_str().unwrap()).collect();
            fits(place["inode"].as_u64().unwrap(), &names)
        })
        .expect("of so many files one lies there")
}

#[test]
fn an_acknowledgement_waits_for_no_more_than_its_level() {
    const ROUNDS: usize = 60;
    let cluster = HostCluster::up(1, false);
    let mount = &cluster.mount_points()[0];
    let files = LEVELS.map(|level| {
        let directory = directory(mount, level, "QUORUM");
        let lies = |_, members: &[&str]| members == ["storage-1", "storage-2", "storage-3"];
        let at = file_where(&cluster, &directory, lies);
        OpenOptions::new().write(true).open(at).unwrap()
    });
    // The second member is slower than the head, and the tail slower than both.
    let slow = [(STORAGE[1], SLOW_US / 4), (STORAGE[2], SLOW_US)].map(|(node, by_us)| slow(&cluster, node, by_us));
    let mut took: [Vec<Duration>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for (file, took) in files.iter().zip(&mut took) {
            let start = Instant::now();
            file.write_all_at(&[round as u8; BLOCK], 0).unwrap();
            file.sync_data().unwrap();
            took.push(start.elapsed());
        }
    }
    drop(slow);
    let [one, quorum, all] = took.map(|mut took| {
        took.sort_unstable();
        took[took.len() / 2]
    });
    println!(
        "pwrite and fdatasync, each append of the tail slower by {SLOW_US} us, of the second by a quarter of that; p50: \
         ONE {one:.2?}, QUORUM {quorum:.2?}, ALL {all:.2?}"
    );
    assert!(one < quorum && quorum < all, "{one:?} {quorum:?} {all:?}");
    assert!(all >= Duration::from_micros(SLOW_US), "{all:?}");
}

#[test]
fn one_and_one_is_stale_at_times_and_never_goes_back() {
    const ROUNDS: u64 = 200;
    let cluster = HostCluster::up(2, false);
    let mounts = cluster.mount_points();
    // Reads of this file begin at the third member, and what is written gets there by way of the second, which is slow.
    let directory = directory(&mounts[0], "ONE", "ONE");
    let lies = |inode, members: &[&str]| members[1] == "storage-2" && inode % 3 == 2;
    let written = file_where(&cluster, &directory, lies);
    let read = mounts[1].join(written.strip_prefix(&mounts[0]).unwrap());
    let writer = OpenOptions::new().write(true).open(written).unwrap();
    let slow = slow(&cluster, STORAGE[1], SLOW_US);
    let (mut stale, mut seen) = (0, 0);
    for round in 1..=ROUNDS {
        let block: Vec<u8> = round.to_le_bytes().repeat(BLOCK / 8);
        writer.write_all_at(&block, 0).unwrap();
        writer.sync_data().unwrap();
        for _ in 0..2 {
            let mut block = vec![0; BLOCK];
            let reader = OpenOptions::new()
                .read(true)
                .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
                .open(&read)
                .unwrap();
            reader.read_exact_at(&mut block, 0).unwrap();
            let found = u64::from_le_bytes(block[..8].try_into().unwrap());
            assert!(found >= seen, "{found} after {seen}");
            assert_eq!(block, found.to_le_bytes().repeat(BLOCK / 8));
            stale += u64::from(found < round);
            seen = found;
        }
    }
    drop(slow);
    println!(
        "{stale} of {} reads at ONE returned what had been overwritten at ONE",
        2 * ROUNDS
    );
    assert!(stale > 0, "nobody is behind");
}
