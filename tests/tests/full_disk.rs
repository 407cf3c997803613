//! Disks fill up: the application hears ENOSPC, nothing is lost, deleting works, and then service goes on by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::{DevCluster, LoopDisk, run_in, shell};
use rustix::fs::statvfs;

/// Errors come at once, not at some deadline.
const TOLD_WITHIN: Duration = Duration::from_secs(25);

/// Deleted space comes back after two keep-alives and a purge.
const FREED_WITHIN: Duration = Duration::from_secs(15);

/// Both fill the same disk of this machine with gigabytes: one after the other, so that each is measured alone.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn fill_and_recover(cluster: &DevCluster, over_mib: u32) {
    let at = &cluster.mount;
    let sum = |name: &str| shell(&format!("sha256sum < {}", at.join(name).display()));
    shell(&format!(
        "head -c 20000000 /dev/urandom > {0} && sync {0}",
        at.join("kept").display()
    ));
    let kept = sum("kept");

    let start = Instant::now();
    let filled = run_in(
        at,
        &format!("dd if=/dev/zero of=fill bs=1M count={over_mib} conv=fsync"),
    );
    assert!(!filled.ok(), "more was written than there is room");
    assert!(filled.stderr.contains("No space left on device"), "{}", filled.stderr);
    assert!(start.elapsed() < TOLD_WITHIN, "told after {:?}", start.elapsed());

    shell("echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(sum("kept"), kept);
    let health = cluster.admin(&["health", "detail"]);
    assert!(health.ok(), "a full disk is no fault: {}", health.stdout);
    shell(&format!(
        "mkdir {0} && mv {0} {0}.moved && rmdir {0}.moved",
        at.join("names").display()
    ));
    fs::remove_file(at.join("fill")).unwrap();

    let start = Instant::now();
    while !run_in(at, "dd if=/dev/urandom of=again bs=1M count=40 conv=fsync").ok() {
        assert!(
            start.elapsed() < FREED_WITHIN,
            "no room again after the file was removed"
        );
        thread::sleep(Duration::from_millis(500));
    }
    shell("echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(sum("kept"), kept);
    cluster.wait_healthy(Duration::from_secs(10));
    cluster.verify_replicas();
}

#[test]
fn one_small_storage_node() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = DevCluster::up();
    let _ = cluster.down().expect_ok("dev down");
    let _disk = LoopDisk::under(&cluster, "storage-2", "ext4", 700);
    let _ = cluster.start_all().expect_ok("dev up");
    fill_and_recover(&cluster, 1500);
    let _ = cluster.down().expect_ok("dev down");
}

/// What others write to the disk below is not free for dfs, and comes back.
fn df_follows_the_disk(cluster: &DevCluster) {
    let free_mib = || {
        let of = statvfs(&cluster.mount).unwrap();
        (of.f_bavail * of.f_frsize) >> 20
    };
    let others = cluster.data.join("others");
    // Each node measured the disk when the next ones had not made their first segments yet; now all
    // have measured once more.
    thread::sleep(Duration::from_secs(8));
    let before = free_mib();
    let wait_for = |what: &str, holds: &dyn Fn(u64) -> bool| {
        let start = Instant::now();
        while !holds(free_mib()) {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{what}: {} MiB of {before}",
                free_mib()
            );
            thread::sleep(Duration::from_millis(200));
        }
    };
    shell(&format!("fallocate -l 1000M {}", others.display()));
    wait_for("taken by others", &|free| free + 900 < before);
    fs::remove_file(others).unwrap();
    wait_for("given back", &|free| free + 100 > before);
}

/// The metadata servers live on the same small disk, and go on.
#[test]
fn everything_on_one_small_disk() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let image = tempfile::Builder::new()
        .prefix("dfs-test-")
        .tempdir_in("/var/tmp")
        .unwrap();
    let mut disk = None;
    let cluster = DevCluster::up_on(|data: &Path| {
        fs::create_dir(data).unwrap();
        disk = Some(LoopDisk::create(&image.path().join("disk.img"), data, "ext4", 2_500));
    });
    df_follows_the_disk(&cluster);
    fill_and_recover(&cluster, 2_000);
    let _ = cluster.down().expect_ok("dev down");
    let _ = cluster.start_all().expect_ok("dev up");
    cluster.verify_replicas();
    let _ = cluster.down().expect_ok("dev down");
}
