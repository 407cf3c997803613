//! Stores that were condemned: kept until they cannot be needed, and opened again when an administrator says so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::process::run;
use dfs_tests::{DevCluster, shell};

const NODES: [&str; 3] = ["storage-1", "storage-2", "storage-3"];
const WELL_WITHIN: Duration = Duration::from_mins(1);

fn data(cluster: &DevCluster, node: &str) -> PathBuf {
    cluster.data.join("nodes").join(node).join("data")
}

/// What a failed sync leaves behind, while nobody runs.
fn condemn(cluster: &DevCluster, node: &str) {
    fs::write(data(cluster, node).join("chunks/poisoned"), "syncing the log: EIO").unwrap();
}

fn aside(cluster: &DevCluster, node: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(data(cluster, node)).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("aside-"))
        .map(|entry| entry.path())
        .collect()
}

fn wait_for(what: &str, done: impl Fn() -> bool, why: impl Fn() -> String) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < WELL_WITHIN, "waited for {what}: {}", why());
        thread::sleep(Duration::from_millis(100));
    }
}

fn well(cluster: &DevCluster) {
    let detail = || cluster.admin(&["health", "detail"]).stdout;
    wait_for("health", || cluster.admin(&["health"]).ok(), detail);
}

fn write_and_sum(cluster: &DevCluster) -> (PathBuf, String) {
    let file = cluster.mount.join("file");
    shell(&format!(
        "head -c 30000000 /dev/urandom > {0} && sync {0}",
        file.display()
    ));
    let sum = shell(&format!("sha256sum < {}", file.display()));
    (file, sum)
}

fn forget_caches() {
    shell("echo 3 > /proc/sys/vm/drop_caches");
}

/// A hiccup of what all three disks share condemns all three stores: there is no other copy, so nothing is touched, and a word brings all back.
#[test]
fn all_three_are_condemned_and_trusted() {
    let cluster = DevCluster::up();
    let (file, sum) = write_and_sum(&cluster);
    for node in NODES {
        cluster.kill(node);
    }
    for node in NODES {
        condemn(&cluster, node);
        cluster.start(node);
    }
    let detail = || cluster.admin(&["health", "detail"]).stdout;
    let named = || {
        NODES
            .iter()
            .any(|node| detail().contains(&format!("dfs node trust {node} --i-know")))
    };
    wait_for("the way out", named, detail);
    // Whatever they hear meanwhile, they wait.
    thread::sleep(Duration::from_secs(3));
    for node in NODES {
        assert!(data(&cluster, node).join("chunks/poisoned").exists(), "{node}");
        assert!(aside(&cluster, node).is_empty(), "{node}");
    }
    let refused = cluster.admin(&["node", "trust", "storage-1"]);
    assert!(
        !refused.ok() && refused.stderr.contains("--i-know"),
        "{}",
        refused.stderr
    );
    for node in NODES {
        let _ = cluster
            .admin(&["node", "trust", node, "--i-know"])
            .expect_ok("node trust");
    }
    well(&cluster);
    forget_caches();
    assert_eq!(shell(&format!("sha256sum < {}", file.display())), sum);
    for node in NODES {
        assert!(!data(&cluster, node).join("chunks/poisoned").exists(), "{node}");
        assert!(aside(&cluster, node).is_empty(), "{node} was emptied");
    }
    cluster.verify_replicas();
    let refused = cluster.admin(&["node", "trust", "storage-1", "--i-know"]);
    assert!(
        !refused.ok() && refused.stderr.contains("nothing to trust"),
        "{}",
        refused.stderr
    );
    let _ = cluster.down().expect_ok("dev down");
}

