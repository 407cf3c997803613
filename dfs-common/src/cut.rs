//! The truncation epoch of a file: which cuts of its data an operation comes before or after.
//!
//! The metadata row of a file holds the epoch, every mutation of a chunk carries the one that its sender knows, and every
//! chunk remembers the newest that it has seen. A chunk refuses what comes from before its newest cut, so a late truncation
//! removes nothing that was written after it, and a writer that has not heard of a truncation hears of it from the chunk.
//! Blocks beyond the end of a file are garbage until a commit has grown the file over them; a commit that grows the file
//! counts only in the present epoch, so garbage never becomes data.
//!
//! Odd: a cut is under way, and nobody may grow the file. Even: it has ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CutEpoch(pub u64);

impl CutEpoch {
    /// Of a file that was never cut.
    pub const NONE: Self = Self(0);

    /// Of a removed inode: its chunks take nothing any more, and reads of them fail instead of showing holes.
    pub const GONE: Self = Self(u64::MAX);

    #[must_use]
    pub const fn is_cutting(self) -> bool {
        self.0 % 2 == 1
    }

    /// The epoch that a new cut begins, whether or not the one before it has ended.
    #[must_use]
    pub const fn begin(self) -> Self {
        Self(self.0.saturating_add(if self.is_cutting() { 2 } else { 1 }))
    }

    /// The epoch after the cut of this one.
    #[must_use]
    pub const fn end(self) -> Self {
        Self(self.0.saturating_add(if self.is_cutting() { 1 } else { 0 }))
    }
}

/// The last cut of a file that made it shorter. Garbage beyond the end is cut, too, but was never part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncation {
    /// Begun by it.
    pub epoch: CutEpoch,
    /// What was left.
    pub length_bytes: u64,
}

impl fmt::Display for CutEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_begins_odd_and_ends_even_and_a_later_one_is_greater() {
        let begun = CutEpoch::NONE.begin();
        assert!(begun.is_cutting() && begun > CutEpoch::NONE);
        assert!(!begun.end().is_cutting() && begun.end() > begun);
        assert_eq!(begun.end().end(), begun.end());
        assert!(begun.begin().is_cutting() && begun.begin() > begun.end());
        assert!(begun.end().begin().is_cutting() && begun.end().begin() > begun.end());
    }
}
