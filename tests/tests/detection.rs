//! Failures that silence alone would show late or never: cables that are cut in one direction or between two nodes only, and a disk that
//! has become slow. A cluster with a host each; see `hosts`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::actors::Actor;
use dfs_tests::history::Appender;
use dfs_tests::{HostCluster, shell};

/// What is asked for is a second; a machine that builds something else meanwhile may take some more.
const STALL_MAX: Duration = Duration::from_millis(1_600);

fn wait_for(what: &str, bound: Duration, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < bound, "{what}: not within {bound:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A way to cut a server off, and whom.
type Cut = (&'static str, fn(&HostCluster, usize), fn(&HostCluster) -> String);

fn first_storage(_: &HostCluster) -> String {
    "storage-2".to_owned()
}

#[test]
fn cut_cables_cost_about_a_second_in_every_direction() {
    // All servers would share one disk, and wait for it together when something else uses it.
    let mut cluster = HostCluster::in_memory(1);
    let mount = cluster.mount_points().remove(0);
    let log = mount.join("log");
    let mut writer = Appender::start(&log);
    wait_for("appends", Duration::from_secs(5), || writer.acknowledged() > 5);
    let cuts: [Cut; 5] = [
        ("storage node deaf", |cluster, host| cluster.deafen(host), first_storage),
        ("storage node mute", |cluster, host| cluster.mute(host), first_storage),
        (
            "two storage nodes parted",
            |cluster, host| cluster.part(host, host + 1),
            first_storage,
        ),
        ("leader deaf", |cluster, host| cluster.deafen(host), HostCluster::leader),
        ("leader mute", |cluster, host| cluster.mute(host), HostCluster::leader),
    ];
    for (what, cut, victim) in cuts {
        let victim = victim(&cluster);
        let users = [
            ("metadata user", Actor::metadata_user(mount.clone())),
            ("follower", Actor::follower(log.clone(), Arc::default())),
            ("reader", Actor::reader(&mount).unwrap()),
        ];
        thread::sleep(Duration::from_millis(500));
        let before = writer.acknowledged();
        for (_, user) in &users {
            user.begin();
        }
        // Shown when the test fails, to be held against the servers' logs.
        println!("{what} ({victim}): cut at {}", shell("date -u +%T.%6N").trim());
        cut(&cluster, cluster.host(&victim));
        thread::sleep(Duration::from_millis(2_500));
        let stalls = users.iter().map(|(name, user)| (*name, user.longest()));
        let stalls: Vec<_> = stalls.chain([("writer", writer.longest())]).collect();
        assert!(
            stalls.iter().all(|(_, stall)| *stall < STALL_MAX),
            "{what} ({victim}): {stalls:?}\n{}",
            cluster.logs()
        );
        for (name, user) in &users {
            assert_eq!(user.errors(), Vec::<String>::new(), "{what} ({victim}), the {name}");
        }
        assert!(writer.acknowledged() > before, "{what} ({victim})");
        if what.contains("parted") {
            let health = cluster.admin(&["health", "detail"]);
            assert!(health.stdout.contains("do not hear each other"), "{}", health.stdout);
        }
        drop(users);
        for host in 1..=6 {
            cluster.hosts.clear_rules(host);
        }
        cluster.wait_healthy(Duration::from_secs(20)).unwrap();
    }
    assert_eq!(writer.errors(), 0);
    writer.stop();
    writer.check();
    let _ = cluster.admin(&["chain", "verify", "--deep"]).expect_ok("chain verify");
}

#[test]
fn an_admin_verb_does_not_take_a_late_handshake_for_a_dead_node() {
    let cluster = HostCluster::up(1, false);
    fs::write(cluster.mount_points().remove(0).join("file"), vec![7; 300_000]).unwrap();
    // The verb's host and the node do not hear each other for longer than one handshake may take; everybody else does.
    cluster.part(7, cluster.host("storage-2"));
    let verdict = thread::scope(|scope| {
        let verb = scope.spawn(|| cluster.admin(&["chain", "verify"]));
        thread::sleep(Duration::from_secs(2));
        assert!(!verb.is_finished(), "it has said something already");
        cluster.hosts.clear_rules(7);
        cluster.hosts.clear_rules(cluster.host("storage-2"));
        verb.join().unwrap()
    });
    let _ = verdict.expect_ok("chain verify");
    // A node that stays silent is named, once.
    cluster.part(7, cluster.host("storage-2"));
    let start = Instant::now();
    let verdict = cluster.admin(&["chain", "verify"]);
    let said = format!("{}{}", verdict.stdout, verdict.stderr);
    assert!(said.contains("not compared: storage-2 at "), "{said}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// `strace` on a process, so that its syncs take this long.
struct SlowDisk(Child);

impl SlowDisk {
    fn of(pid: u32, sync: Duration) -> Self {
        let child = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e"])
            .arg(format!("inject=fdatasync,fsync:delay_enter={}", sync.as_micros()))
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed");
        Self(child)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // Killed otherwise, it would leave the process stopped.
        shell(&format!("kill -INT {} || true", self.0.id()));
        let _ = self.0.wait();
    }
}

#[test]
fn a_disk_a_hundred_times_slower_than_its_peers_leaves_and_health_says_why() {
    let mut cluster = HostCluster::up(1, false);
    let mount = cluster.mount_points().remove(0);
    let log = mount.join("log");
    let mut writer = Appender::start(&log);
    wait_for("appends", Duration::from_secs(5), || writer.acknowledged() > 100);
    let slow = SlowDisk::of(
        cluster.servers[cluster.index("storage-2")].pid().unwrap(),
        Duration::from_millis(200),
    );
    let is_aside = || {
        let health = cluster.admin(&["health", "detail"]).stdout;
        health.contains("storage-2 stands aside") && health.contains("slower than its peers")
    };
    wait_for("a slow node stands aside", Duration::from_secs(5), is_aside);
    thread::sleep(Duration::from_millis(300));
    // From here on nobody waits for it.
    let before = (Instant::now(), writer.acknowledged());
    thread::sleep(Duration::from_secs(2));
    let took = before.0.elapsed() / u32::try_from(writer.acknowledged() - before.1).unwrap().max(1);
    assert!(took < Duration::from_millis(60), "an append takes {took:?}");
    drop(slow);
    cluster.wait_healthy(Duration::from_secs(25)).unwrap();
    assert_eq!(writer.errors(), 0);
    writer.stop();
    writer.check();
    let said = fs::read_to_string(cluster.scratch().join("storage-2.log")).unwrap();
    assert!(said.contains("asked to stand aside"), "{said}");
    assert!(said.contains("the disk was slow to sync the store"), "{said}");
}
