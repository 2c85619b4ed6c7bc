//! What is remembered of keys, resident or not, in memory that is bounded by the capacity.

use crate::key::BlockKey;

/// Entries of the bucket that a key falls into; the oldest gives way.
const WAYS: usize = 8;

#[derive(Clone, Copy)]
struct Entry<T> {
    /// 31 bits of the key; 0 when the entry is empty. Two keys that agree in them only share a rank.
    fingerprint: u32,
    last: u32,
    value: T,
}

/// A set-associative table from keys to `T`, stamped with a clock that may wrap.
pub(super) struct History<T> {
    buckets: Vec<[Entry<T>; WAYS]>,
}

impl<T: Copy + Default> History<T> {
    /// Room for about `keys` keys.
    pub(super) fn new(keys: usize) -> Self {
        let empty = Entry { fingerprint: 0, last: 0, value: T::default() };
        Self { buckets: vec![[empty; WAYS]; keys.div_ceil(WAYS).max(1)] }
    }

    /// The time since `key` was last written at `now`, and its value.
    pub(super) fn get(&self, key: BlockKey, now: u32) -> Option<(u32, T)> {
        let bucket = &self.buckets[self.bucket(key)];
        let entry = bucket.iter().find(|e| e.fingerprint == fingerprint(key))?;
        Some((now.wrapping_sub(entry.last), entry.value))
    }

    /// Writes `key`; a new one replaces the oldest of its bucket.
    pub(super) fn set(&mut self, key: BlockKey, now: u32, value: T) {
        let entry = Entry { fingerprint: fingerprint(key), last: now, value };
        let bucket = self.bucket(key);
        let bucket = &mut self.buckets[bucket];
        let same = bucket.iter().position(|e| e.fingerprint == entry.fingerprint);
        let age = |way: &usize| match bucket[*way] {
            Entry { fingerprint: 0, .. } => u64::MAX,
            old => u64::from(now.wrapping_sub(old.last)),
        };
        let way = same.or_else(|| (0..WAYS).max_by_key(age)).unwrap_or(0);
        bucket[way] = entry;
    }

    fn bucket(&self, key: BlockKey) -> usize {
        // Scales 32 uniform bits to the number of buckets.
        (((key.low() >> 32) * self.buckets.len() as u64) >> 32) as usize
    }
}

fn fingerprint(key: BlockKey) -> u32 {
    key.high() as u32 | 1
}
