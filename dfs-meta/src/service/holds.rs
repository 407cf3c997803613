//! Holds that others want: their sessions are told, and who does not give up in time has them taken.
//!
//! What is held stands in the replicated state, so it outlives any leader. What is wanted is known to the leader alone: who
//! wants it asks again when the leader changed. A mount relies on its holds for [`HOLD_LEASE_MS`] after it sent a question
//! that was answered, and is only answered by a leader that a quorum has just confirmed; so after [`HOLD_TAKEN_MS`] in one
//! term no mount relies on a hold that it has not given up, wherever it is.
//!
//! [`HOLD_LEASE_MS`]: dfs_common::wire::meta::HOLD_LEASE_MS

use std::collections::BTreeMap;
use std::time::Duration;

use dfs_common::wire::meta::{HOLD_TAKEN_MS, LEADER_CONFIRMED_MS};
use dfs_common::{Error, ErrorCode, Hold, HoldEpoch, Result, SessionId};
use dfs_net::BootInstant;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::shared::{Shared, not_leader};
use crate::command::CommandKind;

/// Between two looks at whether a hold is over. It takes the holder a few milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The same, after a while.
const LOOK_SELDOM: Duration = Duration::from_millis(8);

/// Longest wait in one question for wants; mounts ask again.
const WANTED_WAIT_MAX: Duration = Duration::from_millis(500);

/// One hold that is wanted, and since when in this term.
#[derive(Clone, Copy, Debug)]
struct Want {
    epoch: HoldEpoch,
    term: u64,
    since: BootInstant,
}

/// See the module. At most one entry a session.
#[derive(Debug)]
pub(super) struct Wants(watch::Sender<BTreeMap<SessionId, Want>>);

impl Wants {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }

    /// Notes the want, and returns since when it stands.
    fn note(&self, hold: Hold, term: u64) -> BootInstant {
        let now = BootInstant::now();
        let mut since = now;
        self.0.send_if_modified(|wants| {
            let known = wants
                .get(&hold.session)
                .filter(|want| want.term == term && want.epoch >= hold.epoch);
            if let Some(want) = known {
                since = want.since;
                return false;
            }
            let want = Want {
                epoch: hold.epoch,
                term,
                since: now,
            };
            wants.insert(hold.session, want);
            true
        });
        since
    }

    fn forget(&self, hold: Hold) {
        self.0.send_if_modified(|wants| {
            let over = wants.get(&hold.session).is_some_and(|want| want.epoch <= hold.epoch);
            if over {
                wants.remove(&hold.session);
            }
            over
        });
    }
}

impl Shared {
    /// Waits until the hold is over, after its holder was told; takes it from one that does not answer.
    pub(super) async fn end_hold(&self, hold: Hold, until: Instant) -> Result<()> {
        let term = self.consensus.leadership().borrow().term;
        let since = self.wants.note(hold, term);
        let mut pause = LOOK_EVERY;
        loop {
            if !self.state.is_held(hold)? {
                self.wants.forget(hold);
                return Ok(());
            }
            let now = *self.consensus.leadership().borrow();
            if !now.is_self || now.term != term {
                return Err(not_leader());
            }
            if since.elapsed() >= Duration::from_millis(HOLD_TAKEN_MS) {
                warn!(
                    session = hold.session.0,
                    "the mount of this session did not give up what it holds within {HOLD_TAKEN_MS} ms; it is taken. \
                     Names that it made may come late, its other late changes are refused"
                );
                let left = until.saturating_duration_since(Instant::now());
                self.propose(CommandKind::Release(hold), left).await?;
                self.wants.forget(hold);
                return Ok(());
            }
            if Instant::now() >= until {
                // Not a timeout: nobody shall take this leader for dead because of it.
                return Err(Error::new(
                    ErrorCode::Overloaded,
                    format!("session {} holds it and has not given it up yet", hold.session),
                ));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_SELDOM);
        }
    }

    /// Whether somebody wants the hold, or it is over; waits a while for that.
    pub(super) async fn wanted(&self, hold: Hold, wait: Duration) -> Result<bool> {
        let mut wants = self.wants.0.subscribe();
        let mut leadership = self.consensus.leadership();
        let wanted = wants.wait_for(|wants| wants.get(&hold.session).is_some_and(|want| want.epoch >= hold.epoch));
        let wanted = tokio::select! {
            biased;
            wanted = wanted => wanted.is_ok(),
            _ = leadership.wait_for(|now| !now.is_self) => return Err(not_leader()),
            () = tokio::time::sleep(wait.min(WANTED_WAIT_MAX)) => false,
        };
        if wanted || !self.state.is_held(hold)? {
            return Ok(true);
        }
        // "No" lets the holder go on for a while, so only a leader that has not been replaced may say it.
        if self
            .consensus
            .confirmed_within(Duration::from_millis(LEADER_CONFIRMED_MS))
        {
            Ok(false)
        } else {
            Err(Error::new(
                ErrorCode::Overloaded,
                "no quorum has confirmed this leader lately; ask again",
            ))
        }
    }
}
