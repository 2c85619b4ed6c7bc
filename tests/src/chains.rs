//! Blocks whose keys say which they are, so that a key found on a disk can be told from any other.

use kv_core::key::BlockKey;

/// Odd, hence invertible modulo 2^64: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
/// Bits of a name that count blocks within their chain.
const INDEX_BITS: u32 = 8;

/// Block `index` of chain number `chain`.
#[must_use]
pub fn key(chain: u64, index: u64) -> BlockKey {
    let low = ((chain << INDEX_BITS | index) + 1).wrapping_mul(SPREAD);
    BlockKey::from_bytes((u128::from(high(low)) << 64 | u128::from(low)).to_le_bytes())
}

fn high(low: u64) -> u64 {
    (low ^ low >> 29).wrapping_mul(SPREAD)
}

/// The first `len` blocks of a chain; at most 256.
#[must_use]
pub fn chain(number: u64, len: u64) -> Vec<BlockKey> {
    (0..len.min(1 << INDEX_BITS)).map(|index| key(number, index)).collect()
}

/// The chain and the block of a key; `None` if [`key`] did not make it.
#[must_use]
pub fn name(key: BlockKey) -> Option<(u64, u64)> {
    let name = key.low().wrapping_mul(inverse(SPREAD)).wrapping_sub(1);
    (key.high() == high(key.low())).then_some((name >> INDEX_BITS, name % (1 << INDEX_BITS)))
}

/// Newton's iteration doubles the bits that are right; an odd number is its own inverse in three of them.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut bits = 3;
    while bits < 64 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        bits *= 2;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_its_name_back() {
        for (c, i) in [(0, 0), (1, 255), (1 << 40, 7), (12345, 1)] {
            assert_eq!(name(key(c, i)), Some((c, i)));
        }
        assert_eq!(name(BlockKey::from_bytes([1; 16])), None);
    }
}
