//! The documented way to set a cluster up by hand, with every server and the client on a host of its own (a network
//! namespace each), and what strangers get.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::{Hosts, dfs, run, shell};
use tempfile::TempDir;

/// Server processes, killed at the end.
#[derive(Default)]
struct Servers(Vec<Child>);

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn init(at: &Path) {
    let mut arguments = vec!["init".to_owned(), at.display().to_string()];
    for number in 1..=3 {
        arguments.extend(["--meta".to_owned(), format!("{number}=10.99.0.{number}:7100")]);
        arguments.extend(["--storage".to_owned(), format!("{number}=10.99.0.{}:7200", number + 3)]);
    }
    let _ = dfs(&arguments).expect_ok("dfs init");
}

#[test]
fn seven_hosts_set_up_by_hand_work_and_strangers_are_refused() {
    let scratch = TempDir::with_prefix_in("dfs-test-", "/var/tmp").unwrap();
    let cluster = scratch.path().join("cluster");
    init(&cluster);
    let hosts = Hosts::new(7);
    let mut servers = Servers::default();
    let log = |name: &str| fs::File::create(scratch.path().join(format!("{name}.log"))).unwrap();
    for number in 1..=6 {
        let (role, id) = if number <= 3 {
            ("meta", number)
        } else {
            ("storage", number - 3)
        };
        let name = format!("{role}-{id}");
        let config = node_config(&cluster, &name);
        let child = hosts
            .command(number)
            .arg(role)
            .arg("--config")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(log(&name))
            .spawn()
            .unwrap();
        servers.0.push(child);
    }
    let config = cluster.join("cluster.toml");
    let start = Instant::now();
    while !run(hosts.command(7).args(["health", "--cluster"]).arg(&config)).ok() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "not healthy: {}",
            shell(&format!("tail -n 20 {}/*.log", scratch.path().display()))
        );
        thread::sleep(Duration::from_millis(200));
    }
    let mount = scratch.path().join("mnt");
    fs::create_dir(&mount).unwrap();
    let unmount = Unmount(mount.clone());
    let _ = run(hosts.command(7).args(["mount", "--cluster"]).arg(&config).arg(&mount)).expect_ok("dfs mount");
    shell(&format!(
        "cd {0} && head -c 20000000 /dev/urandom > random && cp random copy && sync && cmp random copy && mkdir d && mv copy d/ && ls -l d",
        mount.display()
    ));

    // Somebody with a certificate of another CA.
    let foreign = scratch.path().join("foreign");
    init(&foreign);
    let foreign_mount = scratch.path().join("foreign-mnt");
    fs::create_dir(&foreign_mount).unwrap();
    let refused = run(hosts
        .command(7)
        .args(["status", "--cluster"])
        .arg(foreign.join("cluster.toml")));
    assert!(!refused.ok(), "another cluster's client was let in");
    assert!(
        refused.stderr.to_lowercase().contains("certificate"),
        "a clear line at the client: {}",
        refused.stderr
    );
    let told = shell(&format!(
        "grep -ih certificate {}/meta-*.log | head -n 3",
        scratch.path().display()
    ));
    assert!(!told.is_empty(), "a clear line at the server");

    // A storage node's certificate does not make a client.
    let impostor = scratch.path().join("impostor.toml");
    let text = fs::read_to_string(&config).unwrap();
    let own = text.lines().find(|line| line.starts_with("credentials")).unwrap();
    let storage_config = fs::read_to_string(node_config(&cluster, "storage-1")).unwrap();
    let credentials = storage_config
        .lines()
        .find(|line| line.starts_with("credentials"))
        .unwrap();
    let credentials = credentials.split('"').nth(1).unwrap();
    let credentials = node_config(&cluster, "storage-1").parent().unwrap().join(credentials);
    fs::write(
        &impostor,
        text.replace(own, &format!("credentials = \"{}\"", credentials.display())),
    )
    .unwrap();
    let refused = run(hosts
        .command(7)
        .args(["mount", "--cluster"])
        .arg(&impostor)
        .arg(&foreign_mount));
    assert!(!refused.ok(), "a storage node's certificate mounted");
    assert!(
        refused.stderr.contains("storage-1"),
        "names who it is: {}",
        refused.stderr
    );

    let _ = dfs(["umount", mount.to_str().unwrap()]).expect_ok("umount");
    drop(unmount);
}

/// The file whose `[node]` has this name.
fn node_config(cluster: &Path, name: &str) -> PathBuf {
    let found = shell(&format!(
        "grep -rl --include=*.toml '^name = \"{name}\"' {}",
        cluster.display()
    ));
    PathBuf::from(found.lines().next().unwrap())
}
