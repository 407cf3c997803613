//! A metadata server gets another address, by hand or by `dfs meta move`, or another machine takes
//! its place. Storage nodes and mounts run on, and find it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use dfs_tests::process::dfs_binary;
use dfs_tests::{DevCluster, dfs, run_in, shell};

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

fn has_leader(cluster: &DevCluster) -> bool {
    let status = cluster.status();
    status.is_some_and(|status| status["meta"]["leader"].is_string())
}

/// Kills whoever else leads, until that one does.
fn have_lead(cluster: &DevCluster, server: &str) {
    for _ in 0..20 {
        let leader = cluster.leader();
        if leader == server {
            return;
        }
        cluster.kill(&leader);
        for _ in 0..100 {
            if has_leader(cluster) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        cluster.start(&leader);
        cluster.wait_healthy(WAIT);
    }
    panic!("{server} never led");
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

    have_lead(&cluster, MOVED);
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

/// Nobody but the server itself is started anew, and no file is edited by hand.
#[test]
fn a_metadata_server_is_moved_by_a_verb() {
    let cluster = DevCluster::up();
    let at = &cluster.mount;
    let _ = run_in(at, "echo before > file && sync file").expect_ok("a file");
    let wrong = [
        (
            ["meta", "move", "meta-9", "127.0.0.1:1"],
            "none of the metadata servers",
        ),
        (["meta", "move", "storage-1", "127.0.0.1:1"], "no metadata server"),
        (["meta", "move", MOVED, "0.0.0.0:7"], "its own IP address"),
        (["meta", "move", MOVED, "127.0.0.1"], "HOST:PORT"),
    ];
    for (arguments, says) in wrong {
        let refused = cluster.admin(&arguments);
        assert!(!refused.ok() && refused.stderr.contains(says), "{refused:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    }
    let taken = address(&cluster, "storage-1");
    let refused = cluster.admin(&["meta", "move", MOVED, &taken]);
    assert!(refused.stderr.contains("the address of storage-1"), "{refused:?}");

    cluster.kill(MOVED);
    let new = format!("127.0.0.1:{}", free_port());
    let moved = cluster.admin(&["meta", "move", MOVED, &new]).expect_ok("meta move");
    assert!(moved.stdout.contains(&format!("{MOVED} is at {new} now")), "{moved:?}");
    assert_eq!(address(&cluster, MOVED), new);
    let others = ["meta-1", "meta-3", "storage-1", "storage-2", "storage-3", "mount"];
    let pids = others.map(|name| cluster.pid(name));
    cluster.start(MOVED);
    cluster.wait_healthy(WAIT);
    assert_eq!(others.map(|name| cluster.pid(name)), pids);

    // Whoever was started before is named, until it is started anew.
    let named = |name: &str| {
        let detail = health(&cluster);
        detail
            .lines()
            .any(|line| line.contains(&format!("{name}: ")) && line.contains("an address that meta-2 has left"))
    };
    let start = Instant::now();
    let mount = cluster.mount.display().to_string();
    for name in ["meta-1", "meta-3", "storage-1", "storage-2", "storage-3", &mount] {
        while !named(name) {
            assert!(start.elapsed() < WAIT, "{name} is not named: {}", health(&cluster));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    assert!(!named("meta-2"));
    cluster.kill("storage-1");
    cluster.start("storage-1");
    cluster.wait_healthy(WAIT);
    assert!(!named("storage-1"), "{}", health(&cluster));

    have_lead(&cluster, MOVED);
    let _ = run_in(at, "echo after > new && sync new && cat file new").expect_ok("the mount finds it");
    assert_eq!(cluster.pid("mount"), pids[5]);
    cluster.verify_replicas();
    let _ = cluster.down().expect_ok("dev down");
}

/// A process of the test's own, ended with it.
struct Old(Child);

impl Drop for Old {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn another_machine_takes_a_metadata_servers_place_and_the_old_one_is_refused() {
    let cluster = DevCluster::up();
    let at = &cluster.mount;
    let _ = run_in(at, "echo before > file && sync file").expect_ok("a file");
    let directory = cluster.data.display().to_string();
    let new = format!("127.0.0.1:{}", free_port());
    let replace = ["meta", "replace", &directory, MOVED, &new];
    let refused = dfs(replace);
    assert!(!refused.ok() && refused.stderr.contains("stop it first"), "{refused:?}");

    cluster.kill(MOVED);
    std::thread::sleep(Duration::from_secs(3));
    let old = cluster.data.join("replaced").join(format!("{MOVED}-1"));
    let replaced = dfs(replace).expect_ok("meta replace");
    assert!(replaced.stdout.contains("is refused from now on"), "{replaced:?}");
    assert!(old.join("data").exists(), "the old directory is put aside");
    cluster.start(MOVED);
    cluster.wait_healthy(WAIT);

    // The old machine comes back, at its address, with its certificate and its log.
    let log = cluster.data.join("old.log");
    let child = Command::new(dfs_binary())
        .args(["meta", "--config"])
        .arg(old.join("node.toml"))
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let _old = Old(child);
    let start = Instant::now();
    while !fs::read_to_string(&log)
        .unwrap()
        .contains("has taken the place of meta-2")
    {
        assert!(start.elapsed() < WAIT, "{}", fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = run_in(at, "echo after > new && sync new && cat file new").expect_ok("it disturbs nobody");

    // It is no help either: with the new one and another away, one server is left, and that is no
    // quorum.
    cluster.kill(MOVED);
    cluster.kill("meta-1");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        assert!(
            !has_leader(&cluster) || start.elapsed() < Duration::from_secs(2),
            "a replaced machine has voted"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    // Also after a start of the one that is left.
    cluster.kill("meta-3");
    cluster.start("meta-3");
    std::thread::sleep(Duration::from_secs(3));
    assert!(!has_leader(&cluster), "a replaced machine has voted");
    cluster.start(MOVED);
    let start = Instant::now();
    while !has_leader(&cluster) {
        assert!(start.elapsed() < WAIT, "two of three have no leader");
        std::thread::sleep(Duration::from_millis(100));
    }
    cluster.start("meta-1");
    cluster.wait_healthy(WAIT);
    have_lead(&cluster, MOVED);
    let all = run_in(at, "cat file new").expect_ok("nothing is lost");
    assert_eq!(all.stdout, "before\nafter\n");
    let _ = cluster.down().expect_ok("dev down");
}
