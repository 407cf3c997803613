//! A wrong call gets one clear line that names the thing, before anything is started; and nothing is left behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;

use dfs_tests::{DevCluster, Finished, dfs, shell};
use tempfile::TempDir;

/// One line on stderr that holds every one of `words`, and an exit code that is not 0.
#[track_caller]
fn one_clear_line(finished: &Finished, words: &[&str]) {
    assert!(!finished.ok(), "must fail: {finished:?}");
    let lines: Vec<_> = finished.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(
        lines.len(),
        1,
        "one line, not:\n{}\n{}",
        finished.stderr,
        finished.stdout
    );
    for word in words {
        assert!(lines[0].contains(word), "{word:?} is missing in: {}", lines[0]);
    }
}

fn scratch() -> TempDir {
    tempfile::Builder::new()
        .prefix("dfs-test-")
        .tempdir_in("/var/tmp")
        .unwrap()
}

#[test]
fn mount_points_are_checked_before_anything_starts() {
    let scratch = scratch();
    let data = scratch.path().join("data");
    let up = |mount: &std::path::Path| dfs(["dev", "up", mount.to_str().unwrap(), "--data", data.to_str().unwrap()]);

    one_clear_line(&up(&scratch.path().join("missing")), &["missing", "mount point"]);
    let full = scratch.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("x"), "").unwrap();
    one_clear_line(&up(&full), &["full", "not empty"]);
    one_clear_line(&up(&full.join("x")), &["not a directory"]);
    assert!(!data.exists(), "nothing was started or written");
}

#[test]
fn help_and_wrong_arguments() {
    for verb in [
        &["--help"][..],
        &["dev", "--help"],
        &["dev", "up", "--help"],
        &["init", "--help"],
        &["meta", "--help"],
        &["storage", "--help"],
        &["mount", "--help"],
        &["umount", "--help"],
        &["status", "--help"],
        &["health", "--help"],
        &["chain", "--help"],
        &["chain", "verify", "--help"],
        &["where", "--help"],
    ] {
        let help = dfs(verb).expect_ok("help");
        assert!(help.stdout.contains("Usage"), "{verb:?}: {}", help.stdout);
    }
    assert_eq!(dfs(["dev", "up"]).code, Some(2));
    assert_eq!(dfs(["no-such-verb"]).code, Some(2));
    one_clear_line(
        &dfs(["status", "--cluster", "/nonexistent/cluster.toml"]),
        &["/nonexistent/cluster.toml"],
    );
    one_clear_line(&dfs(["umount", "/var"]), &["/var", "not"]);
    let scratch = scratch();
    let config = scratch.path().join("cluster.toml");
    fs::write(&config, "cluster = \"12\"\ncolour = \"red\"\n").unwrap();
    let finished = dfs(["status", "--cluster", config.to_str().unwrap()]);
    assert!(
        !finished.ok() && finished.stderr.contains("colour"),
        "{}",
        finished.stderr
    );
}

#[test]
fn servers_refuse_what_is_not_theirs() {
    let cluster = DevCluster::up();
    one_clear_line(&cluster.start_all(), &["running"]);

    // The directory of a running node.
    let config = shell(&format!(
        "grep -rl --include=*.toml 'name = \"storage-1\"' {}",
        cluster.data.display()
    ));
    let config = config.lines().next().unwrap().to_owned();
    one_clear_line(&dfs(["storage", "--config", &config]), &["in use"]);

    // The same after a stop, but its port is taken.
    let address = shell(&format!("grep -m1 listen {config} | cut -d'\"' -f2"));
    cluster.kill("storage-1");
    let taken = UdpSocket::bind(address.trim()).unwrap();
    one_clear_line(&dfs(["storage", "--config", &config]), &[address.trim(), "in use"]);
    drop(taken);

    // Another node's credentials: the role does not fit.
    let wrong_role = fs::read_to_string(&config).unwrap();
    let meta_credentials = shell(&format!(
        "grep -rl --include=*.toml 'name = \"meta-1\"' {} | xargs grep -h credentials | cut -d'\"' -f2",
        cluster.data.display()
    ));
    let own = wrong_role
        .lines()
        .find(|line| line.starts_with("credentials"))
        .unwrap()
        .to_owned();
    let scratch = scratch();
    let foreign = scratch.path().join("node.toml");
    fs::write(
        &foreign,
        wrong_role.replace(&own, &format!("credentials = \"{}\"", meta_credentials.trim())),
    )
    .unwrap();
    if std::path::Path::new(meta_credentials.trim()).is_absolute() {
        one_clear_line(&dfs(["storage", "--config", foreign.to_str().unwrap()]), &["meta-1"]);
    }
    cluster.start("storage-1");
    cluster.wait_healthy(std::time::Duration::from_secs(30));

    // A mount by somebody who may not.
    let closed = cluster.local().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn garbage_on_the_ports_is_ignored() {
    let cluster = DevCluster::up();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addresses = shell(&format!(
        "grep -rh --include=*.toml '^listen' {} | cut -d'\"' -f2 | sort -u",
        cluster.data.display()
    ));
    for address in addresses.lines() {
        for size in [0_usize, 1, 20, 1200, 60_000] {
            let garbage: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
            let _ = socket.send_to(&garbage, address);
        }
    }
    fs::write(cluster.mount.join("fine"), "still").unwrap();
    cluster.wait_healthy(std::time::Duration::from_secs(5));
}
