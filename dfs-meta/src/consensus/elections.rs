//! When this server stands for election. Pure: times and chance come from outside.
//!
//! openraft stands by a timer of its own, which knows only silence; it is switched off. Here a server stands
//!
//! - as soon as its leader's process is known to be dead (its kernel said so), or the leader itself has said that it is deaf, and
//!   the others may vote again, or
//! - after [`SILENCE_MS`] without a word from a leader, which no busy machine should take for a death;
//!
//! and only if it has asked the others before and a majority, itself included, hears no leader either. (Raft's pre-vote, which
//! openraft lacks: a server that is cut off in one direction must not depose a leader whom everybody else hears.) Who has the lower
//! number goes first, so that two do not take each other's votes.
//!
//! A server that has just started does not know whom it vouched for before. That leader may answer reads without asking as long as
//! its lease lasts, so until then this server neither votes nor lets anybody stand, nor does it stand.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::confirm::LEASE_MS;
use super::hearing::MUTE_MS;

/// Longer than a busy machine keeps a process waiting that has something to do; shorter than a person notices.
pub(super) const SILENCE_MS: u64 = 550;

/// Between the first to stand and the next: an election is a round trip and two syncs.
const STEP_MS: u64 = 120;

/// After the lease, for a clock that ticks coarsely and a message that was on its way.
const MARGIN_MS: u64 = 5;

/// Chance adds up to this, so that two who always meet get apart.
const JITTER_MS: u64 = 40;

#[derive(Debug)]
pub(super) struct Elections {
    me: u64,
    members: BTreeSet<u64>,
    started: Instant,
    /// When a leader was last heard, or a vote was given: that server is to have its chance.
    heard: Instant,
    /// Whom it was, and in which term.
    leader: Option<u64>,
    term: u64,
    /// Its process has died.
    is_dead: bool,
    /// It said that it is deaf; that is as good as dead, for a while.
    resigned: Option<Instant>,
    /// Its disk is nearly full: servers that have room go first.
    stands_late: bool,
    /// Not before this, after an attempt.
    rest: Option<Instant>,
}

impl Elections {
    pub(super) fn new(me: u64, members: BTreeSet<u64>, now: Instant) -> Self {
        Self {
            me,
            members,
            started: now,
            heard: now,
            leader: None,
            term: 0,
            is_dead: false,
            resigned: None,
            stands_late: false,
            rest: None,
        }
    }

    /// A message of a leader was accepted. The last ones of a dead leader may come after the news of its death.
    pub(super) fn heard(&mut self, leader: u64, term: u64, now: Instant) {
        self.heard = now;
        if (self.leader, self.term) != (Some(leader), term) {
            (self.leader, self.term) = (Some(leader), term);
            self.is_dead = false;
            self.resigned = None;
        }
        // It hears again, and nobody was elected.
        let silent = Duration::from_millis(MUTE_MS - 2 * LEASE_MS / 5);
        if self
            .resigned
            .is_some_and(|at| now.saturating_duration_since(at) > silent)
        {
            self.is_dead = false;
            self.resigned = None;
        }
        if !self.is_dead {
            self.rest = None;
        }
    }

    /// This server gave somebody its vote.
    pub(super) fn voted(&mut self, now: Instant) {
        self.heard = now;
        self.leader = None;
        self.is_dead = false;
        self.resigned = None;
    }

    pub(super) const fn last_heard(&self) -> Instant {
        self.heard
    }

    pub(super) fn died(&mut self, leader: u64) {
        if self.leader == Some(leader) {
            self.is_dead = true;
        }
    }

    /// The leader of this term said that it is deaf.
    pub(super) fn resigned(&mut self, leader: u64, term: u64, now: Instant) {
        if (self.leader, self.term) == (Some(leader), term) {
            self.is_dead = true;
            self.resigned = Some(now);
        }
    }

    /// Whether what this server's last process said to a leader may still count there. Nobody vouches in a group of one.
    pub(super) fn may_have_vouched(&self, now: Instant) -> bool {
        self.members.len() > 1 && now < self.forgets_at()
    }

    /// When whatever was said before the start counts no more.
    fn forgets_at(&self) -> Instant {
        self.started + Duration::from_millis(LEASE_MS + MARGIN_MS)
    }

    /// Whether others are to go first, because this server would be a poor leader.
    pub(super) const fn let_others_stand(&mut self, stands_late: bool) {
        self.stands_late = stands_late;
    }

    /// How many of the others go before this server. A leader that is missed is not among them.
    fn rank(&self) -> u64 {
        let before = self.members.range(..self.me);
        let others = if self.stands_late { self.members.len() } else { 0 };
        (before.filter(|&&member| self.leader != Some(member)).count() + others) as u64
    }

    /// When to ask the others whether to stand; `chance` is any number.
    pub(super) fn due(&self, chance: u64) -> Instant {
        let silence_ms = if self.is_dead { LEASE_MS + MARGIN_MS } else { SILENCE_MS };
        let wait_ms = match self.members.len() {
            1 => 0,
            _ => silence_ms + self.rank() * STEP_MS + chance % JITTER_MS,
        };
        let mut due = self.heard + Duration::from_millis(wait_ms);
        if self.members.len() > 1 {
            due = due.max(self.forgets_at());
        }
        self.rest.map_or(due, |rest| due.max(rest))
    }

