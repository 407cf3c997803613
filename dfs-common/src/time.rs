//! Wall-clock time as data. Who needs "now" gets it as an argument.

use serde::{Deserialize, Serialize};

/// Nanoseconds since the Unix epoch; signed, since `touch -d 1960-01-01` is legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp {
    pub nanos: i64,
}

impl Timestamp {
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
}
