//! Disks of metadata servers fill up: what takes room is refused, everything else goes on, and
//! service comes back by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::{DevCluster, LoopDisk, run_in, shell};

const SERVERS: [&str; 3] = ["meta-1", "meta-2", "meta-3"];
const WAIT: Duration = Duration::from_secs(30);

/// Longer than a server needs to notice anything, and to give up.
const A_WHILE: Duration = Duration::from_secs(8);

fn wait_for(what: &str, done: impl Fn() -> bool, why: impl Fn() -> String) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < WAIT, "waited for {what}: {}", why());
        thread::sleep(Duration::from_millis(200));
    }
}

/// A cluster whose metadata servers have small disks of their own.
fn cluster() -> (DevCluster, Vec<LoopDisk>) {
    let cluster = DevCluster::up();
    let _ = cluster.down().expect_ok("dev down");
    let disks = SERVERS.map(|server| {
        // It has the size that goes with the disk of this machine.
        fs::remove_file(filler(&cluster, server).with_file_name("ballast")).unwrap();
        LoopDisk::under(&cluster, server, "ext4", 300)
    });
    let _ = cluster.start_all().expect_ok("dev up");
    cluster.wait_healthy(WAIT);
    (cluster, disks.into())
}

fn filler(cluster: &DevCluster, server: &str) -> PathBuf {
    cluster.data.join("nodes").join(server).join("data").join("of-others")
}

/// To the last byte.
fn fill(cluster: &DevCluster, server: &str) {
    let filler = filler(cluster, server);
    shell(&format!(
        "dd if=/dev/zero of={} bs=64K conv=fsync 2>/dev/null || true",
        filler.display()
    ));
}

fn forget_caches() {
    shell("echo 3 > /proc/sys/vm/drop_caches");
}

#[test]
fn all_metadata_disks_are_full_and_are_emptied_again() {
    let (cluster, _disks) = cluster();
    let at = &cluster.mount;
    let _ = run_in(
        at,
        "for i in $(seq 40); do echo $i > file-$i; done; mkdir old; sync -f .",
    )
    .expect_ok("files");
    let pids = SERVERS.map(|server| cluster.pid(server));
    let detail = || cluster.admin(&["health", "detail"]).stdout;

    for server in SERVERS {
        fill(&cluster, server);
    }
    for server in SERVERS {
        let named = format!("{server}: its disk is nearly full");
        wait_for("health to name the disk", || detail().contains(&named), detail);
    }
    let refused = run_in(at, "mkdir new");
    assert!(refused.stderr.contains("No space left on device"), "{}", refused.stderr);
    // Somebody else takes what was given up.
    for server in SERVERS {
        shell(&format!(
            "dd if=/dev/zero of={}-2 bs=64K conv=fsync 2>/dev/null || true",
            filler(&cluster, server).display()
        ));
    }
    thread::sleep(A_WHILE);
    forget_caches();
    assert_eq!(fs::read_to_string(at.join("file-7")).unwrap(), "7\n", "reading goes on");
    for server in SERVERS {
        fs::remove_file(filler(&cluster, server).with_file_name("of-others-2")).unwrap();
    }
    let _ = run_in(
        at,
        "for i in $(seq 20); do rm file-$i; done; mv file-21 moved; rmdir old; chmod 600 moved
         echo more >> file-22; sync file-22",
    )
    .expect_ok("what takes no room");

    for server in SERVERS {
        fs::remove_file(filler(&cluster, server)).unwrap();
    }
    cluster.wait_healthy(WAIT);
    let _ = run_in(at, "mkdir new && echo x > new/x && sync new/x").expect_ok("room again");
    assert_eq!(pids, SERVERS.map(|server| cluster.pid(server)), "no process ended");
    forget_caches();
    let names = run_in(at, "ls | wc -l; cat moved file-22 file-40")
        .expect_ok("ls")
        .stdout;
    assert_eq!(names, "21\n21\n22\nmore\n40\n");
    let _ = cluster.down().expect_ok("dev down");
}

#[test]
fn a_leader_whose_disk_is_full_makes_way() {
    let (cluster, _disks) = cluster();
    let at = &cluster.mount;
    let leader = cluster.leader();
    let pid = cluster.pid(&leader);
    fill(&cluster, &leader);
    let led = || {
        cluster
            .status()
            .and_then(|status| status["meta"]["leader"].as_str().map(str::to_owned))
    };
    wait_for(
        "another leader",
        || led().is_some_and(|now| now != leader),
        || cluster.logs(),
    );
    let named = format!("{leader}: its disk is nearly full");
    let detail = || cluster.admin(&["health", "detail"]).stdout;
    wait_for("health to name the disk", || detail().contains(&named), detail);
    let made = run_in(
        at,
        "for i in $(seq 200); do mkdir d-$i && echo $i > d-$i/f; done; sync -f .",
    );
    assert!(made.ok(), "two servers have room: {}", made.stderr);
    thread::sleep(A_WHILE);
    assert_ne!(led().as_ref(), Some(&leader));
    fs::remove_file(filler(&cluster, &leader)).unwrap();
    cluster.wait_healthy(WAIT);
    assert_eq!(pid, cluster.pid(&leader), "it went on by itself");
    let _ = cluster.down().expect_ok("dev down");
}

/// What the file system itself has put there makes room when it is removed.
#[test]
fn metadata_fills_its_disks_and_is_removed() {
    let (cluster, _disks) = cluster();
    let at = &cluster.mount;
    let script = "import os
for i in range(20000):
    open(f'full-{i}', 'w').close()
    os.setxattr(f'full-{i}', 'user.a', os.urandom(60000))";
    let filled = run_in(at, &format!("python3 -c \"{script}\""));
    assert!(filled.stderr.contains("No space left on device"), "{}", filled.stderr);
    println!("full after {} files", fs::read_dir(at).unwrap().count());
    let pids = SERVERS.map(|server| cluster.pid(server));
    let _ = run_in(at, "rm full-*").expect_ok("removing goes on");
    let start = Instant::now();
    cluster.wait_healthy(2 * WAIT);
    println!("room again after {:?}", start.elapsed());
    // What is left is less than what is worth a copy while there is room.
    for server in SERVERS {
        let state = filler(&cluster, server).with_file_name("state");
        let used = || shell(&format!("(du -sm {} 2>/dev/null || true) | cut -f1", state.display()));
        let is_small = || used().trim().parse::<u64>().is_ok_and(|mib| mib < 90);
        wait_for("the state to be small", is_small, used);
        println!("{server}: {} MiB after {:?}", used().trim(), start.elapsed());
    }
    let _ = run_in(at, "mkdir again").expect_ok("room again");
    let logs = cluster.logs();
    assert!(!logs.contains("takes no more rows"), "{logs}");
    assert_eq!(pids, SERVERS.map(|server| cluster.pid(server)), "no process ended");
    let _ = cluster.down().expect_ok("dev down");
}
