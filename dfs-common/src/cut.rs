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

/// One cut of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cut {
    /// The first of the cuts that it stands for.
    from: CutEpoch,
    /// Begun by it.
    epoch: CutEpoch,
    left_bytes: u64,
    /// Somebody wanted the file to be this long. Otherwise it removed garbage beyond the end.
    truncates: bool,
}

/// The last cuts of a file, as its row remembers them: for a writer that comes late to work out which of its bytes they removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LastCuts(Vec<Cut>);

/// What the cuts since some epoch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutsSince {
    /// Every byte before this offset outlived them.
    pub left_bytes: u64,
    /// The least length to which one of them truncated the file.
    pub truncated_to: Option<u64>,
}

impl LastCuts {
    /// More are forgotten. A mount that writes hears of a cut within a second or two, and a truncation stands for all before it that
    /// left no less.
    const MOST: usize = 4;

    /// `truncates`: somebody wants the file to be this long, and it is not only about garbage beyond its end.
    pub fn note(&mut self, epoch: CutEpoch, left_bytes: u64, truncates: bool) {
        let mut from = epoch;
        while let Some(last) = self.0.pop_if(|last| truncates && last.left_bytes >= left_bytes) {
            from = last.from;
        }
        while self.0.len() >= Self::MOST {
            self.0.remove(0);
        }
        self.0.push(Cut {
            from,
            epoch,
            left_bytes,
            truncates,
        });
    }

    /// What happened to bytes that were written by a mount that knew this epoch. `None`: that is forgotten.
    #[must_use]
    pub fn since(&self, known: CutEpoch) -> Option<CutsSince> {
        // A cut that was under way may remove what is written meanwhile, though it truncates only what was there before.
        let first = if known.is_cutting() { known } else { known.begin() };
        let later = || self.0.iter().filter(|cut| cut.epoch >= first);
        if later().next().is_some_and(|cut| cut.from > first) {
            return None;
        }
        let truncations = later().filter(|cut| cut.truncates && cut.epoch > known);
        Some(CutsSince {
            left_bytes: later().map(|cut| cut.left_bytes).min().unwrap_or(u64::MAX),
            truncated_to: truncations.map(|cut| cut.left_bytes).min(),
        })
    }
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
    fn a_late_writer_learns_what_outlived_the_cuts_since() {
        let mut cuts = LastCuts::default();
        let since = |cuts: &LastCuts, known| {
            cuts.since(CutEpoch(known))
                .map(|cuts| (cuts.left_bytes, cuts.truncated_to))
        };
        assert_eq!(since(&cuts, 0), Some((u64::MAX, None)));
        cuts.note(CutEpoch(1), 100, true);
        cuts.note(CutEpoch(3), 200, false);
        assert_eq!(since(&cuts, 0), Some((100, Some(100))));
        assert_eq!(since(&cuts, 1), Some((100, None)), "written within it, and so after it");
        assert_eq!(since(&cuts, 2), Some((200, None)), "garbage was never part of the file");
        assert_eq!(since(&cuts, 4), Some((u64::MAX, None)));
        // The second was given up, and the third began at once.
        cuts.note(CutEpoch(5), 300, true);
        assert_eq!(since(&cuts, 3), Some((200, Some(300))));
        cuts.note(CutEpoch(7), 400, true);
        cuts.note(CutEpoch(9), 500, true);
        assert_eq!((since(&cuts, 0), since(&cuts, 1)), (None, None), "forgotten");
        assert_eq!(since(&cuts, 2), Some((200, Some(300))));
        // It stands for all that left no less.
        cuts.note(CutEpoch(11), 250, true);
        cuts.note(CutEpoch(13), 600, true);
        assert_eq!(since(&cuts, 2), Some((200, Some(250))));
        for epoch in 0..9 {
            cuts.note(CutEpoch(15 + 2 * epoch), 0, true);
        }
        assert_eq!(since(&cuts, 2), Some((0, Some(0))), "truncated over and over");
        assert_eq!(since(&cuts, 20), Some((0, Some(0))));
    }

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
