//! Time: for leases one that goes on while the machine is suspended, and the wall clock's for commands.

use std::collections::BTreeMap;
use std::sync::Arc;

use dfs_common::{MetaId, Timestamp};
use dfs_net::{BootInstant, wall_clock};
use parking_lot::Mutex;

use crate::consensus::clocks::{Clocks, Reading, is_near};

/// Milliseconds of this process's clock for leases. Compares durations only; says nothing to other machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    ms: u64,
}

impl Moment {
    pub const fn from_ms(ms: u64) -> Self {
        Self { ms }
    }

    #[must_use]
    pub const fn after_ms(self, ms: u64) -> Self {
        Self {
            ms: self.ms.saturating_add(ms),
        }
    }

    pub(super) const fn before_ms(self, ms: u64) -> Self {
        Self {
            ms: self.ms.saturating_sub(ms),
        }
    }

    /// Milliseconds from `earlier` to here.
    pub const fn since(self, earlier: Self) -> u64 {
        self.ms.saturating_sub(earlier.ms)
    }
}

/// Reads the clocks for everybody in this server.
#[derive(Debug)]
pub(super) struct Clock {
    start: BootInstant,
    /// What the other servers' clocks say.
    others: Arc<Mutex<Clocks>>,
    /// The time of the last command, proposed or applied here.
    newest: Mutex<Option<Timestamp>>,
}

impl Clock {
    pub(super) fn new(others: Arc<Mutex<Clocks>>) -> Self {
        Self {
            start: BootInstant::now(),
            others,
            newest: Mutex::new(None),
        }
    }

    pub(super) fn now(&self) -> Moment {
        Moment::from_ms(self.start.elapsed().as_millis() as u64)
    }

    /// Time for the next command; see [`Clocks::time`]. It does not run back by the little that
    /// clocks differ. Where the last command came from a leader whose clock was wrong, it does.
    pub(super) fn command_time(&self) -> Timestamp {
        self.command_time_at(own_clock())
    }

    fn command_time_at(&self, own: Reading) -> Timestamp {
        let mut newest = self.newest.lock();
        let time = self.others.lock().time(own, *newest);
        let time = newest
            .filter(|&newest| newest > time && is_near(newest.nanos, time.nanos))
            .unwrap_or(time);
        *newest = Some(time);
        time
    }

    /// A command with this time was applied: what this server proposes later is not earlier.
    pub(super) fn saw(&self, time: Timestamp) {
        let mut newest = self.newest.lock();
        let is_older = newest.is_some_and(|newest| time < newest && is_near(newest.nanos, time.nanos));
        if !is_older {
            *newest = Some(time);
        }
    }

    /// By how many nanoseconds the metadata servers' clocks are ahead, of those that are off.
    pub(super) fn wrong(&self, me: MetaId) -> BTreeMap<MetaId, i64> {
        let (own, newest) = (own_clock(), *self.newest.lock());
        self.others.lock().wrong(me, own, newest)
    }
}

fn own_clock() -> Reading {
    Reading {
        wall: wall_clock(),
        at: BootInstant::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR_NS: i64 = 365 * 86_400_000_000_000;

    #[test]
    fn command_time_runs_back_only_from_a_wrong_clocks_time() {
        let clock = Clock::new(Arc::default());
        let first = clock.command_time();
        let after = |nanos: i64| Timestamp::from_nanos(first.nanos + nanos);
        let little = after(5_000_000_000);
        clock.saw(little);
        assert_eq!(clock.command_time(), little);
        clock.saw(first);
        assert_eq!(clock.command_time(), little, "an older command");
        clock.saw(after(10 * YEAR_NS));
        assert!(clock.command_time() < after(YEAR_NS), "its leader's clock was wrong");
    }

    #[test]
    fn a_wrong_clock_is_not_believed_against_two_others() {
        let others: Arc<Mutex<Clocks>> = Arc::default();
        let clock = Clock::new(Arc::clone(&others));
        let own = own_clock();
        for id in [2, 3] {
            let wall = Timestamp::from_nanos(own.wall.nanos - 10 * YEAR_NS);
            others.lock().heard(MetaId(id), wall, (own.at, own.at));
        }
        assert!(clock.command_time().nanos < own.wall.nanos - 9 * YEAR_NS);
        let wrong = clock.wrong(MetaId(1));
        assert_eq!(wrong.len(), 1);
        assert!(wrong[&MetaId(1)] > 9 * YEAR_NS);
    }
}
