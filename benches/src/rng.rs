//! A seeded generator whose sequence never changes.

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
///
/// Written out because its sequence is part of what a generated trace *is*: the same seed must give the
/// same trace after any upgrade. Integers only, so that it does so on any machine.
///
/// ```
/// let mut rng = kvtier_benches::SplitMix64::new(1234567);
/// assert_eq!(rng.next_u64(), 6457827717110365317);
/// ```
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Starts the sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 uniform bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`; 0 when `n` is 0. Off by at most `n / 2^64`.
    pub const fn below(&mut self, n: u64) -> u64 {
        ((self.next_u64() as u128 * n as u128) >> 64) as u64
    }

    /// Uniform in `low..=high`.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// Between `low` and `high` with every octave equally likely: many small values, few large ones.
    pub fn skewed(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1), high.max(low).max(1));
        let octave = self.between(u64::from(low.ilog2()), u64::from(high.ilog2()));
        let start = 1u64 << octave;
        self.between(start, start | (start - 1)).clamp(low, high)
    }

    /// True once in `n` times; never when `n` is 0.
    pub const fn once_in(&mut self, n: u64) -> bool {
        n != 0 && self.below(n) == 0
    }

    /// Bytes all over `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_in_bounds_at_the_ends_of_the_range() {
        let mut rng = SplitMix64::new(7);
        for (low, high) in [(0, 0), (1, 1), (3, 5), (5, 1000), (0, u64::MAX), (u64::MAX, u64::MAX)] {
            for _ in 0..1000 {
                assert!((low..=high).contains(&rng.between(low, high)));
                assert!((low.max(1)..=high.max(1)).contains(&rng.skewed(low, high)));
            }
        }
        assert_eq!(rng.below(0), 0);
    }

    #[test]
    fn skewed_prefers_small_values_and_reaches_large_ones() {
        let mut rng = SplitMix64::new(7);
        let drawn: Vec<_> = (0..10_000).map(|_| rng.skewed(16, 16_383)).collect();
        let small = drawn.iter().filter(|x| **x < 512).count();
        assert!((4_500..5_500).contains(&small), "5 of 10 octaves lie below 512, drew {small}");
        assert!(drawn.iter().any(|x| *x > 12_000));
    }

    #[test]
    fn shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        SplitMix64::new(1).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
