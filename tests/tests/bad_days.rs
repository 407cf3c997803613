//! Nodes die under load; nothing that was acknowledged may be lost, and everything heals by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::history::Appender;
use dfs_tests::{DevCluster, LoopDisk, run_in, shell};

/// How long an application may be held up by one dead server, its return included. By silence alone it would be longer.
const LONGEST_STALL: Duration = Duration::from_millis(1_200);

/// The same for one that stands still: only silence tells.
const LONGEST_STALL_BY_SILENCE: Duration = Duration::from_millis(2_500);

const HEALED_WITHIN: Duration = Duration::from_secs(30);

/// `DFS_TEST_ROUNDS=10` runs the bad days longer, and the power cuts over every server.
fn rounds() -> Option<usize> {
    std::env::var("DFS_TEST_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
}

#[test]
fn one_dead_server_costs_a_pause_and_nothing_else() {
    let cluster = DevCluster::up();
    shell(&format!(
        "head -c 40000000 /dev/urandom > {0}/big && sha256sum < {0}/big > {1}/sum",
        cluster.mount.display(),
        cluster.local().display()
    ));
    let leader = cluster.leader();
    for victim in ["storage-1", "storage-2", "storage-3", leader.as_str()] {
        let mut log = Appender::start(&cluster.mount.join(format!("log-{victim}")));
        thread::sleep(Duration::from_millis(800));
        cluster.kill(victim);
        thread::sleep(Duration::from_secs(4));
        let before = log.acknowledged();
        thread::sleep(Duration::from_secs(1));
        assert!(log.acknowledged() > before, "service is back without {victim}");
        cluster.start(victim);
        cluster.wait_healthy(HEALED_WITHIN);
        log.stop();
        assert_eq!(log.errors(), 0, "errors seen by the application after {victim} died");
        assert!(
            log.longest() < LONGEST_STALL,
            "{victim}: longest stall {:?}",
            log.longest()
        );
        log.check();
        shell(&format!(
            "echo 3 > /proc/sys/vm/drop_caches; sha256sum < {}/big | cmp - {}/sum",
            cluster.mount.display(),
            cluster.local().display()
        ));
        cluster.verify_replicas();
    }
    // Nobody was silent: who was dead could not be heard.
    let quarrels = shell(&format!(
        "grep -h 'do not hear each other' {}/log/meta-*.log || true",
        cluster.data.display()
    ));
    assert_eq!(quarrels, "");
}

#[test]
fn one_server_that_stands_still_costs_a_pause_and_nothing_else() {
    let cluster = DevCluster::up();
    let leader = cluster.leader();
    for victim in ["storage-2", leader.as_str()] {
        let mut log = Appender::start(&cluster.mount.join(format!("log-{victim}")));
        thread::sleep(Duration::from_millis(800));
        let pid = cluster.pid(victim);
        shell(&format!("kill -STOP {pid}"));
        thread::sleep(Duration::from_secs(4));
        let before = log.acknowledged();
        thread::sleep(Duration::from_secs(1));
        let after = log.acknowledged();
        shell(&format!("kill -CONT {pid}"));
        assert!(after > before, "service is back without {victim}");
        cluster.wait_healthy(HEALED_WITHIN);
        log.stop();
        assert_eq!(
            log.errors(),
            0,
            "errors seen by the application while {victim} stood still"
        );
        assert!(
            log.longest() < LONGEST_STALL_BY_SILENCE,
            "{victim}: longest stall {:?}",
            log.longest()
        );
        log.check();
        cluster.verify_replicas();
        let said = fs::read_to_string(cluster.data.join(format!("log/{victim}.log"))).unwrap();
        assert!(said.contains("this process stood still"), "{victim}:\n{said}");
    }
}

#[test]
fn writes_wait_for_a_second_replica_and_then_say_why_not() {
    let cluster = DevCluster::up();
    fs::write(cluster.mount.join("kept"), vec![3; 300_000]).unwrap();
    shell(&format!("sync -f {}/kept", cluster.mount.display()));
    cluster.kill("storage-1");
    thread::sleep(Duration::from_millis(500));
    cluster.wait_settled(HEALED_WITHIN);
    cluster.kill("storage-2");
    thread::sleep(Duration::from_secs(3));

    // The last copy has everything that was acknowledged: reading it is safe.
    shell("echo 3 > /proc/sys/vm/drop_caches");
    assert!(fs::read(cluster.mount.join("kept")).unwrap() == vec![3; 300_000]);

    // A write waits, and fails in the end instead of hanging or pretending.
    let start = Instant::now();
    let refused = run_in(&cluster.mount, "echo new > kept-new && sync kept-new");
    assert!(!refused.ok(), "a write below quorum was acknowledged");
    assert!(start.elapsed() < Duration::from_secs(75), "{:?}", start.elapsed());
    let log = fs::read_to_string(cluster.data.join("log/mount.log")).unwrap();
    assert!(log.contains("in sync"), "the log says why:\n{log}");
    assert!(log.contains("slow request operation=\"fsync\""), "{log}");

    // kill -9 of a process that waits inside the mount works.
    let mut stuck = std::process::Command::new("sh")
        .args(["-c", "echo x > stuck; sync stuck"])
        .current_dir(&cluster.mount)
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_secs(1));
    stuck.kill().unwrap();
    let killed = Instant::now();
    stuck.wait().unwrap();
    assert!(
        killed.elapsed() < Duration::from_secs(35),
        "kill -9 took {:?}",
        killed.elapsed()
    );

    cluster.start("storage-1");
    cluster.start("storage-2");
    cluster.wait_healthy(HEALED_WITHIN);
    assert!(fs::read(cluster.mount.join("kept")).unwrap() == vec![3; 300_000]);
    fs::write(cluster.mount.join("after"), b"works again").unwrap();
    cluster.verify_replicas();
}

