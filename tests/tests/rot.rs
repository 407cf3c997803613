//! Bits that flip on the disk of one node: never a wrong byte at the mount, and everything sound again by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::{DevCluster, dfs, run, run_in, shell};
use serde_json::Value;

/// From the flip to a cluster that is well again.
const MENDED_WITHIN: Duration = Duration::from_mins(1);

/// What is damaged, and how.
type Harm = (&'static str, fn(&DevCluster));

/// Where in a file's bytes a metadata server is harmed.
type Place = (&'static str, &'static str, &'static str, fn(&[u8]) -> usize);

/// Written before the flips, read at every step.
struct Files {
    sums: Vec<(PathBuf, String)>,
}

impl Files {
    fn write(at: &Path) -> Self {
        let mut sums = Vec::new();
        for (name, bytes) in [("large", 24 << 20), ("small", 5_000), ("other", 3 << 20)] {
            let path = at.join(name);
            shell(&format!(
                "head -c {bytes} /dev/urandom > {0} && sync {0}",
                path.display()
            ));
            sums.push((path.clone(), sum(&path)));
        }
        Self { sums }
    }

    /// Everything reads as it was written, from the disks.
    #[track_caller]
    fn check(&self) {
        shell("echo 3 > /proc/sys/vm/drop_caches");
        for (path, expected) in &self.sums {
            assert_eq!(&sum(path), expected, "{}", path.display());
        }
    }
}

fn sum(path: &Path) -> String {
    shell(&format!("sha256sum < {}", path.display()))
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    file.sync_all().unwrap();
}

fn chunks(cluster: &DevCluster, node: &str) -> PathBuf {
    cluster.data.join("nodes").join(node).join("data/chunks")
}

/// Segments that hold records, and where in each the nth record begins.
fn records(cluster: &DevCluster, node: &str) -> Vec<(PathBuf, Vec<u64>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(chunks(cluster, node)).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_string_lossy().starts_with("segment-") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let offsets: Vec<u64> = (4096..bytes.len().saturating_sub(64))
            .step_by(64)
            .filter(|&at| bytes[at..].starts_with(b"dfsR"))
            .map(|at| at as u64)
            .collect();
        if !offsets.is_empty() {
            found.push((path, offsets));
        }
    }
    assert!(!found.is_empty(), "{node} has no records");
    found
}

/// What the nodes say of what they found.
fn errors(cluster: &DevCluster) -> Vec<Value> {
    let text = cluster.admin(&["scrub", "errors", "-o", "json"]).stdout;
    let nodes: Value = serde_json::from_str(&text).expect("scrub errors prints JSON");
    let nodes = nodes.as_array().unwrap().iter();
    nodes
        .flat_map(|node| node["errors"].as_array().unwrap().clone())
        .collect()
}

#[track_caller]
fn wait_well(cluster: &DevCluster, start: Instant) {
    cluster.wait_healthy(MENDED_WITHIN.saturating_sub(start.elapsed()));
}

/// While it runs: data of one node after the other, found by a scrub or by a reader, mended from the others.
#[test]
fn data_of_a_running_node() {
    let cluster = DevCluster::up();
    let files = Files::write(&cluster.mount);
    for node in ["storage-1", "storage-2", "storage-3"] {
        let start = Instant::now();
        for (path, offsets) in records(&cluster, node) {
            // In the middle of what each third record holds.
            for pair in offsets.windows(2).step_by(3) {
                flip(&path, u64::midpoint(pair[0], pair[1]));
            }
        }
        files.check();
        // One of them is found by whoever opens every block everywhere, the others by a scrub.
        if node == "storage-2" {
            verify(&cluster);
        } else {
            let _ = cluster.admin(&["scrub", "start", "--wait"]).expect_ok("scrub");
        }
        wait_well(&cluster, start);
        let found = errors(&cluster);
        assert!(found.iter().any(|error| error["node"] == node), "{found:?}");
        assert!(
            found.iter().all(|error| error["outcome"] != "being mended"),
            "{found:?}"
        );
        files.check();
        verify(&cluster);
        cluster.verify_replicas();
    }
    let _ = cluster.down().expect_ok("dev down");
}

/// Every block of every file opens on all three nodes, after at most a moment for what was damaged to be mended.
#[track_caller]
fn verify(cluster: &DevCluster) {
    let at = cluster.mount.to_str().unwrap();
    let verified = dfs(["verify", at, "-o", "json"]).expect_ok("dfs verify");
    let files: Value = serde_json::from_str(&verified.stdout).unwrap();
    let files = files.as_array().unwrap();
    assert_eq!(files.len(), 3, "{files:#?}");
    for file in files {
        let replicas = file["replicas"].as_array().unwrap();
        assert!(file["sound"] == true && replicas.len() == 3, "{file:#}");
        let blocks = |replica: &Value| replica["blocks"].as_u64().unwrap();
        assert!(blocks(&replicas[0]) > 0 && replicas.iter().all(|replica| blocks(replica) == blocks(&replicas[0])));
    }
}

/// At rest: each kind of structure of a storage node.
#[test]
fn structures_of_a_stopped_storage_node() {
    let cluster = DevCluster::up();
    let files = Files::write(&cluster.mount);
    let kinds: [Harm; 5] = [
        ("data", |cluster| {
            for (path, offsets) in records(cluster, "storage-2") {
                for pair in offsets.windows(2).take(1) {
                    flip(&path, u64::midpoint(pair[0], pair[1]));
                }
            }
        }),
        ("record header", |cluster| {
            // With a checkpoint the old records' headers are not needed any more, nor looked at.
            let _ = fs::remove_file(chunks(cluster, "storage-2").join("checkpoint"));
            for (path, offsets) in records(cluster, "storage-2") {
                flip(&path, offsets[offsets.len() / 2] + 40);
            }
        }),
        ("segment header", |cluster| {
            flip(&records(cluster, "storage-2")[0].0, 30);
        }),
        ("checkpoint", |cluster| {
            flip(&chunks(cluster, "storage-2").join("checkpoint"), 60);
        }),
        ("superblock", |cluster| {
            flip(&chunks(cluster, "storage-2").join("superblock"), 20);
        }),
    ];
    for (kind, damage) in kinds {
        cluster.kill("storage-2");
        damage(&cluster);
        let start = Instant::now();
        cluster.start("storage-2");
        files.check();
        wait_well(&cluster, start);
        let _ = cluster.admin(&["scrub", "start", "--wait"]).expect_ok(kind);
        let found = errors(&cluster);
        let here = found
            .iter()
            .any(|error| error["node"] == "storage-2" && error["found_by"] == "start");
        // What the checkpoint already knows is not looked at again: then the scrub finds it.
        assert!(
            here || found.iter().any(|error| error["node"] == "storage-2"),
            "{kind}: {found:?}"
        );
        files.check();
        cluster.verify_replicas();
    }
    let _ = cluster.down().expect_ok("dev down");
}

/// Kills it, and waits until its chains have heard of that: who dies last has the last word.
fn kill_and_wait(cluster: &DevCluster, node: &str) {
    cluster.kill(node);
    let start = Instant::now();
    loop {
        let listed = cluster.admin(&["chain", "list", "-o", "json"]).stdout;
        let chains: Value = serde_json::from_str(&listed).expect("chain list prints JSON");
        let serves = |chain: &Value| {
            let members = chain["members"].as_array().unwrap().iter();
            members
                .clone()
                .any(|member| member["name"] == node && member["state"] == "serving")
        };
        if !chains.as_array().unwrap().iter().any(serves) {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{node} is dead and serves: {listed}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// Every fourth record of a stopped node is lost: the store notices when it is opened.
fn lose_records(cluster: &DevCluster, node: &str) {
    fs::remove_file(chunks(cluster, node).join("checkpoint")).ok();
    for (path, offsets) in records(cluster, node) {
        for &offset in offsets.iter().step_by(4) {
            flip(&path, offset + 40);
        }
    }
}

/// Every node is stopped, and the damaged one is the first to come back: its loss is not made everybody's.
#[test]
fn the_damaged_node_comes_back_first() {
    let cluster = DevCluster::up();
    let files = Files::write(&cluster.mount);
    for node in ["storage-1", "storage-2", "storage-3"] {
        kill_and_wait(&cluster, node);
    }
    lose_records(&cluster, "storage-1");
    let start = Instant::now();
    cluster.start("storage-1");
    thread::sleep(Duration::from_secs(2));
    cluster.start("storage-2");
    cluster.start("storage-3");
    wait_well(&cluster, start);
    files.check();
    cluster.verify_replicas();
    let _ = cluster.down().expect_ok("dev down");
}

/// The same, and it was the last one that served: nobody knows whether the others lack something, so they are not taken for it, and
/// nothing is read, until an administrator decides.
#[test]
fn the_damaged_node_was_the_last_server() {
    let cluster = DevCluster::up();
    let files = Files::write(&cluster.mount);
    for node in ["storage-3", "storage-2", "storage-1"] {
        kill_and_wait(&cluster, node);
    }
    lose_records(&cluster, "storage-1");
    for node in ["storage-1", "storage-2", "storage-3"] {
        cluster.start(node);
    }
    let start = Instant::now();
    let why = || cluster.admin(&["health", "detail"]).stdout;
    while !why().contains("storage-1 came with another disk") {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", why());
        thread::sleep(Duration::from_millis(100));
    }
    assert!(why().contains("accept-data-loss"), "{}", why());
    shell("echo 3 > /proc/sys/vm/drop_caches");
    for (path, expected) in &files.sums {
        let read = run_in(
            &cluster.mount,
            &format!("timeout -s KILL 3 sha256sum < {}", path.display()),
        );
        assert!(!read.ok() || &read.stdout == expected, "{}", path.display());
    }
    // With two of three gone nothing could be acknowledged, so here the others have it all.
    let start = Instant::now();
    let _ = cluster
        .admin(&["node", "accept-data-loss", "storage-1"])
        .expect_ok("accept-data-loss");
    wait_well(&cluster, start);
    files.check();
    cluster.verify_replicas();
    let _ = cluster.down().expect_ok("dev down");
}

/// In every record of data that this node has.
fn rot_second_block(cluster: &DevCluster, node: &str) {
    for (path, offsets) in records(cluster, node) {
        for &offset in &offsets {
            flip(&path, offset + 128 + 4 * 49 + 28 * 49 + 8_000);
        }
    }
}

fn wait_lost(cluster: &DevCluster) {
    let start = Instant::now();
    loop {
        let health = cluster.admin(&["health", "detail"]).stdout;
        if health.contains("nobody has a sound copy") {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{health}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// The same blocks are rotten on all three: an error, never other bytes, and it is said; what is written anew is sound.
#[test]
fn what_is_rotten_everywhere_is_an_error() {
    let cluster = DevCluster::up();
    let path = cluster.mount.join("file");
    shell(&format!(
        "head -c 200000 /dev/urandom > {0} && sync {0}",
        path.display()
    ));
    for node in ["storage-1", "storage-2", "storage-3"] {
        rot_second_block(&cluster, node);
    }
    shell("echo 3 > /proc/sys/vm/drop_caches");
    let error = fs::read(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    wait_lost(&cluster);
    assert!(
        errors(&cluster)
            .iter()
            .any(|error| error["outcome"].as_str().unwrap().starts_with("lost"))
    );
    let verified = dfs(["verify", path.to_str().unwrap()]);
    assert!(
        !verified.ok() && verified.stdout.contains("damaged") && verified.stdout.contains("chunk 0 block 1"),
        "{}{}",
        verified.stdout,
        verified.stderr
    );
    let said = cluster.admin(&["scrub", "errors"]).stdout;
    assert!(said.contains("lost: write those blocks again, or restore"), "{said}");
    // A node that comes with an empty disk waits for it, and does not fill the logs meanwhile.
    cluster.kill("storage-3");
    shell(&format!(
        "find {}/nodes/storage-3/data -mindepth 1 -delete",
        cluster.data.display()
    ));
    cluster.start("storage-3");
    thread::sleep(Duration::from_secs(8));
    let health = cluster.admin(&["health", "detail"]).stdout;
    assert!(health.contains("2 of 3 replicas in sync"), "{health}");
    let count = format!("cat {}/log/*.log | grep -c 'not copied yet'", cluster.data.display());
    let lines: usize = shell(&count).trim().parse().unwrap();
    assert!((1..=3).contains(&lines), "{lines} lines in 8 s");
    // Written anew, it is whole, and that is seen as soon as somebody asks.
    shell(&format!(
        "head -c 200000 /dev/urandom > {0} && sync {0}",
        path.display()
    ));
    shell("echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(fs::read(&path).unwrap().len(), 200_000);
    let _ = cluster.admin(&["scrub", "start", "--wait"]).expect_ok("scrub");
    cluster.wait_healthy(Duration::from_secs(10));
    // Or it goes with its file.
    for node in ["storage-1", "storage-2", "storage-3"] {
        rot_second_block(&cluster, node);
    }
    shell("echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(fs::read(&path).unwrap_err().raw_os_error(), Some(5));
    wait_lost(&cluster);
    fs::remove_file(&path).unwrap();
    let start = Instant::now();
    while !cluster.admin(&["scrub", "start", "--wait"]).ok() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{}",
            cluster.admin(&["scrub", "errors"]).stdout
        );
    }
    cluster.wait_healthy(Duration::from_secs(10));
    let _ = cluster.down().expect_ok("dev down");
}

/// Files of a metadata server below `data`, whose names contain `name`, largest first.
fn metadata_files(cluster: &DevCluster, server: &str, below: &str, name: &str) -> Vec<PathBuf> {
    let root = cluster.data.join("nodes").join(server).join("data").join(below);
    let listed = shell(&format!(
        "find {} -type f -size +0 -printf '%s %p\\n' | sort -rn",
        root.display()
    ));
    let paths = listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(_, path)| PathBuf::from(path));
    paths
        .filter(|path| path.file_name().unwrap().to_string_lossy().contains(name))
        .collect()
}

/// At rest: each kind of structure of a metadata server.
#[test]
fn structures_of_a_stopped_metadata_server() {
    let cluster = DevCluster::up();
    // Snapshots often enough that there are some.
    let _ = cluster.down().expect_ok("dev down");
    for server in ["meta-1", "meta-2", "meta-3"] {
        let config = cluster.data.join("nodes").join(server).join("node.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replacen("[node]\n", "[node]\nsnapshot_every = 100\n", 1)).unwrap();
    }
    let _ = cluster.start_all().expect_ok("dev up");
    let files = Files::write(&cluster.mount);
    for n in 0..300 {
        fs::write(cluster.mount.join(format!("name-{n}")), "x").unwrap();
    }
    let names = || fs::read_dir(&cluster.mount).unwrap().count();
    let all = names();
    // In the middle of what was written, where an entry stands; not in the end, which a crash may tear.
    let kinds: [Place; 4] = [
        ("log", "raft", ".seg", |bytes| {
            bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0) / 2
        }),
        ("vote", "raft", "vote", |_| 45),
        ("snapshot", "raft/snapshots", ".snap", |bytes| bytes.len() / 2),
        ("sled", "state", "db", |bytes| {
            bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0) / 2
        }),
    ];
    for (kind, below, name, place) in kinds {
        // A follower that then leads, or the leader itself.
        let leader = cluster.leader();
        for server in [leader.as_str(), if leader == "meta-2" { "meta-3" } else { "meta-2" }] {
            cluster.kill(server);
            thread::sleep(Duration::from_millis(500));
            let path = metadata_files(&cluster, server, below, name).remove(0);
            let bytes = fs::read(&path).unwrap();
            flip(&path, place(&bytes) as u64);
            let start = Instant::now();
            cluster.start(server);
            wait_well(&cluster, start);
            files.check();
            assert_eq!(names(), all, "{kind} of {server}");
            fs::write(cluster.mount.join("again"), kind).unwrap();
            fs::remove_file(cluster.mount.join("again")).unwrap();
            if kind != "vote" {
                let found = errors(&cluster);
                assert!(
                    found.iter().any(|error| error["node"] == server),
                    "{kind} of {server}: {found:?}"
                );
            }
        }
    }
    let _ = cluster.down().expect_ok("dev down");
}

/// A disk that fails to sync, with the marker that says so: the node leaves, is emptied, and filled again, by itself.
#[test]
fn a_node_whose_syncs_fail_is_rebuilt() {
    let cluster = DevCluster::up();
    let files = Files::write(&cluster.mount);
    let pid = cluster.pid("storage-2").to_string();
    let mut tracer = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-p",
            &pid,
            "-e",
            "trace=fdatasync,fsync",
            "-e",
            "signal=none",
        ])
        // The first fdatasync of each thread, and whatever the same thread syncs next to record it.
        .args(["-e", "inject=fdatasync,fsync:error=EIO:when=1..4"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("strace is installed");
    thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    let kept = cluster.mount.join("kept");
    // Over every chain: of a chain's members only those sync that the file's level counts.
    shell(&format!(
        "head -c 40000000 /dev/urandom > {0} && sync {0}",
        kept.display()
    ));
    let expected = sum(&kept);
    // It says why: the log's own thread was the first to be refused, or the one that makes its next segment.
    let says_why = |why: &str| {
        ["syncing the log", "making a log segment"]
            .iter()
            .any(|what| why.contains(what))
    };
    let mut why = String::new();
    while start.elapsed() < Duration::from_secs(20) && !says_why(&why) {
        why = cluster.admin(&["health", "detail"]).stdout + &cluster.admin(&["scrub", "errors"]).stdout;
        thread::sleep(Duration::from_millis(100));
    }
    assert!(says_why(&why), "{why}");
    let _ = run(Command::new("kill").args(["-TERM", &tracer.id().to_string()]));
    let _ = tracer.wait();
    wait_well(&cluster, start);
    let found = errors(&cluster);
    let rebuilt = |error: &Value| {
        error["node"] == "storage-2"
            && error["what"].as_str().unwrap().contains("emptied")
            && error["outcome"] == "rebuilt"
    };
    assert!(found.iter().any(rebuilt), "{found:?}");
    files.check();
    assert_eq!(sum(&kept), expected);
    cluster.verify_replicas();
    let _ = cluster.down().expect_ok("dev down");
}
