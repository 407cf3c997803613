//! Disks of metadata servers are replaced; two of three at worst.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::thread;
use std::time::Duration;

use dfs_tests::{DevCluster, shell};

const HEALED_WITHIN: Duration = Duration::from_mins(1);

fn replace_disk(cluster: &DevCluster, server: &str) {
    cluster.kill(server);
    fs::remove_dir_all(cluster.data.join("nodes").join(server).join("data")).unwrap();
}

#[test]
fn metadata_disks_are_replaced_one_after_the_other() {
    let cluster = DevCluster::up();
    for (number, server) in ["meta-2", "meta-1", "meta-3"].into_iter().enumerate() {
        shell(&format!(
            "cd {} && echo {number} > file-{number} && sync file-{number}",
            cluster.mount.display()
        ));
        replace_disk(&cluster, server);
        cluster.start(server);
        cluster.wait_healthy(HEALED_WITHIN);
        for known in 0..=number {
            let read = fs::read_to_string(cluster.mount.join(format!("file-{known}"))).unwrap();
            assert_eq!(read, format!("{known}\n"));
        }
    }
    let _ = cluster.down().expect_ok("dev down");
}

/// The two empty ones look like a new cluster to each other.
#[test]
fn two_empty_metadata_disks_do_not_outvote_the_third() {
    let cluster = DevCluster::up();
    let file = cluster.mount.join("file");
    fs::write(&file, "kept").unwrap();
    shell(&format!("sync {}", file.display()));
    cluster.wait_healthy(HEALED_WITHIN);
    cluster.kill("meta-3");
    for server in ["meta-1", "meta-2"] {
        replace_disk(&cluster, server);
        cluster.start(server);
    }
    thread::sleep(Duration::from_secs(3));
    assert!(cluster.status().is_none(), "two empty servers lead: {}", cluster.logs());
    cluster.start("meta-3");
    cluster.wait_healthy(HEALED_WITHIN);
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    let _ = cluster.down().expect_ok("dev down");
}
