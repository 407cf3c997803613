//! Attributes of directories that this mount itself has just changed. Pure.
//!
//! The kernel drops a directory's attributes whenever it changes an entry there, and asks for them before the next
//! step: without this every create would cost a second request. Every change brings its directories' attributes along,
//! and they serve for [`KEEP_MS`], as long as the kernel would have kept them.
//!
//! Invariant: what is kept is no older than the last change that this mount made to that directory and saw answered.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::num::NonZeroUsize;

use dfs_common::InodeId;
use dfs_common::wire::namespace::{Attributes, FileKind, NamespaceChange, NamespaceOp};
use lru::LruCache;

/// How long other mounts' changes of a directory may go unseen: see SEMANTICS, "Several mounts".
pub(crate) const KEEP_MS: u64 = 1_000;

/// Directories that one mount changes within a second.
const MAX_DIRECTORIES: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

/// See the module.
#[derive(Debug)]
pub(crate) struct Directories {
    known: LruCache<InodeId, Known>,
    /// Rises with everything that is forgotten: an answer to what was asked before that may be older.
    forgotten: u64,
}

#[derive(Debug)]
struct Known {
    attributes: Attributes,
    asked_ms: u64,
}

/// When a change was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    forgotten: u64,
    at_ms: u64,
}

impl Directories {
    pub(crate) fn new() -> Self {
        Self {
            known: LruCache::new(MAX_DIRECTORIES),
            forgotten: 0,
        }
    }

    /// To be called before a change is sent.
    pub(crate) fn sending(&self, now_ms: u64) -> Sent {
        Sent {
            forgotten: self.forgotten,
            at_ms: now_ms,
        }
    }

    /// A change was answered, or was given up (`None`): it may have taken effect.
    pub(crate) fn answered(
        &mut self,
        sent: Sent,
        op: &NamespaceOp,
        answer: Option<(&NamespaceChange, Vec<Attributes>)>,
    ) {
        let current = sent.forgotten == self.forgotten;
        match op {
            NamespaceOp::SetAttributes { inode, .. }
            | NamespaceOp::SetXattr { inode, .. }
            | NamespaceOp::RemoveXattr { inode, .. }
            | NamespaceOp::SetPolicy { inode, .. } => self.forget(*inode),
            // What was moved may be a directory, and nobody says which.
            NamespaceOp::Rename { .. } => {
                self.forgotten += 1;
                self.known.clear();
            }
            _ => {}
        }
        let Some((change, parents)) = answer else {
            return op.parents().for_each(|parent| self.forget(parent));
        };
        if let NamespaceChange::Removed { inode, .. } = change {
            self.forget(*inode);
        }
        for attributes in parents {
            if current {
                self.learn(attributes, sent.at_ms);
            } else {
                self.known.pop(&attributes.inode);
            }
        }
    }

    fn learn(&mut self, attributes: Attributes, asked_ms: u64) {
        let inode = attributes.inode;
        let newer = self
            .known
            .peek(&inode)
            .is_some_and(|known| known.attributes.change > attributes.change);
        if attributes.kind == FileKind::Directory && !newer {
            self.known.put(inode, Known { attributes, asked_ms });
        }
    }

    fn forget(&mut self, inode: InodeId) {
        self.forgotten += 1;
        self.known.pop(&inode);
    }

    /// Everything, as when the session was lost.
    pub(crate) fn clear(&mut self) {
        self.forgotten += 1;
        self.known.clear();
    }

    /// Attributes and their age in milliseconds.
    pub(crate) fn get(&mut self, inode: InodeId, now_ms: u64) -> Option<(Attributes, u64)> {
        let known = self.known.get(&inode)?;
        let age_ms = now_ms.saturating_sub(known.asked_ms);
        (age_ms < KEEP_MS).then(|| (known.attributes.clone(), age_ms))
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::wire::namespace::{RenameMode, SetAttributes};
    use dfs_common::{Policy, Timestamp, ValidName};

    use super::*;

    const DIRECTORY: InodeId = InodeId(7);

    fn attributes(change: u64) -> Attributes {
        Attributes {
            inode: DIRECTORY,
            kind: FileKind::Directory,
            mode: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            length_bytes: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            crtime: Timestamp::default(),
            change,
            file: None,
            policy: Policy::default(),
        }
    }

    fn mkdir() -> NamespaceOp {
        NamespaceOp::Mkdir {
            parent: DIRECTORY,
            name: ValidName::new("a").unwrap(),
            mode: 0o755,
        }
    }

    fn chmod() -> NamespaceOp {
        NamespaceOp::SetAttributes {
            inode: DIRECTORY,
            set: SetAttributes::default(),
            commit: None,
        }
    }

    fn answered(directories: &mut Directories, sent: Sent, change: u64) {
        directories.answered(sent, &mkdir(), Some((&NamespaceChange::Done, vec![attributes(change)])));
    }

    #[test]
    fn a_change_leaves_its_directory_for_a_while() {
        let mut directories = Directories::new();
        let sent = directories.sending(100);
        answered(&mut directories, sent, 5);
        assert_eq!(
            directories.get(DIRECTORY, 400).map(|(known, age)| (known.change, age)),
            Some((5, 300))
        );
        assert!(directories.get(DIRECTORY, 100 + KEEP_MS).is_none());
    }

    #[test]
    fn answers_out_of_order_do_not_take_it_back() {
        let mut directories = Directories::new();
        let (first, second) = (directories.sending(0), directories.sending(1));
        answered(&mut directories, second, 6);
        answered(&mut directories, first, 5);
        assert_eq!(directories.get(DIRECTORY, 2).map(|(known, _)| known.change), Some(6));
    }

    #[test]
    fn what_was_asked_before_it_was_changed_otherwise_does_not_count() {
        let mut directories = Directories::new();
        let (create, other) = (directories.sending(0), directories.sending(0));
        directories.answered(other, &chmod(), None);
        answered(&mut directories, create, 5);
        assert!(directories.get(DIRECTORY, 1).is_none());
        let create = directories.sending(2);
        answered(&mut directories, create, 7);
        assert!(directories.get(DIRECTORY, 3).is_some());
        let given_up = directories.sending(4);
        directories.answered(given_up, &mkdir(), None);
        assert!(directories.get(DIRECTORY, 5).is_none());
    }

    #[test]
    fn a_rename_may_have_moved_any_directory() {
        let mut directories = Directories::new();
        let sent = directories.sending(0);
        answered(&mut directories, sent, 5);
        let name = ValidName::new("b").unwrap();
        let rename = NamespaceOp::Rename {
            parent: InodeId(9),
            name: name.clone(),
            new_parent: InodeId(9),
            new_name: name,
            mode: RenameMode::Replace,
        };
        let sent = directories.sending(1);
        directories.answered(
            sent,
            &rename,
            Some((&NamespaceChange::Renamed { replaced: None }, Vec::new())),
        );
        assert!(directories.get(DIRECTORY, 2).is_none());
    }
}
