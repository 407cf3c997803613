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

/// Version vector of a chunk: the last version that each of its epochs gave out, oldest first.
///
/// An epoch has one head, so it is the actor of Parker's vectors (1983) that never comes back under the same name, whatever became of
/// its disk; and since counters go on over epochs, two vectors tell where two histories part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ChunkVector(Vec<ChunkVersion>);

/// Epochs before the present one that a vector names. What a member brings back from before that is taken for foreign, never for known.
pub const MAX_EARLIER_EPOCHS: usize = 64;

impl ChunkVector {
    /// `earlier`: as [`Self::advance`] keeps it.
    #[must_use]
    pub fn new(earlier: &[ChunkVersion], version: ChunkVersion) -> Self {
        let mut all = earlier.to_vec();
        if !version.is_none() {
            all.push(version);
        }
        Self(all)
    }

    /// Keeps the last version of an epoch that is over: `from` is followed by `to`.
    pub fn advance(earlier: &mut Vec<ChunkVersion>, from: ChunkVersion, to: ChunkVersion) {
        if from.is_none() || from.epoch == to.epoch {
            return;
        }
        if earlier.len() >= MAX_EARLIER_EPOCHS {
            earlier.remove(0);
        }
        earlier.push(from);
    }

    /// Whether this version is part of the history.
    #[must_use]
    pub fn has(&self, version: ChunkVersion) -> bool {
        version.is_none()
            || self
                .0
                .binary_search_by_key(&version.epoch, |last| last.epoch)
                .is_ok_and(|at| version.counter <= self.0[at].counter)
    }

    /// How many epochs it names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest version.
    #[must_use]
    pub fn last(&self) -> ChunkVersion {
        self.0.last().copied().unwrap_or_default()
    }

    #[must_use]
    pub fn causality(&self, other: &Self) -> Causality {
        match (self.has(other.last()), other.has(self.last())) {
            (true, true) => Causality::Equal,
            (true, false) => Causality::After,
            (false, true) => Causality::Before,
            (false, false) => Causality::Concurrent,
        }
    }
}

impl fmt::Display for ChunkVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (at, version) in self.0.iter().enumerate() {
            let space = if at == 0 { "" } else { " " };
            write!(f, "{space}{}:{}", version.epoch, version.counter)?;
        }
        f.write_str("]")
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
    fn vectors_of_chunks_tell_where_histories_part() {
        let v = |epoch, counter| ChunkVersion {
            epoch: Epoch(epoch),
            counter,
        };
        let chain = ChunkVector::new(&[v(1, 5), v(3, 9)], v(4, 12));
        for known in [ChunkVersion::NONE, v(1, 5), v(3, 6), v(3, 9), v(4, 10)] {
            assert!(chain.has(known), "{known}");
        }
        for foreign in [v(1, 6), v(3, 10), v(2, 6), v(4, 13), v(5, 13)] {
            assert!(!chain.has(foreign), "{foreign}");
        }
        let of = |earlier: &[ChunkVersion], last| ChunkVector::new(earlier, last).causality(&chain);
        assert_eq!(of(&[v(1, 5)], v(3, 7)), Causality::Before);
        assert_eq!(of(&[v(1, 5)], v(3, 10)), Causality::Concurrent);
        assert_eq!(of(&[v(1, 5), v(3, 9), v(4, 12)], v(5, 13)), Causality::After);
        assert_eq!(of(&[], ChunkVersion::NONE), Causality::Before);
        assert_eq!(chain.to_string(), "[1:5 3:9 4:12]");
        let mut earlier = Vec::new();
        for epoch in 1..200 {
            ChunkVector::advance(&mut earlier, v(epoch, epoch), v(epoch, epoch + 1));
            ChunkVector::advance(&mut earlier, v(epoch, epoch), v(epoch + 1, epoch + 1));
        }
        assert_eq!(earlier.len(), MAX_EARLIER_EPOCHS);
        let long = ChunkVector::new(&earlier, v(200, 200));
        assert!(
            long.has(v(150, 150)) && !long.has(v(1, 1)),
            "what is forgotten counts as foreign"
        );
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
