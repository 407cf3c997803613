//! A server without its history neither votes nor stands until it has caught up.
//!
//! Raft's promise rests on a voter remembering what it acknowledged. A server whose disk was lost
//! or rotten has forgotten; its vote could elect a server that misses entries committed with its
//! help. So a server that starts without a log is marked, durably, as joining. Until the mark is
//! removed it votes only for a candidate whose log reaches as far as that of every other server,
//! each of which must say so: what it acknowledged and forgot is then in the candidate's log,
//! because another server holds it too. It stands on the same condition. That is also how a new
//! cluster begins, and how one goes on whose first leader ends before the others have caught up.
//! The mark goes when the server has applied everything that a leader calls committed, told by
//! messages some time apart (the leader may still have counted an acknowledgement from before the
//! loss when it sent the first), or when it was elected.
//!
//! The others are asked after the candidate's request has come. An entry that was committed with
//! this server's forgotten acknowledgement is by then in the log of the leader that sent it, or of
//! the third server: if that leader has restarted since without the entry, it counted the third
//! server's acknowledgement before.
//!
//! The limit: a joining server can not help to elect a leader while one of the two others is down;
//! a new cluster begins when all its servers are up. If two of three lose their disks, what only
//! those two had acknowledged is lost, and the third one's history goes on; without the third
//! nobody is elected.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dfs_common::{MetaId, codec};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::Transport;
use super::confirm::leader_id;
use super::error::LogError;
use super::log::sync_directory;
use super::network::{ASK_DEADLINE, KIND_LOG_END};
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

/// The end of another server's log; `None`: it does not say.
async fn where_its_log_ends(transport: &dyn Transport, member: MetaId) -> Option<Option<LogId>> {
    let answer = transport
        .send(member, KIND_LOG_END, Vec::new(), ASK_DEADLINE)
        .await
        .ok()?;
    codec::decode(&answer).ok()
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

    /// Whether `candidate`, whose log ends at `last`, may have this server's vote. `members` is the
    /// whole group; who has the server's history need not ask it.
    pub(super) async fn may_vote_for(
        &self,
        candidate: MetaId,
        last: Option<LogId>,
        (me, members): (MetaId, &BTreeSet<MetaId>),
        transport: &Arc<dyn Transport>,
    ) -> bool {
        if !self.is_active() {
            return true;
        }
        let mut asked = JoinSet::new();
        for &member in members.iter().filter(|&&member| member != me && member != candidate) {
            let transport = Arc::clone(transport);
            asked.spawn(async move {
                where_its_log_ends(&*transport, member)
                    .await
                    .is_some_and(|its| its <= last)
            });
        }
        asked.join_all().await.into_iter().all(|no_further| no_further)
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
