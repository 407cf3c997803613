//! The right to serve, for a while, by a clock that goes on while the machine is suspended: whoever wakes finds its lease over.
//!
//! Counted from when the acknowledged heartbeat was sent, not from when its answer came: the metadata group counts from
//! when it received it, which is later, so this node stops first whatever the network did in between.
//!
//! A node that is asked to stand aside gives its lease up. Answers to heartbeats that it sent before may still come and
//! grant it; they are not taken.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dfs_common::planted::{self, Bug};
use dfs_common::wire::meta::SELF_FENCE_MS;
use dfs_net::BootInstant;
use parking_lot::Mutex;

#[derive(Debug)]
pub struct Lease {
    origin: BootInstant,
    clock: fn() -> BootInstant,
    /// Milliseconds since `origin`, plus one; 0: never acknowledged.
    sent: AtomicU64,
    /// Heartbeats sent before this renew nothing. Held while `sent` changes.
    not_before: Mutex<u64>,
    aside: AtomicBool,
}

impl Default for Lease {
    fn default() -> Self {
        Self::new()
    }
}

impl Lease {
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(BootInstant::now)
    }

    fn with_clock(clock: fn() -> BootInstant) -> Self {
        Self {
            origin: clock(),
            clock,
            sent: AtomicU64::new(0),
            not_before: Mutex::new(0),
            aside: AtomicBool::new(false),
        }
    }

    pub fn now_ms(&self) -> u64 {
        let since = (self.clock)().saturating_duration_since(self.origin);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    pub fn renew(&self, sent_ms: u64) {
        let not_before = self.not_before.lock();
        if sent_ms >= *not_before {
            self.sent.fetch_max(sent_ms + 1, Ordering::AcqRel);
            self.aside.store(false, Ordering::Release);
        }
    }

    pub fn is_good_at(&self, now_ms: u64) -> bool {
        match self.sent.load(Ordering::Acquire) {
            0 => false,
            sent => {
                let late = if planted::is(Bug::FenceTooLate) { 5_000 } else { 0 };
                now_ms.saturating_sub(sent - 1) <= SELF_FENCE_MS + late
            }
        }
    }

    /// Gives it up: the metadata group no longer vouches for this process.
    pub fn revoke(&self) {
        let _held = self.not_before.lock();
        self.sent.store(0, Ordering::Release);
    }

    /// Gives it up until a heartbeat from now on is granted another. Returns whether that is new.
    pub fn stand_aside(&self, now_ms: u64) -> bool {
        let mut not_before = self.not_before.lock();
        // One that was sent in this very millisecond may have been before.
        *not_before = now_ms + 1;
        self.sent.store(0, Ordering::Release);
        !self.aside.swap(true, Ordering::AcqRel)
    }

    pub fn is_aside(&self) -> bool {
        self.aside.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_runs_from_the_sending_of_the_last_acknowledged_heartbeat() {
        let lease = Lease::new();
        assert!(!lease.is_good_at(0));
        lease.renew(100);
        lease.renew(50);
        assert!(lease.is_good_at(100 + SELF_FENCE_MS));
        assert!(!lease.is_good_at(101 + SELF_FENCE_MS));
        lease.revoke();
        assert!(!lease.is_good_at(100));
    }

    /// What `now_ms` says is all that the node decides by, so this is what a machine sees that was suspended for ten minutes.
    #[test]
    fn a_lease_runs_out_while_the_machine_is_suspended() {
        use std::cell::Cell;
        use std::time::Duration;

        thread_local!(static NOW: Cell<Duration> = const { Cell::new(Duration::from_secs(90)) });
        let lease = Lease::with_clock(|| BootInstant::at(NOW.get()));
        lease.renew(lease.now_ms());
        NOW.set(NOW.get() + Duration::from_millis(SELF_FENCE_MS));
        assert!(lease.is_good_at(lease.now_ms()));
        NOW.set(NOW.get() + Duration::from_mins(10));
        assert!(!lease.is_good_at(lease.now_ms()));
    }

    #[test]
    fn who_stands_aside_takes_no_late_grant() {
        let lease = Lease::new();
        lease.renew(100);
        assert!(lease.stand_aside(200) && lease.is_aside());
        lease.renew(150);
        lease.renew(200);
        assert!(!lease.is_good_at(210) && lease.is_aside());
        assert!(!lease.stand_aside(210), "known");
        lease.renew(300);
        assert!(lease.is_good_at(310) && !lease.is_aside());
    }
}
