//! Time: for leases one that goes on while the machine is suspended, and the wall clock's for commands.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_common::Timestamp;
use dfs_net::BootInstant;

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
    /// Newest time that stands in a command, proposed or applied here.
    newest_nanos: AtomicI64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            start: BootInstant::now(),
            newest_nanos: AtomicI64::new(i64::MIN),
        }
    }

    pub(super) fn now(&self) -> Moment {
        Moment::from_ms(self.start.elapsed().as_millis() as u64)
    }

    /// Time for the next command: the wall clock's, but never before that of an earlier command.
    pub(super) fn command_time(&self) -> Timestamp {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_nanos();
        let wall = i64::try_from(wall).unwrap_or(i64::MAX);
        let before = self.newest_nanos.fetch_max(wall, Ordering::Relaxed);
        Timestamp::from_nanos(wall.max(before))
    }

    /// A command with this time was applied: what this server proposes later is not earlier.
    pub(super) fn saw(&self, time: Timestamp) {
        self.newest_nanos.fetch_max(time.nanos, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_time_never_runs_back() {
        let clock = Clock::new();
        let first = clock.command_time();
        let ahead = Timestamp::from_nanos(first.nanos + 3_600_000_000_000);
        clock.saw(ahead);
        assert_eq!(clock.command_time(), ahead);
        clock.saw(first);
        assert_eq!(clock.command_time(), ahead);
    }
}
