//! The directory of a development cluster, and what is known about its processes.

use std::fs;
use std::path::{Path, PathBuf};

use dfs_common::config::NodeSection;
use dfs_common::{NodeName, Role};
use dfs_fuse::mounts;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::output::{self, Table};
use crate::process::Process;

pub(crate) const CLUSTER_FILE: &str = "cluster.toml";

/// Name of the process that serves the mount.
pub(super) const MOUNT: &str = "mount";

const SETTINGS_FILE: &str = "dev.toml";

/// What `dev up` was last told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    mount_point: PathBuf,
}

/// A node of the cluster, from its own file.
#[derive(Clone, Debug)]
pub(super) struct DevNode {
    pub(super) name: NodeName,
    pub(super) file: PathBuf,
    pub(super) section: NodeSection,
}

#[derive(Clone, Debug)]
pub(super) struct DevCluster {
    directory: PathBuf,
    pub(super) nodes: Vec<DevNode>,
}

/// A line of `dev ps`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ProcessView {
    name: String,
    pid: Option<u32>,
    role: String,
    state: &'static str,
    address: String,
}

impl DevCluster {
    /// Reads what is there.
    pub(super) fn open(directory: &Path) -> Outcome<Self> {
        config::read(&directory.join(CLUSTER_FILE))?;
        let mut nodes = Vec::new();
        let homes = directory.join("nodes");
        let entries = fs::read_dir(&homes).map_err(|error| Failure::new(format!("{}: {error}", homes.display())))?;
        for entry in entries {
            let file = entry?.path().join("node.toml");
            let loaded = config::read(&file)?;
            let section = config::node_of(&loaded)?.clone();
            let name = section.node_name()?;
            nodes.push(DevNode { name, file, section });
        }
        nodes.sort_by_key(|node| node.name);
        Ok(Self {
            directory: directory.to_path_buf(),
            nodes,
        })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn cluster_file(&self) -> PathBuf {
        self.directory.join(CLUSTER_FILE)
    }

    pub(super) fn log_file(&self, name: &str) -> PathBuf {
        self.directory.join("log").join(format!("{name}.log"))
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.directory.join("run").join(format!("{name}.pid"))
    }

    pub(super) fn count(&self, role: Role) -> usize {
        self.nodes.iter().filter(|node| node.name.role == role).count()
    }

    pub(super) fn node(&self, name: &str) -> Option<&DevNode> {
        self.nodes.iter().find(|node| node.name.to_string() == name)
    }

    /// Every process by name, in the order in which they start.
    pub(super) fn names(&self) -> Vec<String> {
        let nodes = self.nodes.iter().map(|node| node.name.to_string());
        nodes.chain([MOUNT.to_owned()]).collect()
    }

    pub(super) fn check_name(&self, name: &str) -> Outcome<()> {
        let names = self.names();
        if names.iter().any(|known| known == name) {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "there is no {name:?} here; there are {}",
            names.join(", ")
        )))
    }

    pub(super) fn mount_point(&self) -> Outcome<PathBuf> {
        let path = self.directory.join(SETTINGS_FILE);
        let failed = |why: String| Failure::new(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
        let settings: Settings = toml::from_str(&text).map_err(|error| failed(error.message().to_owned()))?;
        Ok(settings.mount_point)
    }

    pub(super) fn remember_mount_point(&self, mount_point: &Path) -> Outcome<()> {
        let settings = Settings {
            mount_point: mount_point.to_path_buf(),
        };
        files::replace(&self.directory.join(SETTINGS_FILE), &toml::to_string(&settings)?)?;
        Ok(())
    }

    /// Whether a mount of dfs is on this cluster's mount point.
    pub(super) fn is_mounted(&self) -> Outcome<bool> {
        let entry = mounts::mounted_on(&self.mount_point()?)?;
        Ok(entry.is_some_and(|entry| entry.file_system == mounts::FILE_SYSTEM_TYPE))
    }

    /// The process that was last started under this name, alive or not.
    pub(super) fn process(&self, name: &str) -> Option<Process> {
        serde_json::from_str(&fs::read_to_string(self.pid_file(name)).ok()?).ok()
    }

    pub(super) fn remember_process(&self, name: &str, process: Process) -> Outcome<()> {
        let file = self.pid_file(name);
        if let Some(directory) = file.parent() {
            files::make_directory(directory)?;
        }
        files::replace(&file, &serde_json::to_string(&process)?)?;
        Ok(())
    }

    pub(super) fn forget_process(&self, name: &str) {
        // A stale file does no harm: it names a process that is gone.
        let _ = fs::remove_file(self.pid_file(name));
    }

    /// Names and processes of who runs.
    pub(super) fn running(&self) -> Vec<(String, Process)> {
        let known = self
            .names()
            .into_iter()
            .filter_map(|name| Some((self.process(&name)?, name)));
        known
            .filter(|(process, _)| process.is_alive())
            .map(|(process, name)| (name, process))
            .collect()
    }

    pub(super) fn processes(&self) -> Vec<ProcessView> {
        let mount_point = self
            .mount_point()
            .map_or_else(|_| "-".to_owned(), |path| path.display().to_string());
        let view = |name: String| {
            let process = self.process(&name);
            let alive = process.is_some_and(Process::is_alive);
            let node = self.node(&name);
            ProcessView {
                pid: process.filter(|_| alive).map(|process| process.pid),
                role: node.map_or_else(|| MOUNT.to_owned(), |node| node.name.role.to_string()),
                state: match (alive, process) {
                    (true, _) => "running",
                    // It left without being asked to.
                    (false, Some(_)) => "dead",
                    (false, None) => "stopped",
                },
                address: node.map_or_else(|| mount_point.clone(), |node| node.section.advertised().to_string()),
                name,
            }
        };
        self.names().into_iter().map(view).collect()
    }
}

pub(super) fn print_processes(rows: &[ProcessView]) {
    let mut table = Table::new(&["NAME", "PID", "ROLE", "STATE", "ADDRESS"]);
    for row in rows {
        table.row([
            row.name.clone(),
            row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            row.role.clone(),
            output::coloured(row.state),
            row.address.clone(),
        ]);
    }
    table.print();
}

/// Where `dev up` puts a cluster unless told otherwise.
pub(super) fn default_directory() -> PathBuf {
    files::user_path("XDG_DATA_HOME", ".local/share")
}

/// File that holds the directory of the cluster that was last brought up.
fn last_used_file() -> PathBuf {
    files::user_path("XDG_STATE_HOME", ".local/state")
}

pub(super) fn remember_last_used(directory: &Path) {
    let file = last_used_file();
    let Some(parent) = file.parent() else { return };
    // A convenience: without it, verbs have to be told.
    let _ = files::make_directory(parent).and_then(|()| files::replace(&file, &directory.to_string_lossy()));
}

/// Directories where a development cluster may be, the last used first.
pub(crate) fn known_directories() -> Vec<PathBuf> {
    let last = fs::read_to_string(last_used_file()).ok();
    let last = last.map(|text| PathBuf::from(text.trim()));
    let mut known: Vec<_> = last
        .into_iter()
        .filter(|path| path.join(CLUSTER_FILE).exists())
        .collect();
    known.push(default_directory());
    known.dedup();
    known
}
