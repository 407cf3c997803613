//! Rest: a chain in which nothing is written lets its third member have a say too.
//!
//! A write at QUORUM is on the first two members, so when both go the third may lack something and has to wait. Most chains of a
//! cluster are not being written, though, and there the third has everything. When nothing has come in for a while, and nothing is
//! pending, the head has every member's store synced and says that the chain *rests*: all members are complete, and whoever
//! stays may carry it on.
//!
//! Invariant: while the metadata group may believe that the chain rests, nothing counts at QUORUM, and no sync at QUORUM, before it is
//! on every serving member. So from before the head says so until it has seen that the group knows better, mutations are marked
//! `everywhere`, and syncs go to all. The first mutation makes the head say that the rest is over; it waits for nothing. What it says is
//! numbered ([`Rest`]), since what was said may be decided late.

use dfs_common::planted::{self, Bug};
use dfs_common::{Level, Rest};

use super::sync::Asker;
use super::types::{Effect, Now};
use super::{ReplicaCore, Role, Successor};

/// How long a chain is quiet before it rests.
const REST_AFTER_MS: u64 = 1_000;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Resting {
    /// What this head said last in this epoch.
    said: Rest,
    quiet_since_ms: u64,
    /// The sync after which it may say that the chain rests.
    flush: Option<u64>,
}

impl Resting {
    pub(super) const fn begin(now: Now) -> Self {
        Self {
            said: Rest(0),
            quiet_since_ms: now.ms,
            flush: None,
        }
    }
}

impl ReplicaCore {
    /// Whether the group may believe that this chain rests.
    pub(super) fn may_rest(&self) -> bool {
        let known = self.config.as_ref().map_or(Rest(0), |config| config.rest);
        let said = self.resting.said;
        (said.is_resting() || said != known) && !planted::is(Bug::RestUnheeded)
    }

    /// At the head, before it takes a mutation: whether that must be everywhere.
    pub(super) fn wake(&mut self, now: Now) -> bool {
        self.resting.quiet_since_ms = now.ms;
        self.resting.flush = None;
        if self.resting.said.is_resting() {
            self.say(self.resting.said.next());
        }
        self.may_rest()
    }

    /// Whether this is a head that will let its chain rest if nothing comes.
    pub(super) fn gets_tired(&self) -> bool {
        let Some(config) = &self.config else {
            return false;
        };
        let head = matches!(
            self.role,
            Role::Serving {
                predecessor: None,
                successor: Successor::Serving(_),
            }
        );
        // With two members both are complete anyway.
        head && config.settled
            && config.serving().count() > dfs_common::chain::COMPLETE_MEMBERS
            && self.resting.flush.is_none()
            && self.resting.said == config.rest
            && !config.rest.is_resting()
    }

    pub(super) fn tire(&mut self, now: Now) {
        if !self.gets_tired() {
            return;
        }
        if !self.is_idle() || !self.ranges.is_empty() {
            self.resting.quiet_since_ms = now.ms;
        } else if now.ms >= self.resting.quiet_since_ms.saturating_add(REST_AFTER_MS) {
            if planted::is(Bug::RestUnflushed) {
                return self.say(self.resting.said.next());
            }
            self.resting.flush = Some(self.start_flush());
        }
    }

    /// A flush of every member's store has ended. (Not this one's, if something was written meanwhile.)
    pub(super) fn all_flushed(&mut self, job: u64) {
        if self.resting.flush == Some(job) {
            self.resting.flush = None;
            self.say(self.resting.said.next());
        }
    }

    fn say(&mut self, rest: Rest) {
        self.resting.said = rest;
        let epoch = self.epoch();
        self.effects.push(Effect::ReportRest { epoch, rest });
    }

    /// What a sync for a client has to reach.
    pub(super) fn reach(&self, level: Level) -> Level {
        if level == Level::Quorum && self.may_rest() {
            Level::All
        } else {
            level
        }
    }

    fn start_flush(&mut self) -> u64 {
        self.add_sync(Asker::Rest, Level::All, std::collections::BTreeSet::new())
    }
}
