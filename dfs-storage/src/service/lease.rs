//! The right to serve, for a while, by a monotonic clock.
//!
//! Counted from when the acknowledged heartbeat was sent, not from when its answer came: the metadata group counts from
//! when it received it, which is later, so this node stops first whatever the network did in between.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dfs_common::wire::meta::SELF_FENCE_MS;

#[derive(Debug)]
pub(crate) struct Lease {
    origin: Instant,
    /// Milliseconds since `origin`, plus one; 0: never acknowledged.
    sent: AtomicU64,
}

impl Lease {
    pub(crate) fn new() -> Self {
        Self {
            origin: Instant::now(),
            sent: AtomicU64::new(0),
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn renew(&self, sent_ms: u64) {
        self.sent.fetch_max(sent_ms + 1, Ordering::AcqRel);
    }

    pub(crate) fn is_good_at(&self, now_ms: u64) -> bool {
        match self.sent.load(Ordering::Acquire) {
            0 => false,
            sent => now_ms.saturating_sub(sent - 1) <= SELF_FENCE_MS,
        }
    }

    /// Gives it up: the metadata group no longer vouches for this process.
    pub(crate) fn revoke(&self) {
        self.sent.store(0, Ordering::Release);
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
}
