//! The programs that a run needs, and the Debian packages that have them.

use std::path::Path;
use std::process::Command;

use super::kind::Kind;
use super::postgres;
use crate::process::run;

/// Program and package.
fn needs(kind: Kind) -> &'static [(&'static str, &'static str)] {
    match kind {
        Kind::Postgres => &[("postgres", "postgresql")],
        Kind::SqliteWal | Kind::SqliteRollback => &[("sqlite3", "sqlite3")],
        Kind::Etcd => &[("etcd", "etcd-server"), ("etcdctl", "etcd-client")],
        Kind::Redis => &[("redis-server", "redis-server"), ("redis-check-aof", "redis-tools")],
    }
}

/// What the cluster itself needs.
const HARNESS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("python3", "python3"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
];

fn is_there(program: &str) -> bool {
    if program == "postgres" {
        return postgres::programs().is_some();
    }
    let found = |directory: &str| Path::new(directory).join(program).exists();
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"]
        .iter()
        .any(|at| found(at))
}

/// Installs what is missing with apt-get, as the gate does.
///
/// # Errors
/// What is missing and can not be installed here.
pub fn ensure(kinds: &[Kind]) -> Result<(), String> {
    let wanted = HARNESS.iter().chain(kinds.iter().flat_map(|kind| needs(*kind)));
    let mut missing: Vec<&str> = wanted
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let cannot = |why: &str| format!("these Debian packages are missing: {list}; {why}");
    if !is_there("apt-get") {
        return Err(cannot("there is no apt-get here"));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(cannot("only root can install them"));
    }
    let apt = |arguments: &[&str]| {
        let finished = run(Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive"));
        if finished.ok() {
            Ok(())
        } else {
            Err(cannot(&finished.stderr))
        }
    };
    apt(&["update", "-q"])?;
    let install = ["install", "-yq", "--no-install-recommends"];
    apt(&[&install[..], &missing[..]].concat())
}
