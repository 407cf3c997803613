//! Chains with writes of one file that no sync covers yet.
//!
//! Numbers come from one counter of the mount and rise with every start and acknowledgement.
//!
//! Invariant: from before a write without the sync flag is sent until a sync that began after its acknowledgement has ended, its chain
//! is here, with the first epoch and the lowest level of what was acknowledged. A chain that lost all who had it since then says
//! so to the sync, instead of making durable what it has.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use dfs_common::{ChainId, Epoch, Level};

/// What one chain has of this file, unsynced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owing {
    /// Of the last start or acknowledgement.
    number: u64,
    /// Epochs of the acknowledgements; `None`: there were none.
    acknowledged: Option<(Epoch, Epoch)>,
    lowest: Level,
    /// Of the newest write that is not kept.
    gap: Option<u64>,
}

impl Owing {
    /// Everything up to this number is covered by a sync that begins now.
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    /// There is nothing that a sync would vouch for: what was lost is told.
    pub(crate) const fn is_told(&self) -> bool {
        self.acknowledged.is_none()
    }

    /// What a sync vouches for.
    pub(crate) fn since(&self) -> (Epoch, Level) {
        let first = self.acknowledged.map_or(Epoch(u64::MAX), |(first, _)| first);
        (first, self.lowest)
    }
}

/// What syncs of the whole mount have found durable on one chain, the last ones: everything up to a
/// number that was acknowledged in some epoch or later. What a chain has lost is told once, and a
/// sync after that vouches for less.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Durable(Vec<Owing>);

/// As many are remembered; what only a forgotten one covers is synced once more.
const MAX_DURABLE: usize = 8;

impl Durable {
    /// A sync that began when `owing` was all has ended well.
    pub(crate) fn add(&mut self, owing: &Owing) {
        let covers_more = |other: &Owing| other.number > owing.number || other.since().0 < owing.since().0;
        self.0.retain(covers_more);
        self.0.push(*owing);
        if self.0.len() > MAX_DURABLE {
            self.0.remove(0);
        }
    }

    /// Whether all that is owed is durable. Of what is only in part, the first epoch rises.
    fn settles(&self, owed: &mut Owing) -> bool {
        for synced in &self.0 {
            if owed.since().0 < synced.since().0 {
                continue;
            }
            if owed.number <= synced.number {
                return true;
            }
            if let (Some((first, last)), Some((_, covered))) = (&mut owed.acknowledged, synced.acknowledged) {
                // What came since was acknowledged by a chain that had reached this epoch.
                *first = covered.min(*last).max(*first);
            }
        }
        false
    }
}

#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    chains: BTreeMap<ChainId, Owing>,
}

impl Unsynced {
    fn touch(&mut self, chain: ChainId, number: u64) -> &mut Owing {
        let owing = self.chains.entry(chain).or_insert(Owing {
            number: 0,
            acknowledged: None,
            lowest: Level::All,
            gap: None,
        });
        owing.number = owing.number.max(number);
        owing
    }

    /// A write is about to be sent.
    pub(crate) fn starts(&mut self, chain: ChainId, number: u64) {
        self.touch(chain, number);
    }

    /// It was acknowledged in this epoch or after it.
    pub(crate) fn acknowledged(&mut self, chain: ChainId, number: u64, (epoch, level): (Epoch, Level)) {
        let owing = self.touch(chain, number);
        let (first, last) = owing.acknowledged.unwrap_or((epoch, epoch));
        owing.acknowledged = Some((first.min(epoch), last.max(epoch)));
        owing.lowest = owing.lowest.min(level);
    }

    /// The write of this number was acknowledged and can not be sent again.
    pub(crate) fn gap(&mut self, chain: ChainId, number: u64) {
        if let Some(owing) = self.chains.get_mut(&chain) {
            owing.gap = owing.gap.max(Some(number));
        }
    }

    /// Whether not everything on the chain can be written again.
    pub(crate) fn has_gaps(&self, chain: ChainId) -> bool {
        self.chains.get(&chain).is_some_and(|owing| owing.gap.is_some())
    }

    pub(crate) fn contains(&self, chain: ChainId) -> bool {
        self.chains.contains_key(&chain)
    }

