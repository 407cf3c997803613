//! What a thread was told a moment ago, for the question that the kernel asks next.
//!
//! Attributes of files are not the kernel's to keep (others may write), so within one open(2) or stat(2) it asks for them
//! again right after the lookup or create that brought them. The second question of the same system call is answered with
//! the first one's answer, without a request.
//!
//! Invariant: an answer serves once, to the very next request of the same thread, within [`KEEP`], and only if nothing was
//! changed through this mount since the first question came.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_common::InodeId;
use dfs_common::wire::namespace::{Attributes, FileKind};
use parking_lot::Mutex;

/// The kernel's two questions are some ten microseconds apart; this bounds what a thread that asks no second one leaves.
const KEEP: Duration = Duration::from_millis(1);

/// Threads remembered; those that asked long ago are dropped when there are more.
const MAX_THREADS: usize = 1_024;

#[derive(Debug, Default)]
pub(crate) struct Recent {
    threads: Mutex<HashMap<u32, Told>>,
    changes: AtomicU64,
}

#[derive(Debug)]
struct Told {
    attributes: Attributes,
    /// Changes through this mount when the question came.
    changes: u64,
    at: Instant,
}

impl Recent {
    /// Something is changed, or was: what was told before is not to be repeated. Returns the new state of things.
    pub(crate) fn changed(&self) -> u64 {
        self.changes.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The state of things, to be taken when a question comes.
    pub(crate) fn now(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Remembers an answer to `thread`, whose question came at `asked` (see [`Recent::now`]).
    pub(crate) fn told(&self, thread: u32, attributes: &Attributes, asked: u64) {
        // 0: the kernel itself, or somebody of another namespace; they are many. Of directories the kernel has its own copy.
        if thread == 0 || attributes.kind == FileKind::Directory {
            return;
        }
        let told = Told {
            attributes: attributes.clone(),
            changes: asked,
            at: Instant::now(),
        };
        let mut threads = self.threads.lock();
        if threads.len() >= MAX_THREADS {
            threads.retain(|_, told| told.at.elapsed() < KEEP);
        }
        if threads.len() < MAX_THREADS {
            threads.insert(thread, told);
        }
    }

    /// To be called for every request of `thread`: what it was told last, if that is of `inode` and still good.
    pub(crate) fn take(&self, thread: u32, inode: Option<InodeId>) -> Option<Attributes> {
        let told = self.threads.lock().remove(&thread)?;
        let good = Some(told.attributes.inode) == inode && told.changes == self.now() && told.at.elapsed() < KEEP;
        good.then_some(told.attributes)
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::{Policy, Timestamp};

    use super::*;

    const FILE: InodeId = InodeId(7);

    fn attributes() -> Attributes {
        Attributes {
            inode: FILE,
            kind: FileKind::Regular,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            length_bytes: 3,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            crtime: Timestamp::default(),
            change: 1,
            file: None,
            policy: Policy::default(),
        }
    }

    #[test]
    fn serves_the_same_thread_once() {
        let recent = Recent::default();
        recent.told(10, &attributes(), recent.now());
        assert!(recent.take(11, Some(FILE)).is_none());
        assert!(recent.take(10, Some(FILE)).is_some());
        assert!(recent.take(10, Some(FILE)).is_none());
    }

    #[test]
    fn any_other_request_of_the_thread_ends_it() {
        let recent = Recent::default();
        recent.told(10, &attributes(), recent.now());
        assert!(recent.take(10, None).is_none());
        assert!(recent.take(10, Some(FILE)).is_none());
        recent.told(10, &attributes(), recent.now());
        assert!(recent.take(10, Some(InodeId(8))).is_none());
    }

    #[test]
    fn a_change_in_between_or_time_ends_it() {
        let recent = Recent::default();
        let asked = recent.now();
        assert_eq!(recent.changed(), asked + 1);
        recent.told(10, &attributes(), asked);
        assert!(recent.take(10, Some(FILE)).is_none());
        recent.told(10, &attributes(), recent.now());
        std::thread::sleep(KEEP);
        assert!(recent.take(10, Some(FILE)).is_none());
    }

    #[test]
    fn unknown_threads_and_crowds_are_not_remembered() {
        let recent = Recent::default();
        recent.told(0, &attributes(), recent.now());
        assert!(recent.take(0, Some(FILE)).is_none());
        for thread in 1..=3 * MAX_THREADS as u32 {
            recent.told(thread, &attributes(), recent.now());
        }
        assert!(recent.threads.lock().len() <= MAX_THREADS);
    }
}
