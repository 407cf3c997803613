//! Storage nodes come, go, and change their disks; nothing that was acknowledged may be lost.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::history::Appender;
use dfs_tests::{DevCluster, dfs, shell};
use serde_json::Value;

const HEALED_WITHIN: Duration = Duration::from_mins(1);

fn wait_for(what: &str, bound: Duration, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < bound, "{what}: not within {bound:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

fn disk(cluster: &DevCluster, node: &str) -> PathBuf {
    cluster.data.join("nodes").join(node).join("data")
}

fn forget_caches() {
    shell("echo 3 > /proc/sys/vm/drop_caches");
}

fn write(at: &Path, byte: u8) {
    fs::write(at, vec![byte; 9_000_000]).unwrap();
    shell(&format!("sync {}", at.display()));
}

#[test]
fn a_replaced_disk_is_rebuilt_and_nothing_is_lost() {
    let cluster = DevCluster::up();
    let file = cluster.mount.join("file");
    write(&file, 7);
    for node in ["storage-2", "storage-1", "storage-3"] {
        cluster.kill(node);
        thread::sleep(Duration::from_millis(300));
        fs::remove_dir_all(disk(&cluster, node)).unwrap();
        cluster.start(node);
        cluster.wait_healthy(HEALED_WITHIN);
    }
    // Not one of the disks is the one that was written to.
    forget_caches();
    assert!(fs::read(&file).unwrap() == vec![7; 9_000_000]);
    cluster.verify_replicas();
}

#[test]
fn an_empty_disk_is_never_taken_for_the_last_complete_copy() {
    let cluster = DevCluster::up();
    let file = cluster.mount.join("file");
    write(&file, 7);
    for node in ["storage-1", "storage-2", "storage-3"] {
        cluster.kill(node);
        thread::sleep(Duration::from_millis(1_500));
    }
    // storage-3 was the last. Its disk is taken out, and an empty one is in its place.
    let old = disk(&cluster, "storage-3");
    let kept = old.with_extension("kept");
    fs::rename(&old, &kept).unwrap();
    for node in ["storage-3", "storage-1", "storage-2"] {
        cluster.start(node);
    }
    let why = || cluster.admin(&["health", "detail"]).stdout;
    wait_for("health names the disk", Duration::from_secs(10), || {
        let why = why();
        why.contains("storage-3 came with another disk") && why.contains("bring that disk back")
    });
    thread::sleep(Duration::from_secs(3));
    forget_caches();
    let read = fs::read(&file);
    assert!(
        read.as_ref().map_or(true, |bytes| *bytes == vec![7; 9_000_000]),
        "what was acknowledged reads as something else"
    );
    assert!(why().contains("failed"), "{}", why());

    cluster.kill("storage-3");
    fs::remove_dir_all(&old).unwrap();
    fs::rename(&kept, &old).unwrap();
    cluster.start("storage-3");
    cluster.wait_healthy(HEALED_WITHIN);
    forget_caches();
    assert!(fs::read(&file).unwrap() == vec![7; 9_000_000]);
    write(&cluster.mount.join("new"), 9);
    cluster.verify_replicas();
}

#[test]
fn the_last_copy_can_be_given_up_for_the_one_that_left_before_it() {
    let cluster = DevCluster::up();
    let file = cluster.mount.join("file");
    write(&file, 7);
    for node in ["storage-1", "storage-2", "storage-3"] {
        cluster.kill(node);
        thread::sleep(Duration::from_millis(1_500));
    }
    fs::remove_dir_all(disk(&cluster, "storage-3")).unwrap();
    for node in ["storage-3", "storage-2"] {
        cluster.start(node);
    }
    let refused = cluster.admin(&["node", "remove", "storage-3"]);
    assert!(
        !refused.ok() && refused.stderr.contains("accept-data-loss"),
        "{}",
        refused.stderr
    );
    let refused = cluster.admin(&["node", "drain", "storage-3"]);
    assert!(
        !refused.ok() && refused.stderr.contains("only complete copy"),
        "{}",
        refused.stderr
    );
    let _ = cluster
        .admin(&["node", "accept-data-loss", "storage-3"])
        .expect_ok("accept-data-loss");
    // With two of three nothing could be written, so what storage-2 has is all there was.
    cluster.start("storage-1");
    cluster.wait_healthy(HEALED_WITHIN);
    forget_caches();
    assert!(fs::read(&file).unwrap() == vec![7; 9_000_000]);
    write(&cluster.mount.join("new"), 9);
    cluster.verify_replicas();
}

fn chains(cluster: &DevCluster) -> Vec<Value> {
    let listed = cluster.admin(&["chain", "list", "-o", "json"]).expect_ok("chain list");
    serde_json::from_str(&listed.stdout).unwrap()
}

fn members(chain: &Value) -> &Vec<Value> {
    chain["members"].as_array().unwrap()
}

/// Chains by node, or `None` while any chain is on its way.
fn loads(cluster: &DevCluster, node: &str) -> Option<usize> {
    let chains = chains(cluster);
    let calm = chains
        .iter()
        .all(|chain| members(chain).len() == 3 && members(chain).iter().all(|member| member["state"] == "serving"));
    let of_node = |chain: &&Value| members(chain).iter().any(|member| member["name"] == node);
    calm.then(|| chains.iter().filter(of_node).count())
}

const ENOUGH_LOOKS: u64 = 20;

/// Looks all the time whether every chain has three that serve.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<(u64, Vec<String>)>,
}

