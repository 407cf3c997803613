//! The data directory: whose it is, and that only one process uses it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use dfs_common::{ClusterId, Error, ErrorCode, NodeName, Result, StoreId};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::aside::{self, Aside};
use crate::disk::usable_bytes;

/// Format of the directory as a whole. Its files have their own.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct NodeFile {
    format: u32,
    cluster: String,
    node: String,
}

/// A data directory that this process holds. Dropping it lets others in.
#[derive(Debug)]
pub(crate) struct DataDirectory {
    path: PathBuf,
    _lock: File,
}

impl DataDirectory {
    /// Makes or takes the directory for this node of this cluster.
    pub(crate) fn open(path: &Path, cluster: ClusterId, name: NodeName) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|e| trouble(path, "can not be made", &e))?;
        let lock = lock(path)?;
        check_identity(path, cluster, name)?;
        Ok(Self {
            path: path.to_path_buf(),
            _lock: lock,
        })
    }

    /// Where the store lives.
    pub(crate) fn chunks(&self) -> PathBuf {
        self.path.join("chunks")
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A condemned store that is kept.
    pub(super) fn aside(&self) -> Result<Option<Aside>> {
        aside::find(&self.path)
    }

    pub(super) fn set_aside(&self, store: StoreId) -> Result<()> {
        aside::set_aside(&self.path, &self.chunks(), store)
    }

    /// Bytes that may be taken from its file system, or are ours already. What is set aside goes before long.
    pub(crate) fn capacity_bytes(&self) -> Result<u64> {
        capacity_bytes(&self.path, aside::size_bytes(&self.chunks()))
    }
}

/// What a store in this data directory may take of its file system, if it has taken `store_bytes`
/// already.
pub(super) fn capacity_bytes(data: &Path, store_bytes: u64) -> Result<u64> {
    let usable = usable_bytes(data).map_err(|e| trouble(data, "can not be measured", &e))?;
    Ok(usable
        .saturating_add(store_bytes)
        .saturating_add(aside::bytes_set_aside(data)))
}

pub(super) fn trouble(path: &Path, what: &str, source: &std::io::Error) -> Error {
    let code = if source.kind() == std::io::ErrorKind::StorageFull {
        ErrorCode::NoSpace
    } else {
        ErrorCode::Internal
    };
    Error::new(
        code,
        format!(
            "data directory {} {what}: {source}; check its owner, mode and file system",
            path.display()
        ),
    )
}

fn lock(path: &Path) -> Result<File> {
    let at = path.join("LOCK");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&at)
        .map_err(|e| trouble(path, "can not be locked", &e))?;
    if let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if errno != rustix::io::Errno::WOULDBLOCK {
            return Err(trouble(path, "can not be locked", &errno.into()));
        }
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        let pid = pid.trim();
        let pid = if pid.is_empty() { "unknown" } else { pid };
        return Err(Error::new(
            ErrorCode::Busy,
            format!(
                "data directory {} is in use by a running dfs storage (pid {pid}): stop it, or set another `data` in its node.toml",
                path.display()
            ),
        ));
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|e| trouble(path, "can not be locked", &e))?;
    Ok(file)
}

fn check_identity(path: &Path, cluster: ClusterId, name: NodeName) -> Result<()> {
    let at = path.join("node.json");
    let wrong = |why: String| {
        Err(Error::new(
            ErrorCode::Incompatible,
            format!("data directory {} {why}", path.display()),
        ))
    };
    let text = match std::fs::read_to_string(&at) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return write_identity(path, &at, cluster, name),
        Err(e) => return Err(trouble(path, "can not be read", &e)),
    };
    let found: NodeFile = match serde_json::from_str(&text) {
        Ok(found) => found,
        Err(e) => {
            return wrong(format!(
                "has a node.json that is none ({e}): restore it, or start with an empty one"
            ));
        }
    };
    if found.format > FORMAT {
        return wrong(format!(
            "has format {}, this program knows up to {FORMAT}: use a newer dfs",
            found.format
        ));
    }
    if found.cluster != cluster.to_string() {
        return wrong(format!(
            "belongs to cluster {}, not to {cluster}: set another `data` in its node.toml",
            found.cluster
        ));
    }
    if found.node != name.to_string() {
        return wrong(format!(
            "belongs to {}, not to {name}: set another `data` in its node.toml",
            found.node
        ));
    }
    Ok(())
}

fn write_identity(path: &Path, at: &Path, cluster: ClusterId, name: NodeName) -> Result<()> {
    let file = NodeFile {
        format: FORMAT,
        cluster: cluster.to_string(),
        node: name.to_string(),
    };
    let text = serde_json::to_string_pretty(&file)
        .map_err(|e| Error::new(ErrorCode::Internal, format!("node.json can not be written: {e}")))?;
    let temporary = path.join("node.json.new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, at)?;
        File::open(path)?.sync_all()
    };
    write().map_err(|e| trouble(path, "can not be written", &e))
}

#[cfg(test)]
mod tests {
    use dfs_common::Role;

    use super::*;

    #[test]
    fn a_directory_has_one_owner_and_one_user() {
        let directory = tempfile::tempdir().unwrap();
        let name = NodeName::new(Role::Storage, 1);
        let held = DataDirectory::open(directory.path(), ClusterId([1; 16]), name).unwrap();
        let error = DataDirectory::open(directory.path(), ClusterId([1; 16]), name).unwrap_err();
        assert_eq!(error.code, ErrorCode::Busy);
        assert!(error.detail.contains(&std::process::id().to_string()), "{error}");
        assert!(held.capacity_bytes().unwrap() > 0);
        drop(held);
        for (cluster, name) in [([2; 16], name), ([1; 16], NodeName::new(Role::Storage, 2))] {
            let error = DataDirectory::open(directory.path(), ClusterId(cluster), name).unwrap_err();
            assert_eq!(error.code, ErrorCode::Incompatible);
        }
        let newer = format!(
            r#"{{"format": 2, "cluster": "{}", "node": "storage-1"}}"#,
            ClusterId([1; 16])
        );
        std::fs::write(directory.path().join("node.json"), newer).unwrap();
        let error = DataDirectory::open(directory.path(), ClusterId([1; 16]), name).unwrap_err();
        assert!(error.detail.contains("newer dfs"), "{error}");
    }
}
