//! A cluster whose servers and mounts have a host each, and, if wanted, whose servers have a disk each: everything that
//! happens to machines can happen to them.
//!
//! The processes are children of the test, which is their service manager too: who ends by itself is started again by
//! [`HostCluster::revive`], as systemd would.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::hosts::{Hosts, address};
use crate::interrupt::is_interrupted;
use crate::loop_disk::{LoopDisk, MemoryDisk, cut_power};
use crate::process::{Finished, dfs, run, shell};

/// One cluster at a time in one test binary: two on two cores measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// From the first process to a healthy cluster, on a machine that does other things too.
const UP_BOUND: Duration = Duration::from_mins(2);

/// Room for log segments, snapshots and what a run writes; sparse.
const DISK_SIZE_MIB: u32 = 1500;

/// For a mount to say that it is there: its own deadline, and some.
const MOUNT_BOUND: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub struct Server {
    pub name: String,
    pub is_meta: bool,
    /// Number of its host.
    pub host: usize,
    directory: PathBuf,
    child: Option<Child>,
    disk: Option<LoopDisk>,
    /// File system of its disk.
    pub disk_kind: &'static str,
}

impl Server {
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    #[must_use]
    pub fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Left there by a storage node that saw an I/O error of its own: its directory must be emptied (docs/FORMATS.md).
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        let found = run(std::process::Command::new("find")
            .arg(self.data())
            .args(["-name", "poisoned"]));
        !found.stdout.is_empty()
    }
}

#[derive(Debug)]
struct HostMount {
    at: PathBuf,
    child: Child,
}

// The order of the fields is the order in which they go: mounts, servers and their disks, hosts, memory, files.
#[derive(Debug)]
pub struct HostCluster {
    mounts: Vec<HostMount>,
    pub servers: Vec<Server>,
    pub hosts: Hosts,
    _memory: Option<MemoryDisk>,
    root: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl HostCluster {
    /// Three metadata servers, three storage nodes, this many mounts. `disks`: each server's data is on a disk of its own,
    /// ext4 and XFS alternately.
    #[must_use]
    pub fn up(mounts: usize, disks: bool) -> Self {
        Self::start_on(mounts, disks, false)
    }

    /// The same with all data in memory.
    #[must_use]
    pub fn in_memory(mounts: usize) -> Self {
        Self::start_on(mounts, false, true)
    }

    fn start_on(mounts: usize, disks: bool, memory: bool) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let root = tempfile::Builder::new()
            .prefix("dfs-faults-")
            .tempdir_in("/var/tmp")
            .expect("/var/tmp is writable");
        let memory = memory.then(|| MemoryDisk::on(root.path()));
        let at = root.path().join("cluster");
        let mut arguments = vec!["init".to_owned(), at.display().to_string()];
        for number in 1..=3 {
            arguments.extend(["--meta".to_owned(), format!("{number}={}:7100", address(number))]);
            arguments.extend(["--storage".to_owned(), format!("{number}={}:7200", address(number + 3))]);
        }
        let _ = dfs(&arguments).expect_ok("dfs init");
        let servers = (1..=6).map(|host| {
            let is_meta = host <= 3;
            let name = if is_meta {
                format!("meta-{host}")
            } else {
                format!("storage-{}", host - 3)
            };
            Server {
                directory: at.join("nodes").join(&name),
                name,
                is_meta,
                host,
                child: None,
                disk: None,
                disk_kind: if host % 2 == 0 { "xfs" } else { "ext4" },
            }
        });
        let mut cluster = Self {
            mounts: Vec::new(),
            servers: servers.collect(),
            hosts: Hosts::new(6 + mounts),
            _memory: memory,
            root,
            _turn: turn,
        };
        for server in cluster.servers.iter_mut().filter(|_| disks) {
            fs::create_dir_all(server.data()).expect("a fresh directory");
            let image = cluster.root.path().join(format!("{}.img", server.name));
            server.disk = Some(LoopDisk::create(
                &image,
                &server.data(),
                server.disk_kind,
                DISK_SIZE_MIB,
            ));
        }
        for index in 0..cluster.servers.len() {
            cluster.start(index);
        }
        cluster.wait_healthy(UP_BOUND).expect("a fresh cluster is healthy");
        for number in 0..mounts {
            cluster.mount(number);
        }
        cluster
    }

    fn mount(&mut self, number: usize) {
        let at = self.root.path().join(format!("mnt{number}"));
        fs::create_dir(&at).expect("a fresh directory");
        let child = self.start_mount(number, &at);
        self.mounts.push(HostMount { at, child });
    }

    /// kill -9 of a mount's process: what it had not sent is gone, and whoever has its files open gets errors.
    pub fn kill_mount(&mut self, number: usize) {
        let mount = &mut self.mounts[number];
        let _ = mount.child.kill();
        let _ = mount.child.wait();
        // Others may have it open still.
        shell(&format!("umount -l {}", mount.at.display()));
    }

    /// A mount that was killed, at the same place again.
    pub fn mount_again(&mut self, number: usize) {
        let at = self.mounts[number].at.clone();
        self.mounts[number].child = self.start_mount(number, &at);
    }

