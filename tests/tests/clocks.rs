//! Clocks that are wrong: of a metadata server that leads, and of a mount. Files get the right
//! time, and health names the clock.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dfs_tests::{DevCluster, run_in, shell};

/// A test is not more than a minute behind what it looks at.
const NEAR_SECONDS: i64 = 60;

const AHEAD: &str = "+400d";
const WAIT: Duration = Duration::from_secs(30);

/// It goes first where there is nobody to lead.
const WRONG: &str = "meta-1";

#[track_caller]
fn assert_made_now(path: &Path) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
        .cast_signed();
    let found = fs::symlink_metadata(path).unwrap();
    for (which, seconds) in [("mtime", found.mtime()), ("ctime", found.ctime())] {
        let off = seconds - now;
        assert!(off.abs() < NEAR_SECONDS, "{which} of {} is {off} s off", path.display());
    }
}

/// Whatever gets a time without anybody's naming it; seen here and by another mount.
fn use_it(at: &Path, also: &Path, name: &str) {
    let script = format!(
        "mkdir {name}; echo one > {name}/file; ln -s x {name}/link; touch {name}/touched; cp {name}/file {name}/copy
truncate -s 1 {name}/copy; echo two >> {name}/file; mv {name}/touched {name}/moved; chmod 600 {name}/moved; sync {name}/file"
    );
    let _ = run_in(at, &script).expect_ok(name);
    for mount in [at, also] {
        let directory = mount.join(name);
        assert_made_now(&directory);
        for entry in fs::read_dir(&directory).unwrap() {
            assert_made_now(&entry.unwrap().path());
        }
    }
    let explicit = at.join(name).join("file");
    shell(&format!("touch -d '2036-01-01 UTC' {}", explicit.display()));
    assert_eq!(
        fs::metadata(&explicit).unwrap().mtime(),
        2_082_758_400,
        "whoever names a time gets it"
    );
}

fn wait_for(what: &str, done: impl Fn() -> bool, why: impl Fn() -> String) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < WAIT, "waited for {what}: {}", why());
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn files_get_the_right_time_from_a_leader_and_a_mount_whose_clocks_are_wrong() {
    let mut cluster = DevCluster::up();
    let detail = |cluster: &DevCluster| cluster.admin(&["health", "detail"]).stdout;
    cluster.kill(WRONG);
    cluster.start_with_clock(WRONG, AHEAD);
    cluster.wait_settled(WAIT);
    if cluster.leader() != WRONG {
        let leader = cluster.leader();
        cluster.kill(&leader);
        wait_for(
            "the server with the wrong clock to lead",
            || cluster.status().is_some_and(|status| status["meta"]["leader"] == WRONG),
            || cluster.logs(),
        );
        cluster.start(&leader);
    }
    let (mount, other) = (cluster.mount.clone(), cluster.mount_again());
    use_it(&mount, &other, "led-by-it");
    let named = format!("{WRONG}: its clock is 400 days ahead of the cluster's");
    wait_for(
        "health to name the clock",
        || detail(&cluster).contains(&named),
        || detail(&cluster),
    );

    cluster.kill(WRONG);
    wait_for(
        "another leader",
        || cluster.status().is_some_and(|status| status["meta"]["leader"] != WRONG),
        || cluster.logs(),
    );
    use_it(&mount, &other, "after-it");
    cluster.start(WRONG);
    cluster.wait_healthy(WAIT);

    let wrong = cluster.mount_with_clock("+10y");
    use_it(&wrong, &other, "by-it");
    wait_for(
        "health to name the mount",
        || {
            let detail = detail(&cluster);
            detail.contains("mnt-clock: its clock is 36") && detail.contains("days ahead of the cluster's")
        },
        || detail(&cluster),
    );
    let _ = cluster.down().expect_ok("dev down");
}
