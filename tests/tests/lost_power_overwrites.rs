//! What an fsync answers after or before all replicas lost their power, where blocks were overwritten or somebody else had written.
//! The three smallest cases; `tests/tests/power_overwrites.rs` draws others.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use dfs_tests::HostCluster;
use dfs_tests::faults::schedule::STORAGE;

/// Older than the mount's buffer gets, younger than the kernel's writeback of the servers' disks.
const ON_ITS_WAY: Duration = Duration::from_millis(1200);

const BLOCK: usize = 4096;

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

fn lose_power(cluster: &mut HostCluster) {
    cluster.cut_power(&STORAGE);
    for index in STORAGE {
        cluster.start(index);
    }
    cluster.wait_healthy(Duration::from_mins(2)).unwrap();
}

/// Past every cache.
fn read(path: &Path) -> Vec<u8> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(direct).open(path).unwrap();
    let mut bytes = vec![0; BLOCK];
    let read = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

#[test]
fn of_two_unsynced_overwrites_the_newer_one_stays() {
    let mut cluster = HostCluster::up(2, true);
    let mounts = cluster.mount_points();
    let file = open(&mounts[0].join("whole"));
    file.write_all_at(&[1; BLOCK], 0).unwrap();
    file.sync_all().unwrap();
    for round in [2, 3] {
        file.write_all_at(&[round; BLOCK], 0).unwrap();
        sleep(ON_ITS_WAY);
    }
    lose_power(&mut cluster);
    file.sync_all().unwrap();
    let found = read(&mounts[1].join("whole"));
    assert!(
        found == [3; BLOCK],
        "fsync returned 0, and another mount reads {}",
        found[0]
    );
}

#[test]
fn a_block_that_small_appends_share_is_written_again() {
    let mut cluster = HostCluster::up(2, true);
    let mounts = cluster.mount_points();
    let file = open(&mounts[0].join("log"));
    file.write_all_at(&[1; 100], 0).unwrap();
    file.sync_all().unwrap();
    for record in [2_u8, 3] {
        file.write_all_at(&[record; 100], u64::from(record - 1) * 100).unwrap();
        sleep(ON_ITS_WAY);
    }
    lose_power(&mut cluster);
    file.sync_all().expect("the mount has everything that was lost");
    let wanted: Vec<u8> = (0..300).map(|at| u8::try_from(at / 100 + 1).unwrap()).collect();
    assert_eq!(read(&mounts[1].join("log")), wanted);
}

#[test]
fn an_fsync_by_somebody_who_did_not_write_is_true() {
    let mut cluster = HostCluster::up(2, true);
    let mounts = cluster.mount_points();
    for (name, reader) in [("same mount", 0), ("another mount", 1)] {
        let file = open(&mounts[0].join(name));
        file.write_all_at(&[1; BLOCK], 0).unwrap();
        file.sync_all().unwrap();
        file.write_all_at(&[2; BLOCK], 0).unwrap();
        drop(file);
        let stranger = open(&mounts[reader].join(name));
        let mut seen = vec![0; BLOCK];
        stranger.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == [2; BLOCK], "close-to-open");
        stranger.sync_all().unwrap();
        drop(stranger);
        lose_power(&mut cluster);
        let found = read(&mounts[1].join(name));
        assert!(
            found == [2; BLOCK],
            "{name}: fsync returned 0, and after the power cut {} is there",
            found[0]
        );
    }
}