    /// The chain has lost some of it, which is told now: a sync that begins later vouches only for
    /// what is acknowledged from here on.
    pub(crate) fn told_lost(&mut self, chain: ChainId) {
        if let Some(owing) = self.chains.get_mut(&chain) {
            owing.acknowledged = None;
            owing.lowest = Level::All;
            owing.gap = None;
        }
    }

    pub(crate) fn on(&self, chain: ChainId) -> Option<Owing> {
        self.chains.get(&chain).copied()
    }

    /// What there is now: who syncs all of it says so with [`Unsynced::synced`].
    pub(crate) fn all(&self) -> Vec<(ChainId, Owing)> {
        self.chains.iter().map(|(&chain, &owing)| (chain, owing)).collect()
    }

    /// A sync that began when `owing` was all has ended well, or has found it lost, which is told once.
    pub(crate) fn synced(&mut self, chain: ChainId, owing: &Owing) {
        let Some(now) = self.chains.get_mut(&chain) else {
            return;
        };
        if now.number == owing.number {
            self.chains.remove(&chain);
            return;
        }
        now.gap = now.gap.filter(|&gap| gap > owing.number);
        if let (Some((first, last)), Some((_, covered))) = (&mut now.acknowledged, owing.acknowledged) {
            // What came since was acknowledged by a chain that had reached this epoch.
            *first = covered.min(*last);
        }
    }

    /// Drops chains on which everything is durable, as syncs of the whole mount have found. Those
    /// that went, and up to which number.
    pub(crate) fn settle(&mut self, durable: impl Fn(ChainId) -> Durable) -> Vec<(ChainId, u64)> {
        let mut done = Vec::new();
        for (&chain, owing) in &mut self.chains {
            if durable(chain).settles(owing) {
                done.push((chain, owing.number));
            }
        }
        for (chain, _) in &done {
            self.chains.remove(chain);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: ChainId = ChainId(3);

    #[test]
    fn a_write_acknowledged_during_a_sync_is_not_covered_by_it() {
        let mut unsynced = Unsynced::default();
        let mut numbers = 0..;
        let mut next = || numbers.next().expect("without end");
        unsynced.starts(CHAIN, next());
        unsynced.acknowledged(CHAIN, next(), (Epoch(4), Level::Quorum));
        unsynced.starts(CHAIN, next());
        let (_, owing) = unsynced.all()[0];
        assert_eq!(owing.since(), (Epoch(4), Level::Quorum));
        unsynced.acknowledged(CHAIN, next(), (Epoch(7), Level::One));
        unsynced.synced(CHAIN, &owing);
        let (_, owing) = unsynced.all()[0];
        assert_eq!(owing.since(), (Epoch(4), Level::One));
        unsynced.synced(CHAIN, &owing);
        assert!(!unsynced.contains(CHAIN));
    }

    #[test]
    fn what_a_sync_of_the_mount_covers_is_settled() {
        let mut unsynced = Unsynced::default();
        unsynced.starts(CHAIN, 1);
        unsynced.acknowledged(CHAIN, 4, (Epoch(4), Level::Quorum));
        let owing = |number, epoch| {
            let mut of_mount = Unsynced::default();
            of_mount.acknowledged(CHAIN, number, (Epoch(epoch), Level::Quorum));
            of_mount.all()[0].1
        };
        let mut durable = Durable::default();
        for too_little in [owing(3, 4), owing(9, 5)] {
            durable.add(&too_little);
            assert!(unsynced.settle(|_| durable.clone()).is_empty(), "{too_little:?}");
        }
        durable.add(&owing(8, 4));
        durable.add(&owing(12, 7));
        assert_eq!(unsynced.settle(|_| durable.clone()), [(CHAIN, 4)]);
        assert!(!unsynced.contains(CHAIN));
    }

    #[test]
    fn a_write_that_set_out_before_a_sync_and_arrives_after_it_is_still_owed() {
        let mut unsynced = Unsynced::default();
        let mut numbers = 0..;
        let mut next = || numbers.next().expect("without end");
        unsynced.starts(CHAIN, next());
        let (_, owing) = unsynced.all()[0];
        unsynced.synced(CHAIN, &owing);
        unsynced.acknowledged(CHAIN, next(), (Epoch(9), Level::Quorum));
        assert!(unsynced.contains(CHAIN));
        assert_eq!(unsynced.all()[0].1.since(), (Epoch(9), Level::Quorum));
    }
}