#[test]
fn when_nothing_is_written_any_two_nodes_may_go_at_once() {
    let cluster = DevCluster::up();
    let at = &cluster.mount;
    for file in 0..8 {
        fs::write(at.join(format!("file-{file}")), vec![file; 700_000]).unwrap();
    }
    shell(&format!("sync -f {}/file-0", at.display()));
    for (round, victims) in [
        (8, ["storage-1", "storage-2"]),
        (9, ["storage-2", "storage-3"]),
        (10, ["storage-1", "storage-3"]),
    ] {
        cluster.wait_at_rest(HEALED_WITHIN);
        let pids = victims.map(|victim| cluster.pid(victim).to_string());
        shell(&format!("kill -9 {}", pids.join(" ")));
        thread::sleep(Duration::from_millis(500));
        shell("echo 3 > /proc/sys/vm/drop_caches");
        let start = Instant::now();
        for file in 0..round {
            assert!(
                fs::read(at.join(format!("file-{file}"))).unwrap() == vec![file; 700_000],
                "file-{file}"
            );
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{victims:?}: {:?}",
            start.elapsed()
        );
        for victim in victims {
            cluster.start(victim);
        }
        cluster.wait_healthy(HEALED_WITHIN);
        // And a rest ends with the next write, without anybody's waiting for that.
        let start = Instant::now();
        let next = at.join(format!("file-{round}"));
        fs::write(&next, vec![round; 700_000]).unwrap();
        fs::File::open(&next).unwrap().sync_all().unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "the first write took {:?}",
            start.elapsed()
        );
    }
    cluster.verify_replicas();
}

#[test]
fn everything_killed_at_once_comes_back_with_every_fsynced_byte() {
    let cluster = DevCluster::up();
    for round in 0..rounds().unwrap_or(2) {
        let mut log = Appender::start(&cluster.mount.join(format!("log-{round}")));
        thread::sleep(Duration::from_millis(1500));
        let names = [
            "meta-1",
            "meta-2",
            "meta-3",
            "storage-1",
            "storage-2",
            "storage-3",
            "mount",
        ];
        let pids: Vec<_> = names.iter().map(|name| cluster.pid(name).to_string()).collect();
        shell(&format!("kill -9 {}", pids.join(" ")));
        thread::sleep(Duration::from_millis(300));
        log.stop();
        let up = cluster.start_all().expect_ok("dev up after a massacre");
        assert!(up.took < Duration::from_secs(15), "{:?}", up.took);
        cluster.wait_healthy(HEALED_WITHIN);
        assert!(log.acknowledged() > 50, "{} records were written", log.acknowledged());
        log.check();
        cluster.verify_replicas();
    }
}

