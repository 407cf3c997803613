//! What a cluster writes into its logs: nothing that alarms while it is healthy, and one line, not one a second, of what is not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::thread;
use std::time::Duration;

use dfs_tests::{DevCluster, run_in};

/// Opens by programs that ask for everything once, names that are not there, locks, and more than one segment of data.
const USE: &str = r#"
python3 -c "
import os
for i in range(300):
    with open(f'file-{i}', 'w') as out: print(i, file=out)
    assert open(f'file-{i}').read() == f'{i}\n'
    assert not os.path.exists(f'no-file-{i}')"
sqlite3 data.db 'create table t(x); insert into t values (1), (2); select sum(x) from t'
head -c 100M /dev/zero > big && sync big && rm -rf file-1* big
ls -lR . > /dev/null && df . > /dev/null && chmod 600 file-2* && truncate -s 5 file-2*
"#;

/// Lines that say that something is wrong. That this machine is too slow for a moment is its own matter.
fn alarms(cluster: &DevCluster) -> Vec<String> {
    let mut alarms = Vec::new();
    for entry in fs::read_dir(cluster.data.join("log")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let alarming = text
            .lines()
            .filter(|line| (line.contains(" WARN ") || line.contains(" ERROR ")) && !line.contains("stood still"));
        alarms.extend(alarming.map(|line| format!("{name}: {line}")));
    }
    alarms
}

#[test]
fn logs_tell_what_is_wrong_and_nothing_else() {
    let cluster = DevCluster::up();
    let _ = run_in(&cluster.mount, USE).expect_ok("ordinary use");
    thread::sleep(Duration::from_secs(5));
    assert_eq!(
        alarms(&cluster),
        [""; 0],
        "a healthy cluster has nothing to complain of"
    );

    let away = ["meta-1", "meta-2", "meta-3"]
        .into_iter()
        .find(|name| *name != cluster.leader())
        .unwrap();
    cluster.kill(away);
    thread::sleep(Duration::from_secs(6));
    let told = alarms(&cluster);
    let is_named = |line: &String| line.contains(&format!("metadata server {}", &away["meta-".len()..]));
    assert!(
        told.len() <= 3 && told.iter().any(is_named),
        "{away} is away, which is to be said once:\n{}",
        told.join("\n")
    );
    cluster.start(away);
    cluster.wait_healthy(Duration::from_mins(1));
    let _ = cluster.down().expect_ok("dev down");
    let after = &alarms(&cluster)[told.len()..];
    assert_eq!(after, [""; 0], "neither its return nor the end is an error");
}
