//! A development cluster of one's own: `dfs dev up` in a temporary directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Finished, dfs, dfs_with_clock, shell};

/// One cluster at a time in one test binary: two on two cores measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[derive(Debug)]
pub struct DevCluster {
    directory: TempDir,
    pub mount: PathBuf,
    pub data: PathBuf,
    extra_mounts: Vec<PathBuf>,
    _turn: MutexGuard<'static, ()>,
}

impl DevCluster {
    /// Three metadata servers, three storage nodes, mounted and healthy.
    #[must_use]
    pub fn up() -> Self {
        Self::up_on(|_| {})
    }

    /// The same, after `prepare` has had its way with the data directory, which does not exist yet.
    #[must_use]
    pub fn up_on(prepare: impl FnOnce(&Path)) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::Builder::new()
            .prefix("dfs-test-")
            .tempdir_in("/var/tmp")
            .expect("/var/tmp is writable");
        let mount = directory.path().join("mnt");
        let data = directory.path().join("data");
        fs::create_dir(&mount).expect("a fresh directory");
        prepare(&data);
        let cluster = Self {
            directory,
            mount,
            data,
            extra_mounts: Vec::new(),
            _turn: turn,
        };
        let _ = cluster.start_all().expect_ok("dfs dev up");
        cluster
    }

    /// `dev up` on this cluster's directories, first or again.
    pub fn start_all(&self) -> Finished {
        dfs(["dev", "up", text(&self.mount), "--data", text(&self.data)])
    }

    /// A scratch directory beside the cluster, on the local disk.
    #[must_use]
    pub fn local(&self) -> PathBuf {
        let at = self.directory.path().join("local");
        fs::create_dir_all(&at).expect("a fresh directory");
        at
    }

    pub fn down(&self) -> Finished {
        dfs(["dev", "down", "--data", text(&self.data)])
    }

    pub fn kill(&self, name: &str) {
        let _ = dfs(["dev", "kill", name, "--data", text(&self.data)]).expect_ok(name);
    }

    pub fn start(&self, name: &str) {
        let _ = dfs(["dev", "start", name, "--data", text(&self.data)]).expect_ok(name);
    }

    /// Starts a process on a machine whose clock is off, such as by `+400d`.
    pub fn start_with_clock(&self, name: &str, off: &str) {
        let _ = dfs_with_clock(off, ["dev", "start", name, "--data", text(&self.data)]).expect_ok(name);
    }

    /// An admin verb against this cluster.
    pub fn admin(&self, arguments: &[&str]) -> Finished {
        let config = self.config();
        dfs(arguments.iter().copied().chain(["--cluster", text(&config)]))
    }

    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.data.join("cluster.toml")
    }

    /// `dfs status -o json`; `None` while nobody answers.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.admin(&["status", "-o", "json"]).stdout).ok()
    }

    /// Name of the metadata leader, such as `meta-2`.
    #[must_use]
    pub fn leader(&self) -> String {
        let leader = |status: Value| status["meta"]["leader"].as_str().map(str::to_owned);
        self.status().and_then(leader).expect("a cluster with a leader")
    }

    /// Process id by name, from `dev ps`.
    #[must_use]
    pub fn pid(&self, name: &str) -> u32 {
        let listed = dfs(["dev", "ps", "--data", text(&self.data), "-o", "json"])
            .expect_ok("dev ps")
            .stdout;
        let listed: Value = serde_json::from_str(&listed).expect("dev ps prints JSON");
        let row = listed
            .as_array()
            .and_then(|rows| rows.iter().find(|row| row["name"] == name))
            .expect(name);
        row["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok())
            .expect("a pid")
    }

    /// Waits until `dfs health` says ok; returns how long that took.
    #[track_caller]
    pub fn wait_healthy(&self, bound: Duration) -> Duration {
        let start = Instant::now();
        loop {
            let health = self.admin(&["health", "detail"]);
            if health.ok() {
                return start.elapsed();
            }
            assert!(
                start.elapsed() < bound,
                "not healthy after {bound:?}:\n{}{}",
                health.stdout,
                health.stderr
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until every chain has two members that may carry it on alone, or as many as serve. Two that die within a moment
    /// of each other can both be all that is complete (decision 14); whoever kills one after the other waits for this.
    #[track_caller]
    pub fn wait_settled(&self, bound: Duration) {
        self.wait_complete(2, bound);
    }

    #[track_caller]
    fn wait_complete(&self, wanted: usize, bound: Duration) {
        let start = Instant::now();
        let is_settled = |chain: &Value| {
            let count = |fits: &dyn Fn(&Value) -> bool| {
                let members = chain["members"].as_array();
                members.map_or(0, |members| members.iter().filter(|member| fits(member)).count())
            };
            let serving = count(&|member| member["state"] == "serving");
            serving > 0 && count(&|member| member["complete"] == true) >= serving.min(wanted)
        };
        loop {
            let listed = self.admin(&["chain", "list", "-o", "json"]);
            let chains: Value = serde_json::from_str(&listed.stdout).unwrap_or_default();
            if chains.as_array().is_some_and(|chains| chains.iter().all(is_settled)) {
                return;
            }
            assert!(
                start.elapsed() < bound,
                "not {wanted} complete members after {bound:?}: {chains:#}"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until every chain has three members that may carry it on alone: nothing is written,
    /// and nothing is on its way. The clean-up of removed files writes as well.
    #[track_caller]
    pub fn wait_at_rest(&self, bound: Duration) {
        let start = Instant::now();
        while self.status().is_none_or(|status| status["orphans"] != 0) {
            assert!(
                start.elapsed() < bound,
                "removed files are not cleaned up after {bound:?}"
            );
            thread::sleep(Duration::from_millis(100));
        }
        self.wait_complete(3, bound);
    }

    /// `chain verify --deep`: every replica of every chain holds the same.
    #[track_caller]
    pub fn verify_replicas(&self) {
        let _ = self.admin(&["chain", "verify", "--deep"]).expect_ok("chain verify");
    }

    /// A second mount of the same cluster.
    pub fn mount_again(&mut self) -> PathBuf {
        let at = self
            .directory
            .path()
            .join(format!("mnt{}", self.extra_mounts.len() + 2));
        fs::create_dir(&at).expect("a fresh directory");
        let config = self.config();
        let _ = dfs(["mount", "--cluster", text(&config), text(&at)]).expect_ok("a second mount");
        self.extra_mounts.push(at.clone());
        at
    }

    /// A mount on a machine whose clock is off.
    pub fn mount_with_clock(&mut self, off: &str) -> PathBuf {
        let at = self.directory.path().join("mnt-clock");
        fs::create_dir(&at).expect("a fresh directory");
        let config = self.config();
        let _ = dfs_with_clock(off, ["mount", "--cluster", text(&config), text(&at)]).expect_ok("a mount");
        self.extra_mounts.push(at.clone());
        at
    }

    /// Last lines of every daemon's log, for a failing test's message.
    #[must_use]
    pub fn logs(&self) -> String {
        shell(&format!(
            "tail -n 30 {}/log/*.log 2>/dev/null || true",
            self.data.display()
        ))
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        if thread::panicking() {
            #[expect(clippy::print_stderr, reason = "the logs die with the directory")]
            {
                eprintln!("{}", self.logs());
            }
        }
        for mount in &self.extra_mounts {
            let _ = dfs(["umount", "--force", text(mount)]);
        }
        let down = dfs(["dev", "down", "--force", "--data", text(&self.data)]);
        if !down.ok() {
            // Never leave a mount behind: it hangs whoever walks over it next.
            let _ = crate::run(std::process::Command::new("umount").args(["-l", text(&self.mount)]));
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
