//! Who hears whom, and how late.

use crate::random::Random;

/// Everybody's place: nodes from 0, then these.
pub(crate) const OTHERS: usize = 8;
pub(crate) const GROUP: usize = 9;

#[derive(Debug, Default)]
pub(crate) struct Network {
    /// From, to, until.
    cuts: Vec<(usize, usize, u64)>,
}

impl Network {
    pub(crate) fn cut(&mut self, from: usize, to: usize, until_ms: u64) {
        self.cuts.push((from, to, until_ms));
    }

    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
    }

    pub(crate) fn hears(&self, from: usize, to: usize, now_ms: u64) -> bool {
        !self
            .cuts
            .iter()
            .any(|&(a, b, until)| a == from && b == to && until > now_ms)
    }

    /// A message's time on the way.
    pub(crate) const fn delay_ms(random: &mut Random, reorder_ms: u64) -> u64 {
        1 + random.below(3) + random.below(reorder_ms + 1)
    }
}