#[test]
fn a_returning_node_gets_what_it_missed() {
    let cluster = DevCluster::up();
    let at = &cluster.mount;
    for name in ["rewritten", "truncated", "removed", "untouched"] {
        fs::write(at.join(name), vec![1; 9_000_000]).unwrap();
    }
    cluster.kill("storage-2");
    thread::sleep(Duration::from_secs(3));
    fs::write(at.join("rewritten"), vec![2; 9_500_000]).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(at.join("truncated"))
        .unwrap()
        .set_len(5_000_001)
        .unwrap();
    fs::remove_file(at.join("removed")).unwrap();
    fs::write(at.join("new"), vec![4; 5_000_000]).unwrap();
    // Writes go on while it is brought up to date.
    let mut log = Appender::start(&at.join("log"));
    cluster.start("storage-2");
    cluster.wait_healthy(HEALED_WITHIN);
    log.stop();
    log.check();
    cluster.verify_replicas();
    // The copy is good: it alone can answer. Both go at the same moment, and nothing was being written.
    cluster.wait_at_rest(HEALED_WITHIN);
    cluster.kill("storage-1");
    cluster.kill("storage-3");
    thread::sleep(Duration::from_secs(3));
    shell("echo 3 > /proc/sys/vm/drop_caches");
    let read = |name: &str| fs::read(at.join(name)).unwrap();
    assert!(read("rewritten") == vec![2; 9_500_000]);
    assert!(read("truncated") == vec![1; 5_000_001]);
    assert!(read("untouched") == vec![1; 9_000_000]);
    assert!(read("new") == vec![4; 5_000_000]);
    cluster.start("storage-1");
    cluster.start("storage-3");
    cluster.wait_healthy(HEALED_WITHIN);
}

#[test]
fn a_dead_cluster_never_hangs_the_mount() {
    let cluster = DevCluster::up();
    let file = fs::File::create(cluster.mount.join("open")).unwrap();
    for name in ["meta-1", "meta-2", "meta-3", "storage-1", "storage-2", "storage-3"] {
        cluster.kill(name);
    }
    let start = Instant::now();
    assert!(fs::metadata(cluster.mount.join("anything")).is_err());
    assert!(
        start.elapsed() < Duration::from_secs(45),
        "stat took {:?}",
        start.elapsed()
    );
    let _ = file.write_at(b"x", 0);
    drop(file);
    let start = Instant::now();
    let umount = dfs_tests::dfs(["umount", "--force", cluster.mount.to_str().unwrap()]);
    assert!(umount.ok(), "{}{}", umount.stdout, umount.stderr);
    assert!(
        start.elapsed() < Duration::from_secs(45),
        "umount took {:?}",
        start.elapsed()
    );
}

/// The page cache of a killed process survives, that of a machine without power does not. Data directories on file
/// systems of their own, shut down without a flush, show the difference.
#[test]
fn a_power_cut_loses_nothing_that_was_fsynced() {
    let cluster = DevCluster::up();
    let _ = cluster.down().expect_ok("dev down");
    let every = [
        ("storage-2", "ext4"),
        ("meta-1", "ext4"),
        ("meta-3", "xfs"),
        ("storage-1", "xfs"),
        ("storage-3", "ext4"),
        ("meta-2", "ext4"),
    ];
    let some = if rounds().is_some() { every.len() } else { 3 };
    let disks: Vec<_> = every
        .iter()
        .take(some)
        .map(|(name, kind)| (*name, LoopDisk::under(&cluster, name, kind, 1200)))
        .collect();
    let _ = cluster.start_all().expect_ok("dev up");
    for (round, (name, disk)) in
        (0..rounds().unwrap_or(1)).flat_map(|round| disks.iter().map(move |entry| (round, entry)))
    {
        let mut log = Appender::start(&cluster.mount.join(format!("log-{name}-{round}")));
        thread::sleep(Duration::from_millis(1500));
        disk.cut_power(&cluster, name);
        thread::sleep(Duration::from_secs(2));
        disk.mount();
        cluster.start(name);
        cluster.wait_healthy(HEALED_WITHIN);
        log.stop();
        assert_eq!(log.errors(), 0, "errors after the power cut of {name}");
        log.check();
        cluster.verify_replicas();
    }
    let _ = cluster.down().expect_ok("dev down");
}
