//! What was written, not synced, and lost with the power of every replica must not be vouched for by a later fsync.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use dfs_tests::HostCluster;
use dfs_tests::faults::schedule::STORAGE;

/// Older than the mount's buffer gets, younger than the kernel's writeback of the servers' disks.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

#[test]
fn an_fsync_after_all_replicas_lost_their_power_does_not_lie() {
    let mut cluster = HostCluster::up(1, true);
    let path = cluster.mount_points()[0].join("log");
    // The file is held open across the cut, and this process starts others meanwhile: a close of the child's copy flushes.
    // Nothing waits here, since the cluster is healthy whenever a process starts.
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&[1; 1000]).unwrap();
    file.sync_all().unwrap();
    file.write_all(&[2; 1000]).unwrap();
    std::thread::sleep(ON_ITS_WAY);
    cluster.cut_power(&STORAGE);
    for index in STORAGE {
        cluster.start(index);
    }
    cluster.wait_healthy(Duration::from_mins(1)).unwrap();
    let synced = file.sync_all();
    let found = read_past_caches(&path);
    assert!(
        synced.is_err() || found[1000..] == [2; 1000],
        "fsync returned 0, and the bytes are gone"
    );
    assert!(found[..1000] == [1; 1000], "what was synced before is there");
}

fn read_past_caches(path: &Path) -> Vec<u8> {
    dfs_tests::shell("echo 3 > /proc/sys/vm/drop_caches");
    fs::read(path).unwrap()
}