    /// This server has asked, or stood; a while passes before it does so again.
    pub(super) fn tried(&mut self, chance: u64, now: Instant) {
        let pause_ms = STEP_MS + self.rank() * STEP_MS / 2 + chance % JITTER_MS;
        self.rest = Some(now + Duration::from_millis(pause_ms));
    }

    /// Whether another server may stand, for all that this one hears: when, in milliseconds from now. `None`: a leader lives.
    pub(super) fn may_stand_in_ms(&self, now: Instant) -> Option<u32> {
        let silent_ms = now.saturating_duration_since(self.heard).as_millis() as u64;
        if self.leader.is_some() && !self.is_dead && silent_ms < SILENCE_MS {
            return None;
        }
        // The engine gives no vote sooner.
        let lease_ms = if self.leader.is_some() { LEASE_MS + MARGIN_MS } else { 0 };
        let start_ms = self.forgets_at().saturating_duration_since(now).as_millis() as u64;
        Some(lease_ms.saturating_sub(silent_ms).max(start_ms) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn server(me: u64, start: Instant) -> Elections {
        let mut elections = Elections::new(me, [1, 2, 3].into(), start);
        elections.heard(1, 5, start);
        elections
    }

    #[test]
    fn silence_is_borne_longer_than_death() {
        let start = Instant::now();
        let mut second = server(2, start);
        assert_eq!(second.due(0), at(start, SILENCE_MS), "the first of the others");
        assert_eq!(server(3, start).due(0), at(start, SILENCE_MS + STEP_MS));
        assert_eq!(second.may_stand_in_ms(at(start, 100)), None);
        assert_eq!(second.may_stand_in_ms(at(start, SILENCE_MS)), Some(0));
        second.died(3);
        assert_eq!(second.may_stand_in_ms(at(start, 100)), None, "it was another");
        second.died(1);
        assert_eq!(
            second.due(0),
            at(start, LEASE_MS + MARGIN_MS),
            "the first of those who live"
        );
        assert_eq!(
            second.may_stand_in_ms(at(start, 100)),
            Some((LEASE_MS + MARGIN_MS - 100) as u32)
        );
        let mut third = server(3, start);
        third.died(1);
        assert_eq!(third.due(0), at(start, LEASE_MS + MARGIN_MS + STEP_MS));
        // A message that it sent before, then a new leader.
        second.heard(1, 5, at(start, 10));
        assert_eq!(second.due(0), at(start, 10 + LEASE_MS + MARGIN_MS));
        second.heard(3, 6, at(start, 400));
        assert_eq!(second.may_stand_in_ms(at(start, 450)), None);
        assert_eq!(second.due(0), at(start, 400 + SILENCE_MS + STEP_MS), "after the first");
    }

    #[test]
    fn a_leader_that_resigns_is_as_good_as_dead_until_it_hears_again() {
        let start = Instant::now();
        let mut second = server(2, start);
        second.resigned(1, 4, at(start, 10));
        second.resigned(3, 5, at(start, 10));
        assert_eq!(second.due(0), at(start, SILENCE_MS), "that was another");
        second.resigned(1, 5, at(start, 10));
        assert_eq!(second.due(0), at(start, LEASE_MS + MARGIN_MS));
        // What it sent before.
        second.heard(1, 5, at(start, 20));
        assert_eq!(second.due(0), at(start, 20 + LEASE_MS + MARGIN_MS));
        assert!(second.may_stand_in_ms(at(start, 20)).is_some());
        // Nobody was elected, and it goes on.
        second.heard(1, 5, at(start, 10 + MUTE_MS));
        assert_eq!(second.may_stand_in_ms(at(start, 20 + MUTE_MS)), None);
        assert_eq!(second.due(0), at(start, 10 + MUTE_MS + SILENCE_MS));
    }

    #[test]
    fn attempts_are_apart() {
        let start = Instant::now();
        let mut second = server(2, start);
        second.died(1);
        second.tried(7, at(start, 300));
        assert!(second.due(0) >= at(start, 300 + STEP_MS));
        second.voted(at(start, 350));
        assert!(
            second.due(0) >= at(start, 350 + SILENCE_MS),
            "who got the vote has its chance"
        );
        assert_eq!(second.may_stand_in_ms(at(start, 351)), Some(0));
        let alone = Elections::new(1, [1].into(), start);
        assert_eq!(alone.due(5), start);
        assert!(!alone.may_have_vouched(start));
    }

    #[test]
    fn who_has_just_started_waits_for_the_lease_that_it_may_have_given() {
        let start = Instant::now();
        let mut second = Elections::new(2, [1, 2, 3].into(), start);
        let lease_ms = LEASE_MS + MARGIN_MS;
        assert!(second.may_have_vouched(at(start, lease_ms - 1)));
        assert!(!second.may_have_vouched(at(start, lease_ms)));
        assert_eq!(second.may_stand_in_ms(at(start, 55)), Some((lease_ms - 55) as u32));
        assert_eq!(second.may_stand_in_ms(at(start, lease_ms)), Some(0));
        // A leader that is heard and dies does not shorten it.
        second.heard(1, 5, start);
        second.died(1);
        assert!(second.due(0) >= at(start, lease_ms));
        second.voted(at(start, 10));
        assert_eq!(second.may_stand_in_ms(at(start, 55)), Some((lease_ms - 55) as u32));
    }
}
