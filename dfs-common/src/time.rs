//! Wall-clock time as data. Who needs "now" gets it as an argument.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What files get for the time is no further than this from what most clocks say.
pub const CLOCKS_DIFFER: Duration = Duration::from_secs(1);

/// A clock that is further off is named in `dfs health`.
pub const CLOCK_IS_OFF: Duration = Duration::from_secs(10);

/// An answer that took longer says too little about the clock of who gave it.
pub const LONGEST_CLOCK_QUESTION: Duration = Duration::from_secs(1);

/// Nanoseconds since the Unix epoch; signed, since `touch -d 1960-01-01` is legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp {
    pub nanos: i64,
}

impl Timestamp {
    /// The ctime of a file after a write that is told `now`. A write is told a moment after it was
    /// made, and its mtime is when that was; so is its ctime, so that nobody who looked in between
    /// sees the file change once more. An mtime that a program chose, or that has not come yet, is
    /// no such time.
    #[must_use]
    pub fn ctime_of_write(before: Self, mtime: Option<Self>, now: Self) -> Self {
        mtime.filter(|&at| before <= at && at <= now).unwrap_or(now)
    }

    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self { nanos }
    }

    /// From `struct timespec`; clamps to what 64 bits of nanoseconds hold (years 1677 to 2262).
    #[must_use]
    pub const fn from_parts(seconds: i64, nanos: u32) -> Self {
        Self {
            nanos: seconds.saturating_mul(1_000_000_000).saturating_add(nanos as i64),
        }
    }

    /// The moment nearest to this one that is no further than `within` from `other`.
    #[must_use]
    pub fn near(self, other: Self, within: Duration) -> Self {
        let within = i64::try_from(within.as_nanos()).unwrap_or(i64::MAX);
        let (low, high) = (other.nanos.saturating_sub(within), other.nanos.saturating_add(within));
        Self::from_nanos(self.nanos.clamp(low, high))
    }

    /// `(seconds, nanoseconds)` with nanoseconds in `0..1_000_000_000`, as `struct timespec` has them.
    #[must_use]
    pub const fn to_parts(self) -> (i64, u32) {
        let nanos = self.nanos.rem_euclid(1_000_000_000) as u32;
        (self.nanos.div_euclid(1_000_000_000), nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_round_trip_before_and_after_1970() {
        for (seconds, nanos) in [(0, 0), (1, 999_999_999), (-1, 1), (-315_619_200, 5), (4_102_444_800, 0)] {
            assert_eq!(Timestamp::from_parts(seconds, nanos).to_parts(), (seconds, nanos));
        }
        assert_eq!(Timestamp::from_parts(i64::MAX, 0).nanos, i64::MAX);
    }

    #[test]
    fn a_moment_is_brought_near_another() {
        let at = Timestamp::from_nanos;
        let within = Duration::from_nanos(10);
        for (moment, other, expected) in [
            (5, 0, 5),
            (11, 0, 10),
            (-11, 0, -10),
            (i64::MAX, i64::MIN, i64::MIN + 10),
        ] {
            assert_eq!(at(moment).near(at(other), within), at(expected));
        }
        assert_eq!(at(7).near(at(0), Duration::MAX), at(7));
    }
}