impl Watch {
    fn start(cluster: &DevCluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (over, config) = (Arc::clone(&stop), cluster.config());
        let thread = thread::spawn(move || {
            let (mut looks, mut too_few) = (0, Vec::new());
            // A few looks in any case: moving everything may take no longer than ten of them.
            while looks < ENOUGH_LOOKS || !over.load(Ordering::SeqCst) {
                let listed = dfs(["chain", "list", "-o", "json", "--cluster", config.to_str().unwrap()]);
                let Ok(Value::Array(chains)) = serde_json::from_str(&listed.stdout) else {
                    continue;
                };
                looks += 1;
                for chain in &chains {
                    let serving = members(chain).iter().filter(|member| member["state"] == "serving");
                    if serving.count() < 3 {
                        too_few.push(chain.to_string());
                    }
                }
                thread::sleep(Duration::from_millis(100));
            }
            (looks, too_few)
        });
        Self { stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        let (looks, too_few) = self.thread.join().unwrap();
        assert!(looks >= ENOUGH_LOOKS, "{looks} looks");
        assert_eq!(too_few, Vec::<String>::new(), "fewer than three in sync");
    }
}

#[test]
fn a_fourth_node_takes_over_chains_and_another_one_drains_and_is_removed_while_files_are_written() {
    let cluster = DevCluster::up();
    shell(&format!(
        "head -c 200000000 /dev/urandom > {0}/big && sync {0}/big && sha256sum < {0}/big > {1}/sum",
        cluster.mount.display(),
        cluster.local().display()
    ));
    let refused = cluster.admin(&["node", "drain", "storage-1"]);
    assert!(
        !refused.ok() && refused.stderr.contains("add one first"),
        "{}",
        refused.stderr
    );
    let mut log = Appender::start(&cluster.mount.join("log"));
    let watch = Watch::start(&cluster);

    // Like those that `dev up` chooses: not one that the kernel may give to a connection meanwhile.
    let first = 10_240 + u16::try_from(std::process::id() % 20_000).unwrap();
    let mut ports = (first..32_768).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let port = ports.find(|port| UdpSocket::bind(port).is_ok()).unwrap();
    let _ = dfs(["node", "add", cluster.data.to_str().unwrap(), &format!("4={port}")]).expect_ok("node add");
    let start = Instant::now();
    cluster.start("storage-4");
    wait_for("chains move to the new node", Duration::from_mins(2), || {
        loads(&cluster, "storage-4").is_some_and(|chains| chains >= 4)
    });
    let balanced = start.elapsed();

    let start = Instant::now();
    let _ = cluster.admin(&["node", "drain", "storage-1"]).expect_ok("drain");
    wait_for("storage-1 is in no chain", Duration::from_mins(2), || {
        loads(&cluster, "storage-1") == Some(0)
    });
    let drained = start.elapsed();
    // What it had is deleted there.
    wait_for("its space is free", Duration::from_secs(20), || {
        let shown = cluster
            .admin(&["node", "show", "storage-1", "-o", "json"])
            .expect_ok("show");
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(shown["duty"], "draining");
        shown["used_bytes"].as_u64().unwrap() < 1_000_000
    });
    let running = cluster.admin(&["node", "remove", "storage-1"]);
    assert!(
        !running.ok() && running.stderr.contains("stop it first"),
        "{}",
        running.stderr
    );
    cluster.kill("storage-1");
    wait_for("storage-1 is removed", Duration::from_secs(10), || {
        cluster.admin(&["node", "remove", "storage-1"]).ok()
    });
    watch.end();
    log.stop();
    assert_eq!(log.errors(), 0, "errors seen by the application\n{}", cluster.logs());
    log.check();
    assert!(log.longest() < Duration::from_millis(1_500), "{:?}", log.longest());
    cluster.wait_healthy(HEALED_WITHIN);
    cluster.verify_replicas();
    forget_caches();
    shell(&format!(
        "sha256sum < {}/big | cmp - {}/sum",
        cluster.mount.display(),
        cluster.local().display()
    ));
    let one = cluster.admin(&["node", "ok-to-stop", "storage-2"]);
    assert!(one.ok(), "{}{}", one.stdout, one.stderr);
    let two = cluster.admin(&["node", "ok-to-stop", "storage-2", "storage-3"]);
    assert!(
        two.code == Some(3) && two.stdout.contains("writes would wait"),
        "{}",
        two.stdout
    );
    let _ = cluster
        .admin(&["node", "maintenance", "storage-2"])
        .expect_ok("maintenance");
    cluster.kill("storage-2");
    wait_for(
        "health says that it is away on purpose",
        Duration::from_secs(10),
        || {
            cluster
                .admin(&["health", "detail"])
                .stdout
                .contains("away for maintenance")
        },
    );
    cluster.start("storage-2");
    let _ = cluster
        .admin(&["node", "maintenance", "storage-2", "--end"])
        .expect_ok("maintenance --end");
    cluster.wait_healthy(HEALED_WITHIN);
    eprintln!(
        "balanced after {balanced:.1?}, drained after {drained:.1?}, longest append {:?}",
        log.longest()
    );
}

#[test]
fn resyncs_can_be_paused_and_go_on() {
    let cluster = DevCluster::up();
    write(&cluster.mount.join("before"), 1);
    let _ = cluster.admin(&["resync", "pause"]).expect_ok("pause");
    cluster.kill("storage-2");
    thread::sleep(Duration::from_secs(1));
    let file = cluster.mount.join("file");
    write(&file, 7);
    cluster.start("storage-2");
    let syncing = || {
        let chains = chains(&cluster);
        let states = chains.iter().flat_map(|chain| members(chain).clone());
        states
            .filter(|member| member["state"] == "syncing" || member["state"] == "waiting")
            .count()
    };
    wait_for("storage-2 is back", Duration::from_secs(20), || syncing() > 0);
    thread::sleep(Duration::from_secs(3));
    assert!(syncing() > 0, "nothing is copied meanwhile");
    let health = cluster.admin(&["health", "detail"]);
    assert!(
        !health.ok() && health.stdout.contains("dfs resync resume"),
        "{}",
        health.stdout
    );
    let status = cluster.admin(&["resync", "status"]).expect_ok("resync status");
    assert!(status.stdout.contains("paused"), "{}", status.stdout);
    // Writes go on, also of what waits to be copied.
    write(&file, 8);
    let _ = cluster.admin(&["resync", "resume"]).expect_ok("resume");
    cluster.wait_healthy(HEALED_WITHIN);
    forget_caches();
    assert!(fs::read(&file).unwrap() == vec![8; 9_000_000]);
    cluster.verify_replicas();
}

/// How many chains each node heads, most first; and the fewest members that serve one of them.
fn heads_and_fewest(status: &Value) -> (Vec<usize>, usize) {
    let chains = status["chains"].as_array().unwrap();
    let heads = ["storage-1", "storage-2", "storage-3"].map(|node| {
        let headed = chains.iter().filter(|chain| chain["members"][0]["name"] == node);
        headed.count()
    });
    let serving = |chain: &Value| {
        let members = chain["members"].as_array().unwrap().iter();
        members.filter(|member| member["state"] == "serving").count()
    };
    let mut heads = heads.to_vec();
    heads.sort_unstable_by(|a, b| b.cmp(a));
    (heads, chains.iter().map(serving).min().unwrap())
}

/// Who was away comes back as a tail.
#[test]
fn after_a_rolling_restart_every_node_heads_as_many_chains_as_before() {
    let cluster = DevCluster::up();
    let (before, _) = heads_and_fewest(&cluster.status().unwrap());
    for node in ["storage-1", "storage-2", "storage-3"] {
        cluster.kill(node);
        cluster.start(node);
        cluster.wait_healthy(HEALED_WITHIN);
    }
    let (uneven, _) = heads_and_fewest(&cluster.status().unwrap());
    assert_ne!(uneven, before, "nothing to mend");
    // Somebody who writes now and then, to all chains, and lets them rest in between.
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    for round in 0_u8.. {
        let began = Instant::now();
        let at = cluster.mount.join(format!("file-{}", round % 8));
        write(&at, round);
        forget_caches();
        assert!(fs::read(&at).unwrap() == vec![round; 9_000_000]);
        longest = longest.max(began.elapsed());
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let (_, fewest) = heads_and_fewest(&cluster.status().unwrap());
            assert_eq!(fewest, 3, "a chain with fewer copies");
            thread::sleep(Duration::from_millis(50));
        }
        if heads_and_fewest(&cluster.status().unwrap()).0 == before {
            break;
        }
        assert!(
            start.elapsed() < 2 * HEALED_WITHIN,
            "{uneven:?} is still not {before:?}"
        );
    }
    println!(
        "{uneven:?}, {before:?} again after {:?}; the longest round took {longest:?}",
        start.elapsed()
    );
    cluster.verify_replicas();
}
