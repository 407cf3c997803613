//! The one source of chance: `SplitMix64` (Steele, Lea, Flood 2014), ours so that a seed means the same for ever.

#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 when `n` is 0.
    pub const fn below(&mut self, n: u64) -> u64 {
        let drawn = self.next();
        if n == 0 { 0 } else { drawn % n }
    }

    /// `from ..= to`.
    pub const fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    pub const fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
