//! Which files are known to carry setuid or setgid bits.
//!
//! With FUSE_HANDLE_KILLPRIV_V2 the kernel leaves it to us to clear them when somebody without privileges writes, and
//! in exchange asks for no `security.capability` before every write. It flags each such write; nearly all are of files
//! without the bits, so the few with them are remembered from the attributes that pass by.

use std::collections::BTreeSet;

use dfs_common::InodeId;
use dfs_common::wire::namespace::{Attributes, FileKind};
use parking_lot::Mutex;

/// Far more setuid files than any system has. Beyond it the oldest inode is forgotten and keeps its bits when written.
const REMEMBERED_FILES: usize = 65_536;

#[derive(Debug, Default)]
pub(crate) struct PrivilegedFiles(Mutex<BTreeSet<InodeId>>);

impl PrivilegedFiles {
    /// Takes note of what these attributes say.
    pub(crate) fn note(&self, attributes: &Attributes) {
        let mut files = self.0.lock();
        if without_privileges(attributes).is_none() {
            files.remove(&attributes.inode);
            return;
        }
        files.insert(attributes.inode);
        if files.len() > REMEMBERED_FILES {
            files.pop_first();
        }
    }

    pub(crate) fn contains(&self, inode: InodeId) -> bool {
        self.0.lock().contains(&inode)
    }
}

/// The mode without setuid and setgid, if a write or chown takes them away: setgid without group execute means
/// mandatory locking, not privilege, and stays.
pub(crate) fn without_privileges(attributes: &Attributes) -> Option<u32> {
    if attributes.kind != FileKind::Regular {
        return None;
    }
    let mode = attributes.mode & 0o7777;
    let mut cleared = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        cleared &= !libc::S_ISGID;
    }
    (cleared != mode).then_some(cleared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_common::{Policy, Timestamp};

    fn file(kind: FileKind, mode: u32) -> Attributes {
        Attributes {
            inode: InodeId(5),
            kind,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            length_bytes: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            crtime: Timestamp::default(),
            change: 0,
            file: None,
            policy: Policy::default(),
        }
    }

    #[test]
    fn what_a_write_takes_away() {
        let after = |mode| without_privileges(&file(FileKind::Regular, mode));
        assert_eq!(after(0o4755), Some(0o755));
        assert_eq!(after(0o2755), Some(0o755));
        assert_eq!(after(0o6755), Some(0o755));
        assert_eq!(after(0o2745), None, "setgid without group execute stays");
        assert_eq!(after(0o6745), Some(0o2745));
        assert_eq!(after(0o1755), None);
        assert_eq!(without_privileges(&file(FileKind::Directory, 0o2775)), None);
    }

    #[test]
    fn the_latest_attributes_count() {
        let files = PrivilegedFiles::default();
        files.note(&file(FileKind::Regular, 0o4755));
        assert!(files.contains(InodeId(5)));
        files.note(&file(FileKind::Regular, 0o755));
        assert!(!files.contains(InodeId(5)));
    }
}
