//! What time it is. Pure: readings come from outside.
//!
//! Files get their times from the leader, and a machine whose clock is years off can come up and lead. So servers tell each other
//! what their clocks say, along with what a leader and a candidate ask them anyway, and the leader takes the median where its own
//! clock is far from that. A clock that is set anew meanwhile changes nothing but itself: readings are kept by
//! the clock that nobody sets.

use std::collections::BTreeMap;
use std::time::Duration;

use dfs_common::{MetaId, Timestamp};
use dfs_net::BootInstant;

/// A clock that is no further off is right: time servers keep clocks nearer than that, and questions take a part of it.
pub(crate) const TRUSTED: Duration = Duration::from_secs(10);

/// A question that took longer says too little about a clock.
const LONGEST_QUESTION: Duration = Duration::from_secs(1);

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
    u128::from(a.abs_diff(b)) <= TRUSTED.as_nanos()
}

impl Clocks {
    /// A server answered a question, of which these are the beginning and the end.
    pub(crate) fn heard(&mut self, of: MetaId, wall: Timestamp, (asked, answered): (BootInstant, BootInstant)) {
        let took = answered.saturating_duration_since(asked);
        if took <= LONGEST_QUESTION {
            let at = asked + took / 2;
            self.read.insert(of, Reading { wall, at });
        }
    }

    /// The time, if this machine's own clock reads so. Of two clocks that differ nobody knows which is wrong: the one nearer to
    /// `newest` is believed, the time of the last command, or else this machine's own.
    pub(crate) fn time(&self, own: Reading, newest: Option<Timestamp>) -> Timestamp {
        let mut all: Vec<i64> = self.read.values().map(|reading| reading.nanos_at(own.at)).collect();
        all.push(own.wall.nanos);
        all.sort_unstable();
        let believed = match (all.as_slice(), newest) {
            ([a, b], Some(newest)) => [*a, *b].into_iter().min_by_key(|clock| clock.abs_diff(newest.nanos)),
            ([_, _], None) => None,
            _ => all.get((all.len() - 1) / 2).copied(),
        };
        let believed = believed.unwrap_or(own.wall.nanos);
        if is_near(own.wall.nanos, believed) {
            own.wall
        } else {
            Timestamp::from_nanos(believed)
        }
    }

    /// By how much each clock is ahead of `time`, in nanoseconds, where it is off.
    pub(crate) fn wrong(&self, me: MetaId, own: Reading, time: Timestamp) -> BTreeMap<MetaId, i64> {
        let all = self.read.iter().map(|(&id, reading)| (id, reading.nanos_at(own.at)));
        all.chain([(me, own.wall.nanos)])
            .filter(|&(_, clock)| !is_near(clock, time.nanos))
            .map(|(id, clock)| (id, clock.saturating_sub(time.nanos)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(time(&[NOW - 5 * SECOND, NOW - 4 * SECOND], NOW, None), NOW);
        assert_eq!(time(&[], NOW, Some(NOW + YEAR)), NOW, "nobody else is there");
    }

    #[test]
    fn of_two_the_one_that_goes_on_from_the_last_command_is_believed() {
        assert_eq!(time(&[NOW], NOW + 10 * YEAR, Some(NOW - 86_400 * SECOND)), NOW);
        assert_eq!(time(&[NOW + 10 * YEAR], NOW, Some(NOW - 86_400 * SECOND)), NOW);
        assert_eq!(time(&[0], NOW, Some(NOW - SECOND)), NOW);
        assert_eq!(time(&[NOW + YEAR], NOW, None), NOW, "its own, if nothing is known");
    }

    #[test]
    fn readings_go_on_and_slow_questions_do_not_count() {
        let mut clocks = clocks(&[NOW, NOW]);
        clocks.heard(MetaId(2), Timestamp::from_nanos(0), (at(100), at(102)));
        let own = Reading {
            wall: Timestamp::from_nanos(0),
            at: at(1_100),
        };
        assert_eq!(clocks.time(own, None).nanos, NOW + 1_000 * SECOND);
        let wrong = clocks.wrong(MetaId(1), own, clocks.time(own, None));
        assert_eq!(wrong, BTreeMap::from([(MetaId(1), -NOW - 1_000 * SECOND)]));
    }
}
