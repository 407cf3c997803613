//! Versions: of a chunk in its chain, of a file over its writers, and the hybrid clock.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{ActorId, Epoch};
use crate::time::Timestamp;

/// Version of a chunk: the epoch in which the head assigned it, then a counter.
///
/// One chain has one head in one epoch, so one (chunk, version) names one content, also when a dead head had assigned
/// the same counter to a write that nobody else saw.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ChunkVersion {
    pub epoch: Epoch,
    pub counter: u64,
}

impl ChunkVersion {
    /// A chunk or block that was never written.
    pub const NONE: Self = Self {
        epoch: Epoch(0),
        counter: 0,
    };

    /// The version that a head of `epoch` gives to the mutation after this one.
    #[must_use]
    pub const fn successor(self, epoch: Epoch) -> Self {
        Self {
            epoch,
            counter: self.counter + 1,
        }
    }

    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

impl fmt::Display for ChunkVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

impl fmt::Debug for ChunkVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{self}")
    }
}

/// Hybrid logical clock (Kulkarni et al., 2014): wall time that never runs back, with a counter for ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct HybridClock {
    pub wall: Timestamp,
    pub logical: u32,
}

impl HybridClock {
    /// The stamp of the next event, given the wall clock: after `self`, whatever the wall clock says.
    #[must_use]
    pub fn tick(self, wall_now: Timestamp) -> Self {
        if wall_now > self.wall {
            Self {
                wall: wall_now,
                logical: 0,
            }
        } else {
            Self {
                wall: self.wall,
                logical: self.logical.saturating_add(1),
            }
        }
    }
}

/// How two vectors stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Causality {
    Equal,
    Before,
    After,
    Concurrent,
}

/// Entries kept in one vector; the actor with the smallest counter is folded into `base` beyond that.
const MAX_ACTORS: usize = 16;

/// Version vector (Parker et al., 1983): for each writer the number of its writing sessions seen.
///
/// Bounded: who leaves the list is counted in `base`, which keeps `sum` exact and order between a version and its
/// descendants true.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VersionVector {
    base: u64,
    /// Sorted by actor.
    actors: Vec<(ActorId, u64)>,
}

impl VersionVector {
    /// Counts one more writing session of `actor`.
    pub fn bump(&mut self, actor: ActorId) {
        match self.actors.binary_search_by_key(&actor, |entry| entry.0) {
            Ok(at) => self.actors[at].1 += 1,
            Err(at) => {
                self.actors.insert(at, (actor, 1));
                if self.actors.len() > MAX_ACTORS {
                    let smallest = (0..self.actors.len())
                        .filter(|&i| i != at)
                        .min_by_key(|&i| self.actors[i].1);
                    if let Some(smallest) = smallest {
                        self.base += self.actors.remove(smallest).1;
                    }
                }
            }
        }
    }

    #[must_use]
    pub fn get(&self, actor: ActorId) -> u64 {
        self.actors
            .binary_search_by_key(&actor, |entry| entry.0)
            .map_or(0, |at| self.actors[at].1)
    }

    /// All writing sessions counted: rises with every bump, so it can serve as a change counter.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.base + self.actors.iter().map(|entry| entry.1).sum::<u64>()
    }

    /// Whether `self` happened before, after, or beside `other`.
    #[must_use]
    pub fn causality(&self, other: &Self) -> Causality {
        let covers =
            |a: &Self, b: &Self| a.base >= b.base && b.actors.iter().all(|&(actor, count)| a.get(actor) >= count);
        match (covers(self, other), covers(other, self)) {
            (true, true) => Causality::Equal,
            (true, false) => Causality::After,
            (false, true) => Causality::Before,
            (false, false) => Causality::Concurrent,
        }
    }
}

impl PartialOrd for VersionVector {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match self.causality(other) {
            Causality::Equal => Some(Ordering::Equal),
            Causality::Before => Some(Ordering::Less),
            Causality::After => Some(Ordering::Greater),
            Causality::Concurrent => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_tell_order_from_concurrency() {
        let (mut a, mut b) = (VersionVector::default(), VersionVector::default());
        assert_eq!(a.causality(&b), Causality::Equal);
        a.bump(ActorId(1));
        assert_eq!(a.causality(&b), Causality::After);
        b.bump(ActorId(2));
        assert_eq!(a.causality(&b), Causality::Concurrent);
        let old = a.clone();
        a.bump(ActorId(2));
        assert_eq!(old.causality(&a), Causality::Before);
    }

    #[test]
    fn vectors_stay_bounded_and_count_on() {
        let mut vector = VersionVector::default();
        for n in 0..1000 {
            vector.bump(ActorId(n % 40));
            assert_eq!(vector.sum(), n + 1);
        }
        assert!(vector.actors.len() <= MAX_ACTORS);
    }

    #[test]
    fn the_hybrid_clock_never_runs_back() {
        let clock = HybridClock::default().tick(Timestamp::from_nanos(10));
        let later = clock.tick(Timestamp::from_nanos(5));
        assert!(later > clock);
        assert_eq!(later.wall.nanos, 10);
    }

    #[test]
    fn versions_of_a_later_epoch_are_later() {
        let v = ChunkVersion {
            epoch: Epoch(3),
            counter: 9,
        };
        assert!(v.successor(Epoch(4)) > v.successor(Epoch(3)));
        assert!(ChunkVersion::NONE < ChunkVersion::NONE.successor(Epoch(1)));
    }
}
