//! Layout of a new table: many chains, so that the death of one node spreads its load over all others.

use std::collections::BTreeMap;

use dfs_common::StorageId;

/// Chains per node at least: every node is head twice, so its load as head goes to two successors.
const MIN_ROUNDS: usize = 2;

/// Chains per node at most. Bounds the routing table, which travels whole.
const MAX_ROUNDS: usize = 8;

/// Members of each chain of a new table, head first; empty when there are fewer nodes than replicas.
///
/// Cyclic designs: one round takes offsets `0, a, b, ..` and makes chain `(i, i + a, i + b, ..)` for each node `i`, so
/// that every node is head, middle and tail equally often. The offsets of each round are those whose differences came
/// up least so far, so that every pair of nodes meets about equally often. Three nodes give all six permutations.
#[must_use]
pub fn plan_chains(nodes: &[StorageId], replication: usize) -> Vec<Vec<StorageId>> {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    nodes.dedup();
    let count = nodes.len();
    if replication == 0 || count < replication {
        return Vec::new();
    }
    // Each round lets a node meet replication * (replication - 1) others; enough rounds to meet all of them.
    let met_in_a_round = (replication * (replication - 1)).max(1);
    let rounds = (count - 1).div_ceil(met_in_a_round).clamp(MIN_ROUNDS, MAX_ROUNDS);
    let mut offsets = Offsets::new(count);
    let mut chains = Vec::with_capacity(rounds * count);
    for _ in 0..rounds {
        let round = offsets.next_round(replication);
        chains.extend((0..count).map(|first| {
            round
                .iter()
                .map(|offset| nodes[(first + offset) % count])
                .collect::<Vec<_>>()
        }));
    }
    chains
}

/// Picks offsets, remembering how often each difference was used.
struct Offsets {
    count: usize,
    /// By difference: how often two nodes this far apart share a chain.
    met: BTreeMap<usize, usize>,
    /// By difference: how often the second directly follows the first.
    followed: BTreeMap<usize, usize>,
    ties: SplitMix,
}

impl Offsets {
    fn new(count: usize) -> Self {
        Self {
            count,
            met: BTreeMap::new(),
            followed: BTreeMap::new(),
            ties: SplitMix(count as u64),
        }
    }

    fn apart(&self, from: usize, to: usize) -> usize {
        (to + self.count - from) % self.count
    }

    fn next_round(&mut self, replication: usize) -> Vec<usize> {
        let mut round = vec![0];
        while round.len() < replication {
            let last = round[round.len() - 1];
            let best = (1..self.count)
                .filter(|offset| !round.contains(offset))
                .map(|offset| {
                    let met: usize = round
                        .iter()
                        .map(|&other| self.met.get(&self.apart(other, offset)).copied().unwrap_or(0))
                        .sum();
                    let followed = self.followed.get(&self.apart(last, offset)).copied().unwrap_or(0);
                    ((met, followed, self.ties.next()), offset)
                })
                .min();
            let Some((_, offset)) = best else { break };
            for &other in &round {
                *self.met.entry(self.apart(other, offset)).or_default() += 1;
                *self.met.entry(self.apart(offset, other)).or_default() += 1;
            }
            *self.followed.entry(self.apart(last, offset)).or_default() += 1;
            round.push(offset);
        }
        round
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014). A generator of our own: a library's may change between versions, and with it
/// where data is expected.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
