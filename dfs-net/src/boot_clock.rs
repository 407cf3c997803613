//! A clock for leases: monotonic, and it goes on while the machine is suspended.
//!
//! `std::time::Instant` and tokio's timers read CLOCK_MONOTONIC, which stands still during a suspension. A process that wakes
//! would believe a lease that the rest of the cluster has long seen end. Whoever acts under a lease therefore compares
//! [`BootInstant`]s at that moment; a timer may be used to wake up, never to decide. A hypervisor that stops a machine may stop
//! this clock with it: no clock of the machine can tell.

use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_common::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// A moment on CLOCK_BOOTTIME. Comparable within one run of the operating system only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootInstant {
    since_boot: Duration,
}

impl BootInstant {
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        // The kernel never answers a negative time or more than 999,999,999 ns.
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        Self::at(Duration::new(seconds, nanos))
    }

    /// The moment `since_boot` after the operating system started: for tests that bring their own time.
    #[must_use]
    pub const fn at(since_boot: Duration) -> Self {
        Self { since_boot }
    }

    /// From this moment to now, suspension included.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Self::now().saturating_duration_since(self)
    }

    /// From `earlier` to this moment; zero if `earlier` is later.
    #[must_use]
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.since_boot.saturating_sub(earlier.since_boot)
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;

    /// Saturates: a deadline too far to express is never reached.
    fn add(self, after: Duration) -> Self {
        Self::at(self.since_boot.saturating_add(after))
    }
}

impl Sub<Duration> for BootInstant {
    type Output = Self;

    /// Saturates at the start of the operating system.
    fn sub(self, before: Duration) -> Self {
        Self::at(self.since_boot.saturating_sub(before))
    }
}

/// What this machine's clock says, right or wrong: for what is shown to people, never for an order
/// of events.
#[must_use]
pub fn wall_clock() -> Timestamp {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    Timestamp::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_clock_that_counts_suspension() {
        // /proc/uptime is CLOCK_BOOTTIME in hundredths of a second; CLOCK_MONOTONIC may lag behind by any time.
        let uptime = || {
            let text = std::fs::read_to_string("/proc/uptime").unwrap();
            let seconds: f64 = text.split(' ').next().unwrap().parse().unwrap();
            BootInstant::at(Duration::from_secs_f64(seconds))
        };
        let hundredth = Duration::from_millis(10);
        let (before, now, after) = (uptime(), BootInstant::now(), uptime());
        assert!(before <= now + hundredth, "{before:?} {now:?}");
        assert!(now <= after + hundredth, "{now:?} {after:?}");
    }

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let second = Duration::from_secs(1);
        let early = BootInstant::at(second);
        assert_eq!((early + second).saturating_duration_since(early), second);
        assert_eq!(early.saturating_duration_since(early + second), Duration::ZERO);
        assert_eq!(early - Duration::from_secs(5), BootInstant::at(Duration::ZERO));
        assert!(early + Duration::MAX >= early);
        assert!(BootInstant::now().elapsed() < Duration::from_mins(1));
    }
}
