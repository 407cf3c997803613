//! What time it is. Pure: readings come from outside.
//!
//! Files get their times from the leader, and a machine whose clock is years off can come up and
//! lead. So servers tell each other what their clocks say, along with what a leader and a candidate
//! ask them anyway, and the leader's time stays near the median. Readings are kept by
//! CLOCK_BOOTTIME, so setting one machine's wall clock anew does not change what is known of the
//! others'.

use std::collections::BTreeMap;

use dfs_common::time::{CLOCK_IS_OFF, CLOCKS_DIFFER, LONGEST_CLOCK_QUESTION};
use dfs_common::{MetaId, Timestamp};
use dfs_net::BootInstant;

/// A clock as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) wall: Timestamp,
    pub(crate) at: BootInstant,
}

impl Reading {
    /// What that clock says later.
    fn nanos_at(self, now: BootInstant) -> i64 {
        let since = now.saturating_duration_since(self.at).as_nanos();
        self.wall.nanos.saturating_add(i64::try_from(since).unwrap_or(i64::MAX))
    }
}

/// The other servers' clocks.
#[derive(Debug, Default)]
pub struct Clocks {
    read: BTreeMap<MetaId, Reading>,
}

pub(crate) fn is_near(a: i64, b: i64) -> bool {
    u128::from(a.abs_diff(b)) <= CLOCK_IS_OFF.as_nanos()
}

impl Clocks {
    /// A server answered a question, of which these are the beginning and the end.
    pub(crate) fn heard(&mut self, of: MetaId, wall: Timestamp, (asked, answered): (BootInstant, BootInstant)) {
        let took = answered.saturating_duration_since(asked);
        if took <= LONGEST_CLOCK_QUESTION {
            let at = asked + took / 2;
            self.read.insert(of, Reading { wall, at });
        }
    }

    /// The time, if this machine's own clock reads so: that, but no further from the median than
    /// clocks that are set well. `newest` is the time of the last command.
    pub(crate) fn time(&self, own: Reading, newest: Option<Timestamp>) -> Timestamp {
        own.wall.near(self.median(own, newest), CLOCKS_DIFFER)
    }

    /// What most clocks say. Of two clocks that differ nobody knows which is wrong. The one nearer
    /// to the last command's time is believed; without a last command, this machine's.
    fn median(&self, own: Reading, newest: Option<Timestamp>) -> Timestamp {
        let mut all: Vec<i64> = self.read.values().map(|reading| reading.nanos_at(own.at)).collect();
        all.push(own.wall.nanos);
        all.sort_unstable();
        let believed = match (all.as_slice(), newest) {
            ([a, b], Some(newest)) => [*a, *b].into_iter().min_by_key(|clock| clock.abs_diff(newest.nanos)),
            ([_, _], None) => None,
            _ => all.get((all.len() - 1) / 2).copied(),
        };
        believed.map_or(own.wall, Timestamp::from_nanos)
    }

    /// By how much each clock is ahead of the median, in nanoseconds, where it is off.
    pub(crate) fn wrong(&self, me: MetaId, own: Reading, newest: Option<Timestamp>) -> BTreeMap<MetaId, i64> {
        let time = self.median(own, newest);
        let all = self.read.iter().map(|(&id, reading)| (id, reading.nanos_at(own.at)));
        all.chain([(me, own.wall.nanos)])
            .filter(|&(_, clock)| !is_near(clock, time.nanos))
            .map(|(id, clock)| (id, clock.saturating_sub(time.nanos)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const YEAR: i64 = 365 * 86_400 * SECOND;
    const NOW: i64 = 57 * YEAR;

    fn at(seconds: u64) -> BootInstant {
        BootInstant::at(Duration::from_secs(seconds))
    }

    fn clocks(others: &[i64]) -> Clocks {
        let mut clocks = Clocks::default();
        for (id, &nanos) in (2..).zip(others) {
            clocks.heard(MetaId(id), Timestamp::from_nanos(nanos), (at(100), at(100)));
        }
        clocks
    }

    /// With its own clock at `own`, and the last command at `newest`.
    fn time(others: &[i64], own: i64, newest: Option<i64>) -> i64 {
        let own = Reading {
            wall: Timestamp::from_nanos(own),
            at: at(100),
        };
        clocks(others).time(own, newest.map(Timestamp::from_nanos)).nanos
    }

    #[test]
    fn one_clock_of_three_that_is_wrong_is_not_believed() {
        for wrong in [NOW + 10 * YEAR, NOW - 20 * YEAR, NOW + 60 * SECOND, 0] {
            let newest = Some(NOW + 10 * YEAR);
            assert!(is_near(time(&[NOW, NOW + SECOND], wrong, newest), NOW), "its own");
            assert_eq!(time(&[NOW + SECOND, wrong], NOW, newest), NOW, "another's");
            assert_eq!(time(&[wrong, NOW + SECOND], NOW, newest), NOW, "another's");
        }
    }

    #[test]
    fn small_differences_are_left_alone() {
        assert_eq!(time(&[NOW - SECOND, NOW - SECOND / 2], NOW, None), NOW);
        assert_eq!(time(&[], NOW, Some(NOW + YEAR)), NOW, "nobody else is there");
    }

    #[test]
    fn of_two_the_one_that_goes_on_from_the_last_command_is_believed() {
        let day_before = Some(NOW - 86_400 * SECOND);
        assert_eq!(time(&[NOW], NOW + 10 * YEAR, day_before), NOW + SECOND);
        assert_eq!(time(&[NOW + 10 * YEAR], NOW, day_before), NOW);
        assert_eq!(time(&[0], NOW, Some(NOW - SECOND)), NOW);
        assert_eq!(time(&[NOW + YEAR], NOW, None), NOW, "its own, if nothing is known");
    }

    /// A clock that drifts away has no moment at which time jumps.
    #[test]
    fn time_follows_a_drifting_clock_without_a_jump() {
        let mut before = NOW;
        for off in 0..20_000 {
            let present = time(&[NOW, NOW], NOW + off * 1_000_000, None);
            assert!((0..=1_000_000).contains(&(present - before)), "at {off} ms");
            before = present;
        }
        assert_eq!(before, NOW + SECOND);
    }

    #[test]
    fn readings_go_on_and_slow_questions_do_not_count() {
        let mut clocks = clocks(&[NOW, NOW]);
        clocks.heard(MetaId(2), Timestamp::from_nanos(0), (at(100), at(102)));
        let own = Reading {
            wall: Timestamp::from_nanos(0),
            at: at(1_100),
        };
        let time = clocks.time(own, None);
        assert_eq!(time.nanos, NOW + 999 * SECOND);
        let wrong = clocks.wrong(MetaId(1), own, None);
        assert_eq!(wrong, BTreeMap::from([(MetaId(1), -NOW - 1_000 * SECOND)]));
    }
}