    fn start_mount(&self, number: usize, at: &Path) -> Child {
        let mut child = self
            .hosts
            .command(7 + number)
            .args(["mount", "--foreground", "--cluster"])
            .arg(self.config())
            .arg(at)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(self.log(&format!("mount-{number}")))
            .spawn()
            .expect("dfs starts");
        let stdout = child.stdout.take().expect("it is a pipe");
        let (sender, said) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let said = said.recv_timeout(MOUNT_BOUND).unwrap_or_default();
        if said.trim() != "ready" {
            let _ = child.kill();
            let _ = child.wait();
            let _ = run(std::process::Command::new("umount").arg("-l").arg(at));
            panic!("mount {number} does not come:\n{}", self.logs());
        }
        child
    }

    #[must_use]
    pub fn mount_points(&self) -> Vec<PathBuf> {
        self.mounts.iter().map(|mount| mount.at.clone()).collect()
    }

    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.path().join("cluster/cluster.toml")
    }

    /// A scratch directory beside the cluster.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.root.path()
    }

    #[must_use]
    pub fn index(&self, name: &str) -> usize {
        self.servers.iter().position(|server| server.name == name).expect(name)
    }

    /// A log file of this run, appended to.
    #[must_use]
    pub fn log(&self, name: &str) -> File {
        File::options()
            .create(true)
            .append(true)
            .open(self.root.path().join(format!("{name}.log")))
            .expect("a log file")
    }

    pub fn start(&mut self, index: usize) {
        let server = &self.servers[index];
        assert!(server.child.is_none(), "{} runs", server.name);
        let child = self
            .hosts
            .command(server.host)
            .args([if server.is_meta { "meta" } else { "storage" }, "--config"])
            .arg(server.directory.join("node.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log(&server.name))
            .spawn()
            .expect("dfs starts");
        self.servers[index].child = Some(child);
    }

    /// SIGKILL, also for one that is stopped.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.servers[index].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn signal(&self, index: usize, signal: &str) {
        if let Some(pid) = self.servers[index].pid() {
            let sent = run(std::process::Command::new("kill").args(["-s", signal, &pid.to_string()]));
            // It may be gone.
            assert!(
                sent.ok() || !std::path::Path::new(&format!("/proc/{pid}")).exists(),
                "{}",
                sent.stderr
            );
        }
    }

    /// Takes the power from all of them at the same moment. Their disks are what was synced, and mounted again.
    pub fn cut_power(&mut self, victims: &[usize]) {
        let all: Vec<_> = victims
            .iter()
            .filter_map(|index| Some((self.servers[*index].pid()?, self.servers[*index].disk.as_ref()?)))
            .collect();
        cut_power(&all);
        for index in victims {
            self.kill(*index);
        }
        for index in victims {
            if let Some(disk) = &self.servers[*index].disk {
                disk.unmount();
                disk.mount();
            }
        }
    }

    /// Starts who ended by itself; names them.
    pub fn revive(&mut self) -> Vec<String> {
        let mut revived = Vec::new();
        for index in 0..self.servers.len() {
            let server = &mut self.servers[index];
            let ended = server
                .child
                .as_mut()
                .is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            if ended {
                revived.push(server.name.clone());
                self.kill(index);
                self.start(index);
            }
        }
        revived
    }

    /// What is to be done about a disk that broke: another one, and a start with nothing on it.
    pub fn replace_disk(&mut self, index: usize) {
        self.kill(index);
        self.empty(index);
        self.start(index);
    }

    fn empty(&self, index: usize) {
        let data = self.servers[index].data();
        shell(&format!("find {} -mindepth 1 -delete", data.display()));
    }

    /// An admin verb, from the first mount's host.
    #[must_use]
    pub fn admin(&self, arguments: &[&str]) -> Finished {
        run(self
            .hosts
            .command(7)
            .args(arguments)
            .arg("--cluster")
            .arg(self.config()))
    }

    /// Waits until `dfs health` says ok. `Err`: what it said last.
    pub fn wait_healthy(&mut self, bound: Duration) -> Result<Duration, String> {
        let start = Instant::now();
        loop {
            let health = self.admin(&["health", "detail"]);
            if health.ok() {
                return Ok(start.elapsed());
            }
            if is_interrupted() {
                return Err("interrupted".to_owned());
            }
            if start.elapsed() > bound {
                return Err(format!(
                    "not healthy after {bound:?}:\n{}{}",
                    health.stdout, health.stderr
                ));
            }
            thread::sleep(Duration::from_millis(150));
        }
    }

    /// Last lines of every log.
    #[must_use]
    pub fn logs(&self) -> String {
        shell(&format!("tail -n 25 {}/*.log", self.root.path().display()))
    }

    /// Copies every log to a directory.
    pub fn keep_logs(&self, to: &Path) {
        shell(&format!(
            "mkdir -p {1} && cp {0}/*.log {1}/",
            self.root.path().display(),
            to.display()
        ));
    }
}

impl Drop for HostCluster {
    fn drop(&mut self) {
        for mount in &mut self.mounts {
            // Servers may be gone: never wait for them.
            let _ = mount.child.kill();
            let _ = mount.child.wait();
            let _ = run(std::process::Command::new("umount").arg("-l").arg(&mount.at));
        }
        for index in 0..self.servers.len() {
            self.kill(index);
        }
    }
}
