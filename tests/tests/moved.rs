//! A metadata server gets another address: every configuration is edited, and the metadata servers
//! are started anew. Storage nodes and mounts run on, and find it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use dfs_tests::{DevCluster, run_in, shell};

const WAIT: Duration = Duration::from_secs(30);
const MOVED: &str = "meta-2";

/// Not used by anybody, for UDP and TCP.
fn free_port() -> u16 {
    (0..100)
        .find_map(|_| {
            let port = UdpSocket::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
            TcpListener::bind(("127.0.0.1", port)).ok().map(|_| port)
        })
        .expect("a free port")
}

fn address(cluster: &DevCluster, server: &str) -> String {
    let config = fs::read_to_string(cluster.data.join("nodes").join(server).join("node.toml")).unwrap();
    let listen = config.lines().find(|line| line.starts_with("listen")).unwrap();
    listen.split('"').nth(1).unwrap().to_owned()
}

fn health(cluster: &DevCluster) -> String {
    cluster.admin(&["health", "detail"]).stdout
}

#[test]
fn a_metadata_server_that_moved_is_found_by_who_runs_on() {
    let cluster = DevCluster::up();
    let at = &cluster.mount;
    let _ = run_in(at, "echo before > file && sync file").expect_ok("a file");
    let (old, new) = (address(&cluster, MOVED), format!("127.0.0.1:{}", free_port()));
    cluster.kill(MOVED);
    shell(&format!(
        "sed -i 's/\"{old}\"/\"{new}\"/' {0}/cluster.toml {0}/nodes/*/node.toml",
        cluster.data.display()
    ));
    cluster.start(MOVED);
    for server in ["meta-1", "meta-3"] {
        cluster.kill(server);
        cluster.start(server);
        // The last of them does not find the one that moved before it is started anew itself.
        let start = Instant::now();
        while cluster.status().is_none() || health(&cluster).contains(&format!("{server} (")) {
            assert!(start.elapsed() < WAIT, "{}", health(&cluster));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    cluster.wait_healthy(WAIT);
    let storage = ["storage-1", "storage-2", "storage-3", "mount"].map(|name| cluster.pid(name));

    // Until the one that moved leads.
    let led = (0..20).find(|_| {
        let leader = cluster.leader();
        if leader == MOVED {
            return true;
        }
        cluster.kill(&leader);
        let is_led = || {
            cluster
                .status()
                .is_some_and(|status| status["meta"]["leader"].is_string())
        };
        for _ in 0..100 {
            if is_led() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        cluster.start(&leader);
        cluster.wait_healthy(WAIT);
        false
    });
    assert!(led.is_some(), "{MOVED} never led");
    // Nobody else is left who knew where it was before.
    let _ = run_in(at, "echo after > new && sync new && cat file new").expect_ok("the mount finds it");
    cluster.wait_healthy(WAIT);
    cluster.kill("storage-1");
    cluster.start("storage-1");
    cluster.wait_healthy(WAIT);
    assert_eq!(cluster.leader(), MOVED);
    assert_eq!(
        storage[1..],
        ["storage-2", "storage-3", "mount"].map(|name| cluster.pid(name))
    );
    let _ = cluster.down().expect_ok("dev down");
}
