//! The bytes that a replayed block holds: a function of the run's seed and the block's key, so that every
//! byte that comes back can be checked and no two blocks are alike.

use kv_core::key::BlockKey;

/// Odd constants with well-mixed bits, from SplitMix64's finaliser.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
const MIX: u64 = 0xBF58_476D_1CE4_E5B9;

/// Makes and checks the bytes of blocks.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// Blocks of another seed differ in every word.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    fn word(start: u64, index: u64) -> u64 {
        let z = start.wrapping_add(index.wrapping_mul(STEP));
        (z ^ (z >> 31)).wrapping_mul(MIX)
    }

    fn start(self, key: BlockKey) -> u64 {
        // Multiplied, so that no halves cancel each other.
        self.seed.wrapping_mul(MIX) ^ key.low() ^ key.high().wrapping_mul(STEP)
    }

    /// Writes the block.
    pub fn fill(self, key: BlockKey, block: &mut [u8]) {
        let start = self.start(key);
        let (words, rest) = block.as_chunks_mut::<8>();
        let tail = Self::word(start, words.len() as u64).to_le_bytes();
        for (index, word) in words.iter_mut().enumerate() {
            *word = Self::word(start, index as u64).to_le_bytes();
        }
        rest.copy_from_slice(&tail[..rest.len()]);
    }

    /// True when every byte is the block's.
    #[must_use]
    pub fn matches(self, key: BlockKey, block: &[u8]) -> bool {
        let start = self.start(key);
        let (words, rest) = block.as_chunks::<8>();
        let tail = Self::word(start, words.len() as u64).to_le_bytes();
        let differs =
            |(index, word): (usize, &[u8; 8])| u64::from_le_bytes(*word) ^ Self::word(start, index as u64);
        words.iter().enumerate().map(differs).fold(0, |all, one| all | one) == 0
            && rest == &tail[..rest.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_is_seen() {
        let (pattern, key) = (Pattern::new(7), BlockKey::from_bytes([3; 16]));
        for len in [1, 8, 67, 4096] {
            let mut block = vec![0; len];
            pattern.fill(key, &mut block);
            assert!(pattern.matches(key, &block));
            for at in 0..len {
                block[at] ^= 0x10;
                assert!(!pattern.matches(key, &block), "byte {at} of {len}");
                block[at] ^= 0x10;
            }
            assert!(!pattern.matches(BlockKey::from_bytes([4; 16]), &block));
            assert!(!Pattern::new(8).matches(key, &block));
        }
    }
}
