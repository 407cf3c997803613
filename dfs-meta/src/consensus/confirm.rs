//! When a quorum last answered this leader. Pure: times come from outside.
//!
//! They are [`BootInstant`]s: followers' leases run on while this machine is suspended, so this server's belief in them must
//! run out as well. A follower refuses votes by its monotonic clock, which is never ahead of that one.
//!
//! A leader may answer reads alone while no other can have been elected. Followers refuse to vote for [`LEASE_MS`] after
//! they accepted a message of the leader; we count from when the message was *sent*, so that neither a slow answer nor a
//! pause of this process can make us believe too long. (openraft's own figure is a duration computed at some earlier time,
//! which a pause makes wrong.) The leader's own vote is no lease: it could help to elect another while a follower's answer
//! is still fresh. So a confirmed leader gives no vote, and once it has let a vote request pass, answers to older terms
//! count no more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dfs_net::BootInstant;

use super::types::Vote;

/// How long a follower refuses to vote after it heard from its leader: openraft's lease, the longest election timeout.
pub(super) const LEASE_MS: u64 = ELECTION_TIMEOUT_MAX_MS;

/// Only for the lease: when to stand is decided in `elections`. It must be over the interval below.
pub(super) const ELECTION_TIMEOUT_MIN_MS: u64 = 210;
pub(super) const ELECTION_TIMEOUT_MAX_MS: u64 = 250;
/// The deadline of an append: one that is missed costs openraft's back-off, so it must survive a slow sync.
pub(super) const HEARTBEAT_INTERVAL_MS: u64 = 200;
/// How often followers hear of a leader that has nothing to say: twice in the time for which their answers count.
pub(super) const HEARTBEAT_EVERY_MS: u64 = 80;

// Clocks of two machines differ in rate by far less than the third that is left.
const _: () = assert!(dfs_common::wire::meta::LEADER_CONFIRMED_MS * 3 <= LEASE_MS * 2);
const _: () = assert!(HEARTBEAT_EVERY_MS * 2 <= dfs_common::wire::meta::LEADER_CONFIRMED_MS);

/// (term, node): what openraft calls a leader id.
type LeaderId = (u64, u64);

pub(super) const fn leader_id(vote: &Vote) -> LeaderId {
    (vote.leader_id.term, vote.leader_id.node_id)
}

#[derive(Debug, Default)]
pub(super) struct Confirmations {
    members: BTreeSet<u64>,
    me: u64,
    leader: LeaderId,
    /// When the newest message that a peer answered was sent.
    sent: BTreeMap<u64, BootInstant>,
    /// A vote request of this leader-to-be was let through.
    passed: Option<LeaderId>,
}

impl Confirmations {
    pub(super) fn new(me: u64, members: BTreeSet<u64>) -> Self {
        Self {
            members,
            me,
            ..Self::default()
        }
    }

    /// `peer` accepted a message sent under `leader` at `sent`.
    pub(super) fn answered(&mut self, leader: LeaderId, peer: u64, sent: BootInstant) {
        if leader.1 != self.me || leader < self.leader {
            return;
        }
        if leader > self.leader {
            self.leader = leader;
            self.sent.clear();
        }
        let newest = self.sent.entry(peer).or_insert(sent);
        *newest = sent.max(*newest);
    }

    /// A quorum, this server included, answered messages of `term` sent within the last `within`.
    pub(super) fn confirmed(&self, term: u64, within: Duration, now: BootInstant) -> bool {
        if self.members.len() == 1 {
            return self.members.contains(&self.me);
        }
        if self.leader.0 != term || self.passed.is_some_and(|passed| passed > self.leader) {
            return false;
        }
        let fresh = self
            .sent
            .iter()
            .filter(|(peer, sent)| self.members.contains(peer) && now.saturating_duration_since(**sent) <= within)
            .count();
        (fresh + 1) * 2 > self.members.len()
    }

    /// Whether a vote request may be looked at; remembers it if so.
    pub(super) fn let_vote_pass(&mut self, candidate: LeaderId, within: Duration, now: BootInstant) -> bool {
        if self.members.len() > 1 && self.confirmed(self.leader.0, within, now) {
            return false;
        }
        self.passed = self.passed.max(Some(candidate));
        true
    }

    /// The request that was let through was refused after all.
    pub(super) fn vote_refused(&mut self, candidate: LeaderId) {
        if self.passed == Some(candidate) {
            self.passed = None;
        }
    }

    pub(super) fn sent(&self) -> &BTreeMap<u64, BootInstant> {
        &self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_millis(400);

    #[test]
    fn a_quorum_counts_from_when_it_was_asked() {
        let start = BootInstant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut this = Confirmations::new(1, [1, 2, 3].into());
        assert!(!this.confirmed(5, WITHIN, start));
        this.answered((5, 1), 2, at(0));
        assert!(this.confirmed(5, WITHIN, at(400)));
        assert!(!this.confirmed(5, WITHIN, at(401)));
        assert!(!this.confirmed(6, WITHIN, at(0)));
        // Answers to a former term, or out of order, change nothing.
        this.answered((4, 1), 3, at(900));
        this.answered((5, 1), 2, at(500));
        this.answered((5, 1), 2, at(100));
        assert!(this.confirmed(5, WITHIN, at(900)));
        assert!(!this.confirmed(5, WITHIN, at(901)));
        this.answered((6, 1), 3, at(901));
        assert!(!this.confirmed(5, WITHIN, at(901)) && this.confirmed(6, WITHIN, at(901)));
    }

    #[test]
    fn a_vote_let_through_ends_confidence_until_it_was_refused() {
        let start = BootInstant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut this = Confirmations::new(1, [1, 2, 3].into());
        this.answered((5, 1), 2, at(0));
        assert!(!this.let_vote_pass((6, 3), WITHIN, at(100)));
        assert!(this.let_vote_pass((6, 3), WITHIN, at(500)));
        this.answered((5, 1), 2, at(500));
        assert!(!this.confirmed(5, WITHIN, at(500)));
        this.vote_refused((6, 3));
        assert!(this.confirmed(5, WITHIN, at(500)));
    }
}
