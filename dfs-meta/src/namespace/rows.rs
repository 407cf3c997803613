//! Values of the namespace's rows. Encoded by the system's codec; `store::keys` has their keys.

use dfs_common::wire::namespace::{Attributes, FileAttributes, FileKind, WrappedKey};
use dfs_common::{CutEpoch, Hold, HoldEpoch, InodeId, LastCuts, Layout, Policy, Timestamp, ValidName, VersionVector};

use super::Growing;
use serde::{Deserialize, Serialize};

/// Bytes that `stat` shows for each entry of a directory.
const DIRECTORY_ENTRY_BYTES: u64 = 32;

/// Everything about an inode but its names and extended attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeRow {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub crtime: Timestamp,
    pub change: u64,
    pub policy: Policy,
    /// Names and values of all extended attributes together.
    pub xattr_bytes: u32,
    /// Whose it is, as long as that session is in that epoch; see [`HoldRow`].
    pub hold: Option<Hold>,
    /// The holder of this regular file writes without a word: `length_bytes` is the least that it has. Of no meaning to the
    /// holder; when the hold is over, nobody looks at the file before its length is found.
    pub growing: bool,
    pub body: Body,
}

/// What differs by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    Regular {
        length_bytes: u64,
        layout: Layout,
        key: WrappedKey,
        versions: VersionVector,
        /// See [`CutEpoch`].
        cut: CutEpoch,
        cuts: LastCuts,
        /// See [`FileAttributes::sparse`].
        sparse: bool,
    },
    Directory {
        /// The root's parent is the root.
        parent: InodeId,
        entries: u64,
    },
    Symlink {
        target: Vec<u8>,
    },
    Special {
        kind: FileKind,
        rdev: u32,
    },
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DentryRow {
    pub inode: InodeId,
    pub name: ValidName,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XattrRow {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

/// A regular file without a name: lives on while somebody has it open, and until its chunks are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanRow {
    pub unlinked_at: Timestamp,
}

/// What a session may give and keep. It holds the inodes that name its present epoch; so all of them are given up at once by
/// raising it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRow {
    pub epoch: HoldEpoch,
    /// Inode numbers that it may still give: `first..end`.
    pub first: InodeId,
    pub end: InodeId,
}

/// What is counted rather than searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Never goes back, so a number is never given twice.
    pub next_inode: InodeId,
    pub next_session: dfs_common::SessionId,
    /// Inodes that have a name.
    pub inodes: u64,
    pub orphans: u64,
    pub sessions: u64,
}

impl InodeRow {
    pub fn kind(&self) -> FileKind {
        match self.body {
            Body::Regular { .. } => FileKind::Regular,
            Body::Directory { .. } => FileKind::Directory,
            Body::Symlink { .. } => FileKind::Symlink,
            Body::Special { kind, .. } => kind,
        }
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory { .. })
    }

    /// What is to be found out about a growing file whose hold is over.
    pub fn left_growing(&self, inode: InodeId) -> Option<Growing> {
        match (&self.body, self.hold) {
            (
                Body::Regular {
                    length_bytes, layout, ..
                },
                Some(hold),
            ) if self.growing => Some(Growing {
                inode,
                hold,
                layout: *layout,
                length_bytes: *length_bytes,
            }),
            _ => None,
        }
    }

    /// The inode itself changed.
    pub fn touch_ctime(&mut self, now: Timestamp) {
        self.ctime = now;
        self.change += 1;
    }

    /// Its content changed.
    pub fn touch_mtime(&mut self, now: Timestamp) {
        self.mtime = now;
        self.touch_ctime(now);
    }

    pub fn attributes(&self, inode: InodeId) -> Attributes {
        let (length_bytes, rdev, file) = match &self.body {
            Body::Regular {
                length_bytes,
                layout,
                key,
                versions,
                cut,
                cuts,
                sparse,
            } => {
                let file = FileAttributes {
                    layout: *layout,
                    key: key.clone(),
                    versions: versions.clone(),
                    cut: *cut,
                    cuts: cuts.clone(),
                    sparse: *sparse,
                };
                (*length_bytes, 0, Some(file))
            }
            Body::Directory { entries, .. } => (entries * DIRECTORY_ENTRY_BYTES, 0, None),
            Body::Symlink { target } => (target.len() as u64, 0, None),
            Body::Special { rdev, .. } => (0, *rdev, None),
        };
        Attributes {
            inode,
            kind: self.kind(),
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev,
            length_bytes,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            crtime: self.crtime,
            change: self.change,
            file,
            policy: self.policy,
        }
    }
}
