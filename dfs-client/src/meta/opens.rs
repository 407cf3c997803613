//! Which inodes this mount holds open, and what to tell the leader about it. Pure.
//!
//! Invariant: what the leader knows after a confirmed report is what was open when that report was made. A report whose
//! answer is lost is followed by a whole list.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::InodeId;

/// Inodes one mount may hold open: a whole list must fit one message.
pub(crate) const MAX_OPEN_INODES: usize = 100_000;

#[derive(Debug, Default)]
pub(crate) struct OpenSet {
    counts: BTreeMap<InodeId, u32>,
    changed: BTreeSet<InodeId>,
    told: BTreeSet<InodeId>,
    report: u64,
    whole: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenReport {
    pub(crate) all: bool,
    pub(crate) opened: Vec<InodeId>,
    pub(crate) closed: Vec<InodeId>,
    pub(crate) report: u64,
}

impl OpenSet {
    pub(crate) fn new() -> Self {
        Self {
            whole: true,
            ..Self::default()
        }
    }

    /// `false`: too many.
    pub(crate) fn open(&mut self, inode: InodeId) -> bool {
        if self.counts.len() >= MAX_OPEN_INODES && !self.counts.contains_key(&inode) {
            return false;
        }
        *self.counts.entry(inode).or_default() += 1;
        self.changed.insert(inode);
        true
    }

    pub(crate) fn close(&mut self, inode: InodeId) {
        if let Some(count) = self.counts.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&inode);
                self.changed.insert(inode);
            }
        }
    }

    pub(crate) fn next_report(&mut self) -> OpenReport {
        self.report += 1;
        let changed = std::mem::take(&mut self.changed);
        if self.whole {
            self.told = self.counts.keys().copied().collect();
            return OpenReport {
                all: true,
                opened: self.told.iter().copied().collect(),
                closed: Vec::new(),
                report: self.report,
            };
        }
        let (mut opened, mut closed) = (Vec::new(), Vec::new());
        for inode in changed {
            if self.counts.contains_key(&inode) {
                if self.told.insert(inode) {
                    opened.push(inode);
                }
            } else if self.told.remove(&inode) {
                closed.push(inode);
            }
        }
        OpenReport {
            all: false,
            opened,
            closed,
            report: self.report,
        }
    }

    /// The report's fate: answered (and whether the leader wants a whole list), or not known.
    pub(crate) fn reported(&mut self, send_all: Option<bool>) {
        self.whole = send_all.unwrap_or(true);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_leader_knows_what_is_open(steps in proptest::collection::vec((0_u8..4, 1_u64..6), 0..80)) {
            let mut set = OpenSet::new();
            let mut oracle: BTreeMap<u64, u32> = BTreeMap::new();
            let mut leader: Option<(BTreeSet<InodeId>, u64)> = None;
            for (kind, inode) in steps {
                match kind {
                    0 => {
                        set.open(InodeId(inode));
                        *oracle.entry(inode).or_default() += 1;
                    }
                    1 => {
                        if let Some(count) = oracle.get_mut(&inode) {
                            set.close(InodeId(inode));
                            *count -= 1;
                            if *count == 0 {
                                oracle.remove(&inode);
                            }
                        }
                    }
                    2 => {
                        // Lost on the way, or the leader changed.
                        if inode % 2 == 0 {
                            leader = None;
                        }
                        set.next_report();
                        set.reported(None);
                    }
                    _ => {
                        let report = set.next_report();
                        if report.all {
                            leader = Some((report.opened.into_iter().collect(), report.report));
                        } else if let Some((known, last)) = leader.as_mut().filter(|(_, last)| *last + 1 == report.report) {
                            known.extend(report.opened);
                            for inode in report.closed {
                                known.remove(&inode);
                            }
                            *last = report.report;
                        } else {
                            set.reported(Some(true));
                            continue;
                        }
                        set.reported(Some(false));
                        let expected: BTreeSet<_> = oracle.keys().map(|&inode| InodeId(inode)).collect();
                        prop_assert_eq!(&leader.as_ref().unwrap().0, &expected);
                    }
                }
            }
        }
    }
}
