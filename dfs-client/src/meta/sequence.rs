//! Numbers of changes in one session. Pure.
//!
//! Invariant: all unanswered numbers lie within a window of `MAX_CHANGES_IN_FLIGHT`, which bounds what the server must
//! remember; a number is answered once, whether its caller waited for it or not.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;

use dfs_common::SequenceNumber;
use dfs_common::wire::meta::MAX_CHANGES_IN_FLIGHT;

#[derive(Debug)]
pub(crate) struct SequenceWindow {
    next: u64,
    unanswered: BTreeSet<u64>,
}

impl SequenceWindow {
    pub(crate) fn new() -> Self {
        Self {
            next: 1,
            unanswered: BTreeSet::new(),
        }
    }

    /// The next number; `None` while the window is full.
    pub(crate) fn begin(&mut self) -> Option<SequenceNumber> {
        if self.next >= self.answered_below().0 + MAX_CHANGES_IN_FLIGHT {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.unanswered.insert(number);
        Some(SequenceNumber(number))
    }

    pub(crate) fn finish(&mut self, number: SequenceNumber) {
        self.unanswered.remove(&number.0);
    }

    pub(crate) fn answered_below(&self) -> SequenceNumber {
        SequenceNumber(self.unanswered.first().copied().unwrap_or(self.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_change_holds_the_window() {
        let mut window = SequenceWindow::new();
        let slow = window.begin().unwrap();
        let mut given = 1;
        while let Some(number) = window.begin() {
            window.finish(number);
            given += 1;
        }
        assert_eq!(given, MAX_CHANGES_IN_FLIGHT);
        assert_eq!(window.answered_below(), slow);
        window.finish(slow);
        assert_eq!(window.answered_below(), SequenceNumber(MAX_CHANGES_IN_FLIGHT + 1));
        assert!(window.begin().is_some());
    }
}
