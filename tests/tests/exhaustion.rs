//! What runs out comes back: descriptors that storage nodes lack cost nobody a store.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::{DevCluster, shell};

const NODES: [&str; 3] = ["storage-1", "storage-2", "storage-3"];
const WELL_WITHIN: Duration = Duration::from_mins(1);

/// As much as any process here needs.
const PLENTY: u32 = 4_096;

fn set_limit(cluster: &DevCluster, node: &str, descriptors: u32) {
    let pid = cluster.pid(node);
    shell(&format!("prlimit --pid {pid} --nofile={descriptors}:{PLENTY}"));
}

fn descriptors(cluster: &DevCluster, node: &str) -> usize {
    let of = format!("/proc/{}/fd", cluster.pid(node));
    std::fs::read_dir(of).unwrap().count()
}

fn nothing_was_given_up(cluster: &DevCluster) {
    for node in NODES {
        let data = cluster.data.join("nodes").join(node).join("data");
        assert!(!data.join("chunks/poisoned").exists(), "{node} was condemned");
        let names = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names = names.map(|name| name.to_string_lossy().into_owned());
        assert!(!names.any(|name| name.starts_with("aside-")), "{node} was set aside");
    }
}

fn wait_for(what: &str, done: impl Fn() -> bool, why: impl Fn() -> String) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < WELL_WITHIN, "waited for {what}: {}", why());
        thread::sleep(Duration::from_millis(100));
    }
}

/// Writes and syncs as many MiB, and returns the file and its sum.
fn write(cluster: &DevCluster, name: &str, mib: u32) -> (PathBuf, String) {
    let file = cluster.mount.join(name);
    shell(&format!(
        "timeout 100 sh -c 'head -c {mib}M /dev/urandom > {0} && sync {0}'",
        file.display()
    ));
    let sum = shell(&format!("sha256sum < {}", file.display()));
    (file, sum)
}

fn all_is_there(cluster: &DevCluster, files: &[(PathBuf, String)]) {
    wait_for(
        "health",
        || cluster.admin(&["health"]).ok(),
        || cluster.admin(&["health", "detail"]).stdout,
    );
    shell("echo 3 > /proc/sys/vm/drop_caches");
    for (file, sum) in files {
        assert_eq!(&shell(&format!("sha256sum < {}", file.display())), sum);
    }
    nothing_was_given_up(cluster);
}

/// A node has more segments than it may have files open.
#[test]
fn a_few_descriptors_are_enough_for_many_segments() {
    let cluster = DevCluster::up();
    for node in NODES {
        // For two segments more than are open now; with a file for every segment this is used up within 200 MiB.
        let now = u32::try_from(descriptors(&cluster, node)).unwrap();
        set_limit(&cluster, node, now + 2);
    }
    let files: Vec<_> = ["one", "two"].iter().map(|name| write(&cluster, name, 200)).collect();
    all_is_there(&cluster, &files);
    let _ = cluster.down().expect_ok("dev down");
}

/// Nobody can open anything any more: on one node, then on all three at once.
#[test]
fn nodes_without_descriptors_wait_until_they_have_some() {
    let cluster = DevCluster::up();
    let mut files = vec![write(&cluster, "before", 30)];
    for short in [&NODES[1..2], &NODES[..]] {
        for node in short {
            set_limit(&cluster, node, 3);
        }
        let written = thread::scope(|scope| {
            let writer = scope.spawn(|| write(&cluster, &format!("during-{}", short.len()), 200));
            let detail = || cluster.admin(&["health", "detail"]).stdout;
            let all_say_so = || {
                let detail = detail();
                let says = |node: &&&str| detail.contains(&format!("{node} has run out of file descriptors"));
                short.iter().filter(says).count() == short.len()
            };
            wait_for("health to say what is short", all_say_so, detail);
            nothing_was_given_up(&cluster);
            // Longer than a log waits for what has run out.
            thread::sleep(Duration::from_secs(7));
            nothing_was_given_up(&cluster);
            for node in short {
                set_limit(&cluster, node, PLENTY);
            }
            writer.join().unwrap()
        });
        files.push(written);
        all_is_there(&cluster, &files);
    }
    cluster.verify_replicas();
    let _ = cluster.down().expect_ok("dev down");
}
