//! Whether a leader still hears the others. Pure: times come from outside.
//!
//! A leader whose incoming cable is cut is no leader, yet its heartbeats would keep everybody from electing another. So a leader
//! asks the others in short intervals whether they are there (no disk takes part in that answer, so a slow one is no silence), and if
//! no quorum has answered for a while it says that it resigns and then says nothing for longer than an election takes.
//! If nobody was elected meanwhile (nobody else could be), it goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How often a leader asks.
pub(super) const ASK_EVERY_MS: u64 = 60;

/// Without an answer of a quorum for this long, a leader is deaf. Longer than a busy machine keeps two others from answering.
pub(super) const DEAF_MS: u64 = 300;

/// How long it is silent then: the others' leases, two attempts at an election, and a little.
pub(super) const MUTE_MS: u64 = 600;

/// Between two tries of a leader to be followed by another.
const MAKES_WAY_EVERY: Duration = Duration::from_secs(10);

/// A server that has answered nothing for this long is said to be silent.
const SILENT_MS: u64 = 1_000;

/// What is to be said of another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    IsSilent(u64),
    AnswersAgain(u64),
}

#[derive(Debug)]
pub(super) struct Hearing {
    others: BTreeSet<u64>,
    term: u64,
    /// When the newest question that was answered was asked; else since when it counts.
    heard: BTreeMap<u64, Instant>,
    asked: Instant,
    mute_until: Option<Instant>,
    made_way: Option<Instant>,
    silent: BTreeSet<u64>,
    news: Vec<News>,
}

impl Hearing {
    pub(super) fn new(me: u64, members: &BTreeSet<u64>, now: Instant) -> Self {
        Self {
            others: members.iter().copied().filter(|&member| member != me).collect(),
            term: 0,
            heard: BTreeMap::new(),
            asked: now,
            mute_until: None,
            made_way: None,
            silent: BTreeSet::new(),
            news: Vec::new(),
        }
    }

    /// This server leads in `term` and is about to ask again. Returns whether it has just been found deaf.
    pub(super) fn ask(&mut self, term: u64, now: Instant) -> bool {
        let pause = now.saturating_duration_since(self.asked);
        self.asked = now;
        if self.term != term {
            self.term = term;
            self.mute_until = None;
            self.silent.clear();
            self.hear_all(now);
        } else if pause > Duration::from_millis(3 * ASK_EVERY_MS) {
            // It did not ask for a while, so it could not be answered.
            self.hear_all(now);
        }
        for (&other, &heard) in &self.heard {
            let is_silent = now.saturating_duration_since(heard) > Duration::from_millis(SILENT_MS);
            if is_silent && self.silent.insert(other) {
                self.news.push(News::IsSilent(other));
            }
        }
        if self.is_mute(now) {
            return false;
        }
        let fresh = self
            .heard
            .values()
            .filter(|&&heard| now.saturating_duration_since(heard) <= Duration::from_millis(DEAF_MS))
            .count();
        if (fresh + 1) * 2 > self.others.len() + 1 {
            return false;
        }
        let until = now + Duration::from_millis(MUTE_MS);
        self.mute_until = Some(until);
        self.hear_all(until);
        true
    }

    /// This leader is to be followed by somebody else. `false`: it has tried a moment ago, and
    /// nobody was elected.
    pub(super) fn make_way(&mut self, now: Instant) -> bool {
        if self.made_way.is_some_and(|at| now < at + MAKES_WAY_EVERY) {
            return false;
        }
        self.made_way = Some(now);
        let until = now + Duration::from_millis(MUTE_MS);
        self.mute_until = Some(until);
        self.hear_all(until);
        true
    }

    fn hear_all(&mut self, at: Instant) {
        self.heard = self.others.iter().map(|&other| (other, at)).collect();
    }

    pub(super) fn answered(&mut self, by: u64, asked: Instant) {
        if let Some(heard) = self.heard.get_mut(&by) {
            *heard = asked.max(*heard);
        }
        if self.silent.remove(&by) {
            self.news.push(News::AnswersAgain(by));
        }
    }

    /// What has changed since this was asked last: each silence once, and once its end.
    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Whether it is to say nothing as leader.
    pub(super) fn is_mute(&self, now: Instant) -> bool {
        self.mute_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        hearing: Hearing,
        now: Instant,
        start: Instant,
    }

    impl World {
        fn new(members: &[u64]) -> Self {
            let now = Instant::now();
            Self {
                hearing: Hearing::new(1, &members.iter().copied().collect(), now),
                now,
                start: now,
            }
        }

        /// Asks for this long, answered by these; returns when it was found deaf, in milliseconds from the start.
        fn ask(&mut self, ms: u64, answered_by: &[u64]) -> Vec<u64> {
            let mut deaf = Vec::new();
            for _ in 0..ms / ASK_EVERY_MS {
                if self.hearing.ask(5, self.now) {
                    deaf.push(self.now.duration_since(self.start).as_millis() as u64);
                }
                for &other in answered_by {
                    self.hearing.answered(other, self.now);
                }
                self.now += Duration::from_millis(ASK_EVERY_MS);
            }
            deaf
        }
    }

    #[test]
    fn one_answer_of_three_servers_is_enough_and_none_is_not() {
        let mut world = World::new(&[1, 2, 3]);
        assert!(world.ask(3_000, &[3]).is_empty());
        world.start = world.now;
        let deaf = world.ask(600, &[]);
        assert_eq!(deaf.len(), 1, "said once: {deaf:?}");
        assert!(
            deaf[0] > DEAF_MS - 2 * ASK_EVERY_MS && deaf[0] <= DEAF_MS + ASK_EVERY_MS,
            "{deaf:?}"
        );
        assert!(world.hearing.is_mute(world.now));
        // Then it tries again, and goes on if it is heard.
        assert!(world.ask(600, &[2]).is_empty());
        assert!(!world.hearing.is_mute(world.now));
        assert!(world.ask(3_000, &[2]).is_empty());
    }

    #[test]
    fn a_silence_is_told_once_and_so_is_its_end() {
        let mut world = World::new(&[1, 2, 3]);
        world.ask(900, &[2]);
        assert!(world.hearing.take_news().is_empty());
        world.ask(5_000, &[2]);
        assert_eq!(world.hearing.take_news(), [News::IsSilent(3)]);
        // The leader stood still itself, which is no answer.
        world.now += Duration::from_secs(5);
        world.ask(120, &[2]);
        assert!(world.hearing.take_news().is_empty());
        world.ask(500, &[2, 3]);
        assert_eq!(world.hearing.take_news(), [News::AnswersAgain(3)]);
    }

    #[test]
    fn five_need_two_and_one_needs_nobody() {
        let mut world = World::new(&[1, 2, 3, 4, 5]);
        assert!(world.ask(2_000, &[2, 5]).is_empty());
        assert_eq!(world.ask(600, &[2]).len(), 1);
        assert!(World::new(&[1]).ask(2_000, &[]).is_empty());
    }

    #[test]
    fn a_server_that_stood_still_is_not_deaf_nor_is_a_new_leader() {
        let mut world = World::new(&[1, 2, 3]);
        assert!(world.ask(300, &[2]).is_empty());
        world.now += Duration::from_secs(5);
        assert!(!world.hearing.ask(5, world.now));
        assert!(!world.hearing.is_mute(world.now));
        let mut world = World::new(&[1, 2, 3]);
        assert_eq!(world.ask(420, &[]).len(), 1);
        assert!(
            !world.hearing.ask(9, world.now) && !world.hearing.is_mute(world.now),
            "elected again"
        );
    }
}
