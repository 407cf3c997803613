//! A server without its history neither votes nor stands until it has caught up.
//!
//! Raft's promise rests on a voter remembering what it acknowledged. A server whose disk was lost or rotten has forgotten;
//! its vote could elect a server that misses entries committed with its help. So a server that starts without a log is
//! marked, durably, as joining. Until the mark is removed it votes only for a candidate whose log is as empty as that of a
//! new cluster (otherwise no cluster could begin), and stands only with such a log itself. The mark goes when it has
//! applied everything that a leader calls committed, told by messages some time apart (the leader may still have counted an
//! acknowledgement from before the loss when it sent the first), or when it was elected.
//!
//! The limit: two of three servers that lose their disks at once look like a new cluster to each other, and nobody can tell
//! that they are not while the third is away. And a server that joins for the first time can not help to elect a leader
//! while one of the two others is down.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::confirm::leader_id;
use super::error::LogError;
use super::log::sync_directory;
use super::types::{LogId, Vote};

/// Between the first message of a leader and the one that may end joining.
const SETTLE: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(super) struct Joining {
    mark: PathBuf,
    active: AtomicBool,
    first_seen: Mutex<Option<((u64, u64), Instant)>>,
}

pub(super) fn mark_path(directory: &Path) -> PathBuf {
    directory.join("joining")
}

/// Sets the mark, durably.
pub(super) fn mark(directory: &Path) -> Result<(), LogError> {
    std::fs::create_dir_all(directory).map_err(LogError::io("creating", directory))?;
    let path = mark_path(directory);
    std::fs::write(
        &path,
        b"this server has not caught up yet; see joining in the documentation\n",
    )
    .and_then(|()| std::fs::File::open(&path)?.sync_all())
    .map_err(LogError::io("writing", &path))?;
    sync_directory(directory)
}

impl Joining {
    pub(super) fn open(directory: &Path) -> Self {
        let mark = mark_path(directory);
        Self {
            active: AtomicBool::new(mark.exists()),
            mark,
            first_seen: Mutex::new(None),
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Whether to answer a candidate whose log ends at `last`.
    pub(super) fn may_vote_for(&self, last: Option<LogId>) -> bool {
        !self.is_active() || last.is_none_or(|id| id.index == 0)
    }

    /// Whether to stand with a log that ends at `last`.
    pub(super) fn may_stand(&self, last: Option<u64>) -> bool {
        !self.is_active() || last.is_none_or(|index| index == 0)
    }

    /// A leader's message was accepted. Returns whether this ends joining.
    pub(super) fn heard(&self, vote: &Vote, committed: Option<u64>, applied: Option<u64>, now: Instant) -> bool {
        if !self.is_active() {
            return false;
        }
        let mut first = self.first_seen.lock();
        match *first {
            Some((leader, since)) if leader == leader_id(vote) => {
                committed.is_some() && applied >= committed && now.saturating_duration_since(since) >= SETTLE
            }
            _ => {
                *first = Some((leader_id(vote), now));
                false
            }
        }
    }

    /// Removes the mark. Blocks on disk, once in a server's life.
    pub(super) fn end(&self) {
        if !self.active.swap(false, Ordering::AcqRel) {
            return;
        }
        let removed = std::fs::remove_file(&self.mark).map_err(LogError::io("removing", &self.mark));
        match removed.and_then(|()| self.mark.parent().map_or(Ok(()), sync_directory)) {
            Ok(()) => tracing::info!("caught up with the other metadata servers; voting from now on"),
            // It comes back as joining after a restart: harmless.
            Err(error) => tracing::warn!(%error, "the joining mark stays"),
        }
    }
}
