//! What time it is for files. A client whose clock is years off must not give its files times of another age, so they get
//! the metadata group's time where this machine's clock is far from it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use dfs_common::Timestamp;
use dfs_net::wall_clock;

/// A clock that is no further off is right.
const TRUSTED_NS: i64 = 10_000_000_000;

/// An answer that took longer says too little about a clock.
const LONGEST_QUESTION: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct FileClock {
    /// By how much this machine's clock is ahead of the group's; 0 if it is right.
    ahead_ns: AtomicI64,
}

impl FileClock {
    pub(crate) fn now(&self) -> Timestamp {
        let ahead_ns = self.ahead_ns.load(Ordering::Relaxed);
        Timestamp::from_nanos(wall_clock().nanos.saturating_sub(ahead_ns))
    }

    /// The group answered `time`; these are this machine's own clock when it asked and when it heard.
    pub(crate) fn learn(&self, (asked, heard): (Timestamp, Timestamp), time: Timestamp) {
        let took = heard.nanos.saturating_sub(asked.nanos);
        if !u64::try_from(took).is_ok_and(|took| Duration::from_nanos(took) <= LONGEST_QUESTION) {
            return;
        }
        let ahead_ns = asked.nanos.saturating_add(took / 2).saturating_sub(time.nanos);
        let ahead_ns = if ahead_ns.unsigned_abs() <= TRUSTED_NS.unsigned_abs() {
            0
        } else {
            ahead_ns
        };
        let before = self.ahead_ns.swap(ahead_ns, Ordering::Relaxed);
        match (before, ahead_ns) {
            (0, 0) => {}
            (0, _) => tracing::warn!(
                "this machine's clock is {} s ahead of the cluster's: files get the cluster's time; set the clock",
                ahead_ns / 1_000_000_000
            ),
            (_, 0) => tracing::info!("this machine's clock agrees with the cluster's again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_far_off_is_corrected_until_it_is_right() {
        let clock = FileClock::default();
        let year = 365 * 86_400_000_000_000;
        let own = wall_clock();
        let after = |nanos: i64| Timestamp::from_nanos(own.nanos + nanos);
        clock.learn((own, own), after(-5_000_000_000));
        assert!(clock.now() >= own, "clocks differ by a little");
        clock.learn((own, own), after(-10 * year));
        assert!(clock.now() < after(-9 * year));
        clock.learn((own, after(2_000_000_000)), own);
        clock.learn((after(1), own), own);
        assert!(clock.now() < after(-9 * year), "those say nothing");
        clock.learn((own, own), own);
        assert!(clock.now() >= own);
    }
}
