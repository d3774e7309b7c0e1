//! Numbers that a seed determines (SplitMix64).

use std::hash::{BuildHasher, RandomState};

#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

/// Another one each time: what no walk has come to yet may be one seed away.
pub(crate) fn any_seed() -> u64 {
    RandomState::new().hash_one(0) >> 32
}

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True in one of `n` cases.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: impl ExactSizeIterator<Item = T>) -> Option<T> {
        let mut from = from;
        match from.len() {
            0 => None,
            n => from.nth(self.below(n)),
        }
    }
}
