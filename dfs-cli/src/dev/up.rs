//! `dfs dev up` and `dfs dev start`.
//!
//! Everything that can be wrong is looked at before anything is written or started; what was started by an `up` that
//! fails later is stopped again.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use dfs_common::Role;
use dfs_common::wire::meta::ClusterStatus;
use dfs_fuse::{MountError, check_mount_point};
use rustix::process::Signal;

use super::layout::{self, CLUSTER_FILE, DevCluster, DevNode, MOUNT};
use super::ports;
use crate::failure::{Code, Failure, Outcome};
use crate::init::{self, Member};
use crate::mounting::{self, Log};
use crate::process::{self, Process};
use crate::status::{self, Health};
use crate::{config, files, output, program};

/// From the first process to a mounted and healthy cluster.
const UP_BOUND: Duration = Duration::from_secs(15);

/// How long a single node may take to bind its port.
const START_BOUND: Duration = Duration::from_secs(10);

/// How often it is looked whether something is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Lines of a failing node's log that are shown.
const LOG_LINES_SHOWN: usize = 10;

const DEFAULT_META: u32 = 3;
const DEFAULT_STORAGE: u32 = 3;

pub(super) fn run(mount_point: &Path, data: Option<PathBuf>, meta: Option<u32>, storage: Option<u32>) -> Outcome {
    let directory = std::path::absolute(data.unwrap_or_else(layout::default_directory))?;
    let existing = directory.join(CLUSTER_FILE).exists();
    if existing {
        let cluster = DevCluster::open(&directory)?;
        check_not_running(&cluster)?;
        check_counts(&cluster, meta, storage)?;
    } else {
        check_new_directory(&directory)?;
    }
    let mount_point = if existing {
        usable_again(&DevCluster::open(&directory)?, mount_point)?
    } else {
        check_mount_point(mount_point)?
    };
    if mount_point.starts_with(&directory) || directory.starts_with(&mount_point) {
        return Err(Failure::usage(format!(
            "mount point {} and data directory {} lie in each other; choose two places",
            mount_point.display(),
            directory.display()
        )));
    }
    if existing {
        DevCluster::open(&directory)?.nodes.iter().try_for_each(check_port)?;
    } else {
        create(
            &directory,
            meta.unwrap_or(DEFAULT_META),
            storage.unwrap_or(DEFAULT_STORAGE),
        )?;
    }
    let cluster = DevCluster::open(&directory)?;
    cluster.remember_mount_point(&mount_point)?;
    let mut started = Started::default();
    match bring_up(&cluster, &mount_point, &mut started) {
        Ok(health) => {
            layout::remember_last_used(&directory);
            report(&cluster, health)
        }
        Err(failure) => {
            started.stop(&cluster);
            Err(failure)
        }
    }
}

/// The checked mount point, after what a killed mount process of this cluster left there is detached: nobody can use it.
fn usable_again(cluster: &DevCluster, mount_point: &Path) -> Outcome<PathBuf> {
    let checked = check_mount_point(mount_point);
    if let Err(MountError::Dead(dead)) = &checked
        && cluster.mount_point().is_ok_and(|ours| ours == *dead)
    {
        dfs_fuse::unmount(dead, true)?;
        return Ok(check_mount_point(mount_point)?);
    }
    Ok(checked?)
}

fn check_not_running(cluster: &DevCluster) -> Outcome<()> {
    let running = cluster.running();
    if running.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = running.iter().map(|(name, _)| name.as_str()).collect();
    Err(Failure::new(format!(
        "the cluster in {} is running already ({}); see: dfs dev ps, stop it: dfs dev down",
        cluster.directory().display(),
        names.join(", ")
    )))
}

fn check_counts(cluster: &DevCluster, meta: Option<u32>, storage: Option<u32>) -> Outcome<()> {
    for (role, wanted, option) in [(Role::Meta, meta, "--meta"), (Role::Storage, storage, "--storage")] {
        let have = cluster.count(role);
        if wanted.is_some_and(|wanted| wanted as usize != have) {
            return Err(Failure::usage(format!(
                "the cluster in {} has {have} {role} servers and keeps them; leave {option} out, or choose another --data",
                cluster.directory().display()
            )));
        }
    }
    Ok(())
}

