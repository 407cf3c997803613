//! The data directory: whose it is, and that nobody else uses it.
//!
//! `LOCK` is held with flock for the life of the process and names its pid; `node.json` says which cluster, node and
//! format the rest belongs to. Both are checked before anything else in the directory is touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use dfs_common::{ClusterId, NodeName};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::StartError;

/// Version of the directory's layout. A program refuses a newer one.
pub(super) const FORMAT: u32 = 7;

const LOCK_FILE: &str = "LOCK";
const NODE_FILE: &str = "node.json";

#[derive(Debug, Serialize, Deserialize)]
struct NodeFile {
    format: u32,
    cluster: String,
    node: String,
}

/// An opened data directory; dropping it lets another process have it.
#[derive(Debug)]
pub(super) struct DataDirectory {
    path: PathBuf,
    _lock: File,
}

impl DataDirectory {
    /// Makes the directory if it is not there, locks it, and checks or records whose it is.
    pub(super) fn open(path: &Path, cluster: ClusterId, node: NodeName) -> Result<Self, StartError> {
        fs::create_dir_all(path).map_err(StartError::io("create the data directory", path))?;
        let lock = lock(path)?;
        let file = path.join(NODE_FILE);
        match fs::read(&file) {
            Ok(bytes) => check(path, &bytes, cluster, node)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mine = NodeFile {
                    format: FORMAT,
                    cluster: cluster.to_string(),
                    node: node.to_string(),
                };
                replace(&file, &mine)?;
            }
            Err(e) => return Err(StartError::io("read", &file)(e)),
        }
        Ok(Self {
            path: path.to_path_buf(),
            _lock: lock,
        })
    }

    /// The applied state. Never trusted: may be deleted at any start.
    pub(super) fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// Log, votes and snapshots.
    pub(super) fn consensus(&self) -> PathBuf {
        self.path.join("raft")
    }

    /// Which machines' certificates are refused.
    pub(super) fn replaced(&self) -> PathBuf {
        self.path.join("replaced.json")
    }

    /// Deletes the applied state, to be filled again from log and snapshot.
    pub(super) fn drop_state(&self) -> Result<(), StartError> {
        let state = self.state();
        match fs::remove_dir_all(&state) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StartError::io("delete the applied state", &state)(e)),
            _ => Ok(()),
        }
    }
}

fn lock(path: &Path) -> Result<File, StartError> {
    let file = path.join(LOCK_FILE);
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&file)
        .map_err(StartError::io("open", &file))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            let pid = pid.trim();
            return Err(StartError::InUse {
                path: path.to_path_buf(),
                pid: if pid.is_empty() { "unknown" } else { pid }.to_owned(),
            });
        }
        Err(e) => return Err(StartError::io("lock", &file)(e.into())),
    }
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(StartError::io("write", &file))?;
    Ok(lock)
}

fn check(path: &Path, bytes: &[u8], cluster: ClusterId, node: NodeName) -> Result<(), StartError> {
    let found: NodeFile = serde_json::from_slice(bytes).map_err(|source| StartError::NodeFile {
        path: path.join(NODE_FILE),
        source,
    })?;
    if found.format > FORMAT {
        return Err(StartError::NewerFormat {
            path: path.to_path_buf(),
            found: found.format,
        });
    }
    if found.format < FORMAT {
        return Err(StartError::OlderFormat {
            path: path.to_path_buf(),
            found: found.format,
        });
    }
    if found.cluster != cluster.to_string() || found.node != node.to_string() {
        return Err(StartError::Foreign {
            path: path.to_path_buf(),
            owner: found.node,
            owner_cluster: found.cluster,
            me: node,
            cluster,
        });
    }
    Ok(())
}

/// Write, fsync, rename, fsync the directory: the file is there whole or not at all.
pub(super) fn replace(file: &Path, content: &impl Serialize) -> Result<(), StartError> {
    let temporary = file.with_extension("json.new");
    let bytes = serde_json::to_vec_pretty(content).map_err(|source| StartError::NodeFile {
        path: file.to_path_buf(),
        source,
    })?;
    let write = || {
        let mut out = File::create(&temporary)?;
        out.write_all(&bytes)?;
        out.write_all(b"\n")?;
        out.sync_all()?;
        fs::rename(&temporary, file)?;
        let directory = file.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()
    };
    write().map_err(StartError::io("write", file))
}

#[cfg(test)]
mod tests {
    use dfs_common::Role;

    use super::*;

    #[test]
    fn a_directory_belongs_to_one_node_of_one_cluster_and_one_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meta-1");
        let (cluster, node) = (ClusterId([1; 16]), NodeName::new(Role::Meta, 1));
        let open = |cluster, node| DataDirectory::open(&path, cluster, node).map_err(|e| e.to_string());
        let held = open(cluster, node).unwrap();
        let error = open(cluster, node).unwrap_err();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(held);
        open(cluster, node).unwrap();
        for (cluster, node) in [
            (ClusterId([2; 16]), node),
            (cluster, NodeName::new(Role::Meta, 2)),
            (cluster, NodeName::new(Role::Storage, 1)),
        ] {
            let error = open(cluster, node).unwrap_err();
            assert!(error.contains("belongs to meta-1") && !error.contains('\n'), "{error}");
        }
        let text = fs::read_to_string(path.join(NODE_FILE)).unwrap();
        fs::write(
            path.join(NODE_FILE),
            text.replace(&format!("\"format\": {FORMAT}"), "\"format\": 9"),
        )
        .unwrap();
        let error = open(cluster, node).unwrap_err();
        assert!(error.contains("format 9"), "{error}");
        fs::write(path.join(NODE_FILE), "{").unwrap();
        assert!(open(cluster, node).unwrap_err().contains("node.json"));
    }
}
