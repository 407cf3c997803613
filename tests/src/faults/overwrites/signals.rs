//! What the harness tells those who work meanwhile: that power is about to be cut, that it was, and the same of a mount.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Signals {
    power: AtomicU64,
    mount: AtomicU64,
    harmless: AtomicU64,
    /// How often somebody vouched for what others wrote.
    vouched: AtomicU64,
    stop: AtomicBool,
}

/// How often something began or ended: these numbers are odd while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    power: u64,
    mount: u64,
    harmless: u64,
}

impl Moment {
    #[must_use]
    pub fn is_mount_dead(self) -> bool {
        self.mount % 2 == 1
    }

    /// Nothing that was not synced can have been lost with its power between the two.
    #[must_use]
    pub fn is_same_power(self, other: Self) -> bool {
        self.power == other.power
    }

    #[must_use]
    pub fn is_same_mount(self, other: Self) -> bool {
        self.mount == other.mount
    }

    #[must_use]
    pub fn numbers(self) -> (u64, u64) {
        (self.power, self.mount)
    }
}

impl Signals {
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment {
            power: self.power.load(Ordering::SeqCst),
            mount: self.mount.load(Ordering::SeqCst),
            harmless: self.harmless.load(Ordering::SeqCst),
        }
    }

    /// Before so few lose their power that nothing is lost that has arrived, and after.
    pub fn harmless(&self) {
        self.harmless.fetch_add(1, Ordering::SeqCst);
    }

    /// Before power is cut, and after.
    pub fn power(&self) {
        self.power.fetch_add(1, Ordering::SeqCst);
    }

    /// Before the mount is killed, and when it is there again.
    pub fn mount(&self) {
        self.mount.fetch_add(1, Ordering::SeqCst);
    }

    pub fn vouched(&self) {
        self.vouched.fetch_add(1, Ordering::SeqCst);
    }

    #[must_use]
    pub fn times_vouched(&self) -> u64 {
        self.vouched.load(Ordering::SeqCst)
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}