fn check_new_directory(directory: &Path) -> Outcome<()> {
    match files::is_empty(directory) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(format!(
            "{} is not empty and holds no cluster; choose another --data",
            directory.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::new(format!("data directory {}: {error}", directory.display()))),
    }
}

fn check_port(node: &DevNode) -> Outcome<()> {
    let address = node.section.listen;
    match UdpSocket::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let owner = process::owner_of_udp_port(address.port()).unwrap_or_else(|| "another process".into());
            Err(Failure::new(format!(
                "port {address} of {} is in use by {owner}; stop that first",
                node.name
            )))
        }
        Err(error) => Err(Failure::new(format!("address {address} of {}: {error}", node.name))),
    }
}

fn create(directory: &Path, meta: u32, storage: u32) -> Outcome<()> {
    let addresses = ports::free((meta + storage) as usize).context("no free port on 127.0.0.1")?;
    let (meta_addresses, storage_addresses) = addresses.split_at(meta as usize);
    let members = |addresses: &[SocketAddr]| -> Vec<Member> {
        let numbered = (1_u64..).zip(addresses);
        numbered.map(|(id, &address)| Member { id, address }).collect()
    };
    // `cluster.toml` comes last: the next `up` would not take a directory without it, so half a one goes again. It was
    // empty or not there before.
    init::create(directory, &members(meta_addresses), &members(storage_addresses), None).inspect_err(|_| {
        let _ = fs::remove_dir_all(directory);
    })?;
    Ok(())
}

/// What this `up` has started.
#[derive(Debug, Default)]
struct Started(Vec<(String, Child, Process)>);

impl Started {
    fn stop(&mut self, cluster: &DevCluster) {
        let mounted = cluster.is_mounted().unwrap_or(false);
        if mounted && self.0.iter().any(|(name, ..)| name == MOUNT) {
            let _ = cluster.mount_point().map(|path| dfs_fuse::unmount(&path, true));
        }
        for (name, child, process) in &mut self.0 {
            process.signal(Signal::KILL);
            let _ = child.wait();
            cluster.forget_process(name);
        }
    }

    /// The first that has ended, as a failure with the end of its log.
    fn check(&mut self, cluster: &DevCluster) -> Outcome<()> {
        for (name, child, _) in &mut self.0 {
            if let Some(status) = child.try_wait()? {
                return Err(node_failed(cluster, name, &format!("ended ({status})")));
            }
        }
        Ok(())
    }
}