/// The syncs of all three disks fail at the same moment, as those of a storage network do that loses its cables. What was synced before is
/// in all three stores, and nobody else has it.
#[test]
fn all_three_disks_fail_to_sync_at_once_and_nothing_that_was_synced_is_lost() {
    let cluster = DevCluster::up();
    let (file, sum) = write_and_sum(&cluster);
    let tracers: Vec<Child> = NODES
        .iter()
        .map(|node| fail_syncs(&cluster.pid(node).to_string()))
        .collect();
    thread::sleep(Duration::from_millis(500));
    let during = cluster.mount.join("during");
    // Over every chain; it fails, unless two replicas synced a chain before their disks refused.
    let _ = run(Command::new("timeout").args(["30", "sh", "-c"]).arg(format!(
        "head -c 40000000 /dev/urandom > {0} && sync {0}",
        during.display()
    )));
    // The last one in sync acknowledges nothing alone, so nothing has to be synced there, and its disk may go unnoticed.
    let condemned = || {
        let is_poisoned = |node: &&str| data(&cluster, node).join("chunks/poisoned").exists();
        NODES.into_iter().filter(is_poisoned).count()
    };
    let detail = || cluster.admin(&["health", "detail"]).stdout;
    wait_for("the verdicts", || condemned() >= 2, detail);
    // Longer than a server tries a start or three.
    thread::sleep(Duration::from_secs(15));
    for node in NODES {
        assert!(aside(&cluster, node).is_empty(), "{node}: {}", detail());
    }
    for mut tracer in tracers {
        let _ = run(Command::new("kill").args(["-TERM", &tracer.id().to_string()]));
        let _ = tracer.wait();
    }
    // Each that health says can be taken back is.
    let taken_back = || {
        for node in NODES {
            if detail().contains(&format!("dfs node trust {node} --i-know")) {
                let _ = cluster.admin(&["node", "trust", node, "--i-know"]);
            }
        }
        cluster.admin(&["health"]).ok()
    };
    wait_for("health", taken_back, detail);
    well(&cluster);
    forget_caches();
    assert_eq!(shell(&format!("sha256sum < {}", file.display())), sum);
    cluster.verify_replicas();
    let again = cluster.mount.join("again");
    shell(&format!(
        "head -c 1000000 /dev/urandom > {0} && sync {0}",
        again.display()
    ));
    let _ = cluster.down().expect_ok("dev down");
}

/// Every sync of a process fails, until it ends.
fn fail_syncs(pid: &str) -> Child {
    Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-p", pid])
        .args(["-e", "trace=fdatasync,fsync", "-e", "signal=none"])
        // The marker of the verdict is synced too, after the failure of the log.
        .args(["-e", "inject=fdatasync,fsync:error=EIO"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("strace is installed")
}

/// One store is condemned. The old one is there, whole, as long as one of the others is away, and goes when both are in sync.
#[test]
fn a_condemned_store_is_kept_until_two_others_are_in_sync() {
    let cluster = DevCluster::up();
    let (file, sum) = write_and_sum(&cluster);
    cluster.kill("storage-3");
    thread::sleep(Duration::from_millis(1_500));
    cluster.kill("storage-2");
    condemn(&cluster, "storage-2");
    let before = shell(&format!(
        "cat {}/chunks/segment-* | sha256sum",
        data(&cluster, "storage-2").display()
    ));
    cluster.start("storage-2");
    let detail = || cluster.admin(&["health", "detail"]).stdout;
    let full = || {
        detail().contains("2 of 3 replicas in sync")
            && !detail().contains("neither")
            && !detail().contains("writes wait")
    };
    wait_for("the new copy", full, detail);
    thread::sleep(Duration::from_secs(3));
    let kept = aside(&cluster, "storage-2");
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(
        shell(&format!("cat {}/segment-* | sha256sum", kept[0].display())),
        before
    );
    let errors = cluster.admin(&["scrub", "errors"]).stdout;
    assert!(errors.contains("aside-"), "{errors}");
    cluster.start("storage-3");
    well(&cluster);
    assert!(
        aside(&cluster, "storage-2").is_empty(),
        "{}",
        cluster.admin(&["scrub", "errors"]).stdout
    );
    forget_caches();
    assert_eq!(shell(&format!("sha256sum < {}", file.display())), sum);
    cluster.verify_replicas();
    let _ = cluster.down().expect_ok("dev down");
}

/// Two disks are gone for good, together: both are given up, and the third goes on with what it has.
#[test]
fn two_last_servers_are_given_up() {
    let cluster = DevCluster::up();
    let (file, sum) = write_and_sum(&cluster);
    let metas = ["meta-1", "meta-2", "meta-3"];
    // Nobody sees which goes first, so in each chain whoever of them was complete is a last server.
    for server in metas.into_iter().chain(["storage-1", "storage-2"]) {
        cluster.kill(server);
    }
    for server in metas {
        cluster.start(server);
    }
    let detail = || cluster.admin(&["health", "detail"]).stdout;
    let both =
        || detail().contains("both storage-1 and storage-2") || detail().contains("both storage-2 and storage-1");
    wait_for("chains that wait for both", both, detail);
    for node in ["storage-1", "storage-2"] {
        let said = cluster.admin(&["node", "accept-data-loss", node]);
        assert!(said.ok(), "{}", said.stderr);
    }
    wait_for(
        "the third to serve",
        || detail().contains("replicas in sync") && !detail().contains("neither read nor written"),
        detail,
    );
    // It was at rest, so the third had everything.
    forget_caches();
    assert_eq!(shell(&format!("sha256sum < {}", file.display())), sum);
    let _ = cluster.down().expect_ok("dev down");
}
