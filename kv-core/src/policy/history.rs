//! What is remembered of keys, resident or not, in memory that is bounded by the capacity.

use crate::key::BlockKey;

/// Keys per bucket. A key falls into one bucket, in which the oldest gives way.
const WAYS: usize = 8;

/// Fingerprints and times share a cache line, so that a key that is not there costs one miss.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket<T> {
    /// 31 bits of each key; 0 where there is none. Keys that agree in them and in the bucket are taken for
    /// one, which can only give a block the rank of another.
    fingerprints: [u32; WAYS],
    visited: [u32; WAYS],
    values: [T; WAYS],
}

/// A set-associative table from keys to `T`. Its clock is the caller's and may wrap.
pub(super) struct History<T> {
    buckets: Vec<Bucket<T>>,
}

impl<T: Copy + Default> History<T> {
    /// Room for about `keys` keys.
    pub(super) fn new(keys: usize) -> Self {
        let empty = Bucket { fingerprints: [0; WAYS], visited: [0; WAYS], values: [T::default(); WAYS] };
        Self { buckets: vec![empty; keys.div_ceil(WAYS).max(1)] }
    }

    /// How long before `now` the key was visited, and its value.
    pub(super) fn get(&self, key: BlockKey, now: u32) -> Option<(u32, T)> {
        let bucket = &self.buckets[self.bucket(key)];
        let way = bucket.fingerprints.iter().position(|f| *f == fingerprint(key))?;
        Some((now.wrapping_sub(bucket.visited[way]), bucket.values[way]))
    }

    /// Visits the key at `now`: how long ago its last visit was, if it is known, and its value to change. A
    /// new key begins with the default value in place of the oldest of its bucket.
    pub(super) fn visit(&mut self, key: BlockKey, now: u32) -> (Option<u32>, &mut T) {
        let bucket = self.bucket(key);
        let Bucket { fingerprints, visited, values } = &mut self.buckets[bucket];
        let known = fingerprints.iter().position(|f| *f == fingerprint(key));
        let way = known.unwrap_or_else(|| {
            let age = |way: &usize| match fingerprints[*way] {
                0 => u64::MAX,
                _ => u64::from(now.wrapping_sub(visited[*way])),
            };
            let oldest = (0..WAYS).max_by_key(age).unwrap_or(0);
            fingerprints[oldest] = fingerprint(key);
            values[oldest] = T::default();
            oldest
        });
        let last = std::mem::replace(&mut visited[way], now);
        (known.map(|_| now.wrapping_sub(last)), &mut values[way])
    }

    fn bucket(&self, key: BlockKey) -> usize {
        // Scales 32 uniform bits to the number of buckets.
        (((key.low() >> 32) * self.buckets.len() as u64) >> 32) as usize
    }
}

fn fingerprint(key: BlockKey) -> u32 {
    key.high() as u32 | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> BlockKey {
        let mixed = |n: u64| {
            let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (n ^ (n >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&mixed(n + 1).to_le_bytes());
        bytes[8..].copy_from_slice(&mixed(n + 1_000_003).to_le_bytes());
        BlockKey::from_bytes(bytes)
    }

    #[test]
    fn what_was_visited_last_is_remembered_with_its_age_across_a_wrap_of_the_clock() {
        let mut history = History::<u64>::new(1000);
        let start = u32::MAX - 5000;
        for n in 0..10_000 {
            let (age, value) = history.visit(key(n), start.wrapping_add(n as u32));
            assert_eq!((age, *value), (None, 0));
            *value = n;
        }
        let now = start.wrapping_add(10_000);
        for n in 9_900..10_000 {
            assert_eq!(history.get(key(n), now), Some(((10_000 - n) as u32, n)));
        }
        let remembered = (0..10_000).filter(|n| history.get(key(*n), now).is_some()).count();
        assert!((900..=1000).contains(&remembered), "{remembered}");
        let (age, value) = history.visit(key(9_999), now);
        assert_eq!((age, *value), (Some(1), 9_999));
        assert_eq!(history.get(key(9_999), now), Some((0, 9_999)));
    }

    #[test]
    fn a_history_of_nothing_still_works() {
        let mut history = History::<u8>::new(0);
        assert_eq!(history.get(key(1), 7), None);
        assert_eq!(history.visit(key(1), 7).0, None);
        assert_eq!(history.visit(key(1), 9).0, Some(2));
    }
}