fn node_failed(cluster: &DevCluster, name: &str, what: &str) -> Failure {
    let path = cluster.log_file(name);
    let text = fs::read(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    // A server's own last word is enough; otherwise its last lines are shown.
    if let Some(reason) = tail.last().and_then(|line| line.strip_prefix("dfs: ")) {
        return Failure::new(format!("{name} {what}: {reason}"));
    }
    for line in tail {
        output::complain(&format!("{name}: {line}"));
    }
    Failure::new(format!("{name} {what}; its log: {}", path.display()))
}

fn bring_up(cluster: &DevCluster, mount_point: &Path, started: &mut Started) -> Outcome<Health> {
    let start = Instant::now();
    for node in &cluster.nodes {
        let (child, process) = start_node(cluster, node)?;
        started.0.push((node.name.to_string(), child, process));
    }
    wait_for(cluster, started, start, status::usable)?;
    let (child, process) = start_mount(cluster, mount_point)?;
    started.0.push((MOUNT.to_owned(), child, process));
    let healthy = |status: &ClusterStatus| status::view(status).health == Health::Ok;
    if wait_for(cluster, started, start, healthy).is_ok() {
        return Ok(Health::Ok);
    }
    // Mounted and usable: a repair that takes long is no reason to take all down again.
    started.check(cluster)?;
    Ok(Health::Degraded)
}

/// Waits until the cluster's status is `good`.
fn wait_for(
    cluster: &DevCluster,
    started: &mut Started,
    start: Instant,
    good: impl Fn(&ClusterStatus) -> bool,
) -> Outcome<()> {
    let loaded = config::read(&cluster.cluster_file())?;
    program::block_on(async {
        let mut last = String::from("no metadata server answers");
        let mut client = None;
        loop {
            started.check(cluster)?;
            if start.elapsed() > UP_BOUND {
                return Err(Failure::new(format!(
                    "the cluster in {} is not healthy after {} s: {last}; logs: {}",
                    cluster.directory().display(),
                    UP_BOUND.as_secs(),
                    cluster.directory().join("log").display()
                )));
            }
            if client.is_none() {
                client = loaded.connect_admin().await.ok();
            }
            if let Some(client) = &client {
                match client.status().await {
                    Ok(status) if good(&status) => {
                        client.close().await;
                        return Ok(());
                    }
                    Ok(status) => {
                        let findings = status::findings(&status);
                        last = findings
                            .first()
                            .map_or_else(String::new, |finding| finding.what.clone());
                    }
                    Err(error) => last = error.detail,
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
}

fn start_node(cluster: &DevCluster, node: &DevNode) -> Outcome<(Child, Process)> {
    let name = node.name.to_string();
    let log = Log::open(&cluster.log_file(&name))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg(node.name.role.as_str())
        .arg("--own-session")
        .arg("--config")
        .arg(&node.file)
        .env_remove("DFS_CLUSTER")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let child = log
        .attach(&mut command)?
        .spawn()
        .with_context(|| format!("{name} can not be started"))?;
    remember(cluster, &name, child)
}

fn remember(cluster: &DevCluster, name: &str, mut child: Child) -> Outcome<(Child, Process)> {
    let Some(process) = Process::of(child.id()) else {
        let status = child.wait()?;
        return Err(node_failed(cluster, name, &format!("ended ({status})")));
    };
    cluster.remember_process(name, process)?;
    Ok((child, process))
}

fn start_mount(cluster: &DevCluster, mount_point: &Path) -> Outcome<(Child, Process)> {
    let mut command = mounting::foreground_command(&cluster.cluster_file(), mount_point)?;
    let log = Log::open(&cluster.log_file(MOUNT))?;
    let child = log
        .attach(&mut command)?
        .spawn()
        .context("the mount can not be started")?;
    let (mut child, process) = remember(cluster, MOUNT, child)?;
    mounting::wait_ready(&mut child, &log).inspect_err(|_| cluster.forget_process(MOUNT))?;
    Ok((child, process))
}

/// One process that had been there before.
pub(super) fn start_one(cluster: &DevCluster, name: &str) -> Outcome {
    cluster.check_name(name)?;
    if let Some(process) = cluster.process(name).filter(|process| process.is_alive()) {
        return Err(Failure::new(format!("{name} is running already (pid {})", process.pid)));
    }
    let Some(node) = cluster.node(name) else {
        let mount_point = usable_again(cluster, &cluster.mount_point()?)?;
        start_mount(cluster, &mount_point)?;
        return Ok(Code::Ok);
    };
    check_port(node)?;
    let (child, process) = start_node(cluster, node)?;
    let mut started = Started(vec![(name.to_owned(), child, process)]);
    let start = Instant::now();
    // It listens when nobody else can.
    while UdpSocket::bind(node.section.listen).is_ok() {
        started.check(cluster)?;
        if start.elapsed() > START_BOUND {
            return Err(node_failed(cluster, name, "does not listen"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    started.check(cluster)?;
    Ok(Code::Ok)
}

fn report(cluster: &DevCluster, health: Health) -> Outcome {
    layout::print_processes(&cluster.processes());
    output::line(&format!(
        "\n{} on {}   data in {}",
        output::coloured(&health.to_string()),
        cluster.mount_point()?.display(),
        cluster.directory().display()
    ));
    if health == Health::Ok {
        return Ok(Code::Ok);
    }
    output::line("mounted, but not all replicas are in sync yet; see: dfs chain watch --until-healthy");
    Ok(Code::Degraded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_something_else_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        check_new_directory(scratch.path()).unwrap();
        check_new_directory(&scratch.path().join("new")).unwrap();
        fs::write(scratch.path().join("thesis.tex"), "x").unwrap();
        assert!(check_new_directory(scratch.path()).is_err());
    }
}
