//! What time it is for files. A client whose clock is years off must not give its files times of
//! another age, so what they get stays near the metadata group's time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use dfs_common::Timestamp;
use dfs_common::time::{CLOCK_IS_OFF, CLOCKS_DIFFER, LONGEST_CLOCK_QUESTION};
use dfs_net::wall_clock;

#[derive(Debug, Default)]
pub(crate) struct FileClock {
    /// By how much this machine's clock is ahead of the group's; negative: behind.
    ahead_ns: AtomicI64,
}

impl FileClock {
    pub(crate) fn now(&self) -> Timestamp {
        let own = wall_clock();
        let ahead_ns = self.ahead_ns.load(Ordering::Relaxed);
        let group = Timestamp::from_nanos(own.nanos.saturating_sub(ahead_ns));
        own.near(group, CLOCKS_DIFFER)
    }

    /// The group answered `time`. What this machine's own clock said when it asked is `asked`, and
    /// when the answer came, `heard`.
    pub(crate) fn learn(&self, (asked, heard): (Timestamp, Timestamp), time: Timestamp) {
        let took = heard.nanos.saturating_sub(asked.nanos);
        let is_quick = |took| Duration::from_nanos(took) <= LONGEST_CLOCK_QUESTION;
        if !u64::try_from(took).is_ok_and(is_quick) {
            return;
        }
        let ahead_ns = asked.nanos.saturating_add(took / 2).saturating_sub(time.nanos);
        let before = self.ahead_ns.swap(ahead_ns, Ordering::Relaxed);
        let is_off = |ns: i64| u128::from(ns.unsigned_abs()) > CLOCK_IS_OFF.as_nanos();
        match (is_off(before), is_off(ahead_ns)) {
            (false, true) => {
                let side = if ahead_ns > 0 { "ahead of" } else { "behind" };
                let seconds = ahead_ns.unsigned_abs() / 1_000_000_000;
                tracing::warn!(
                    "this machine's clock is {seconds} s {side} the cluster's: set it; files get the cluster's time"
                );
            }
            (true, false) => tracing::info!("this machine's clock agrees with the cluster's again"),
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
        clock.learn((own, own), after(-500_000_000));
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
