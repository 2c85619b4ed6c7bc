//! Hash table from block key to node handle.
//!
//! Keys are uniform already, so their halves *are* the hash: the high half picks a bucket, the low half
//! gives a 16-bit tag. A bucket is one cache line of ten entries that is searched without branches, so
//! that the processor can overlap the cache misses of a whole batch of look-ups. A bucket counts the entries
//! that had to go past it; a search stops at the first bucket that nothing went past.

use super::NodeId;
use crate::key::BlockKey;

/// Entries per bucket: ten tags of two bytes, the overflow count and ten handles fill 64 bytes.
const ENTRIES: usize = 10;
/// The table grows beyond this share of used entries (percent). Then one key in 47 is not in its home bucket,
/// and the table takes 9.8 bytes per key.
const MAX_LOAD: usize = 65;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    /// Entry `4 * word + lane` has its tag in that lane of 16 bits of that word; `0` is an empty entry. The
    /// upper half of the last word counts the entries that overflowed past this bucket.
    tags: [u64; 3],
    nodes: [u32; ENTRIES],
}

/// A 1 in every lane.
const EACH_LANE: u64 = 0x0001_0001_0001_0001;
/// The lanes of the last word that are entries.
const LAST_LANES: u64 = 0xffff_ffff;
const ONE_OVERFLOW: u64 = 1 << 32;

impl Bucket {
    const EMPTY: Self = Self { tags: [0; 3], nodes: [0; ENTRIES] };

    /// The entries that carry `tag`.
    #[inline]
    fn matches(&self, tag: u16) -> Matches {
        const LOW: u64 = 0x7fff * EACH_LANE;
        let wanted = u64::from(tag) * EACH_LANE;
        // The top bit of each lane that is equal. The addition does not carry from lane to lane.
        let [a, b, c] = self.tags.map(|word| {
            let differs = word ^ wanted;
            !(((differs & LOW) + LOW) | differs | LOW)
        });
        Matches((a >> 15) | (b >> 14) | ((c & LAST_LANES) >> 13))
    }

    #[inline]
    fn overflowed(&self) -> bool {
        self.tags[2] >= ONE_OVERFLOW
    }

    fn set_tag(&mut self, entry: usize, tag: u16) {
        let shift = entry % 4 * 16;
        let word = &mut self.tags[entry / 4];
        *word = *word & !(0xffff << shift) | u64::from(tag) << shift;
    }
}

/// A set of entries: bit `16 * lane + word` for each.
#[derive(Clone, Copy)]
struct Matches(u64);

impl Matches {
    fn contains(mut self, entry: usize) -> bool {
        self.any(|e| e == entry)
    }
}

impl Iterator for Matches {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let bit = self.0.trailing_zeros() as usize;
        if self.0 == 0 {
            return None;
        }
        self.0 &= self.0 - 1;
        Some(bit % 4 * 4 + bit / 16)
    }
}

/// Open-addressed table; node handles only, the keys themselves live in the nodes.
pub(super) struct KeyTable {
    buckets: Vec<Bucket>,
    len: usize,
}

#[inline]
fn tag_of(key: BlockKey) -> u16 {
    (key.low() as u16).max(1)
}

impl KeyTable {
    pub(super) fn with_capacity(entries: usize) -> Self {
        let buckets = (entries * 100).div_ceil(MAX_LOAD * ENTRIES).max(1);
        Self { buckets: vec![Bucket::EMPTY; buckets], len: 0 }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }

    #[inline]
    fn home(&self, key: BlockKey) -> usize {
        ((u128::from(key.high()) * self.buckets.len() as u128) >> 64) as usize
    }

    #[inline]
    fn after(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    /// Asks memory for the key's home bucket and returns something of it.
    #[inline]
    pub(super) fn touch(&self, key: BlockKey) -> u64 {
        self.buckets[self.home(key)].tags[0]
    }

    /// The first entry with the key's tag: almost always the right one, and found without a look at the nodes.
    #[inline]
    pub(super) fn guess(&self, key: BlockKey) -> Option<NodeId> {
        self.find(key, |_| true)
    }

    /// The node for which `is` holds, among those with the key's tag.
    #[inline]
    pub(super) fn find(&self, key: BlockKey, is: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let (bucket, entry) = self.locate(key, is)?;
        Some(NodeId(self.buckets[bucket].nodes[entry]))
    }

    #[inline]
    fn locate(&self, key: BlockKey, is: impl Fn(NodeId) -> bool) -> Option<(usize, usize)> {
        let tag = tag_of(key);
        let mut at = self.home(key);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            if let Some(entry) = bucket.matches(tag).find(|entry| is(NodeId(bucket.nodes[*entry]))) {
                return Some((at, entry));
            }
            if !bucket.overflowed() {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Adds a node. The caller knows that its key is absent; `key_of` is asked only when the table grows.
    pub(super) fn insert(&mut self, key: BlockKey, node: NodeId, key_of: impl Fn(NodeId) -> BlockKey) {
        if (self.len + 1) * 100 > self.buckets.len() * ENTRIES * MAX_LOAD {
            self.grow(key_of);
        }
        self.place(key, node);
        self.len += 1;
    }

    fn place(&mut self, key: BlockKey, node: NodeId) {
        let mut at = self.home(key);
        loop {
            let bucket = &mut self.buckets[at];
            if let Some(entry) = bucket.matches(0).next() {
                bucket.set_tag(entry, tag_of(key));
                bucket.nodes[entry] = node.0;
                return;
            }
            bucket.tags[2] += ONE_OVERFLOW;
            at = self.after(at);
        }
    }

    fn grow(&mut self, key_of: impl Fn(NodeId) -> BlockKey) {
        let larger = Self::with_capacity((self.len * 2).max(64));
        let old = std::mem::replace(&mut self.buckets, larger.buckets);
        for bucket in &old {
            let free = bucket.matches(0);
            for (entry, node) in bucket.nodes.iter().enumerate() {
                if !free.contains(entry) {
                    self.place(key_of(NodeId(*node)), NodeId(*node));
                }
            }
        }
    }

    /// Removes a node that is in the table; does nothing otherwise.
    pub(super) fn remove(&mut self, key: BlockKey, node: NodeId) {
        let Some((found, entry)) = self.locate(key, |n| n == node) else { return };
        let mut at = self.home(key);
        while at != found {
            self.buckets[at].tags[2] -= ONE_OVERFLOW;
            at = self.after(at);
        }
        self.buckets[found].set_tag(entry, 0);
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Few distinct buckets and tags, so that collisions and overflow happen all the time.
    fn crowded_key(i: u8) -> BlockKey {
        let high = u128::from(i % 3) << 126;
        BlockKey::from_bytes((high | u128::from(i / 3 % 5) | (u128::from(i) << 40)).to_le_bytes())
    }

    proptest! {
        #[test]
        fn behaves_like_a_hash_map(ops in prop::collection::vec((any::<bool>(), 0u8..90), 1..400)) {
            let mut table = KeyTable::with_capacity(4);
            let mut model: HashMap<u8, ()> = HashMap::new();
            for (insert, i) in ops {
                let (key, node) = (crowded_key(i), NodeId(u32::from(i)));
                if insert && !model.contains_key(&i) {
                    table.insert(key, node, |n| crowded_key(n.0 as u8));
                    model.insert(i, ());
                } else if !insert {
                    table.remove(key, node);
                    model.remove(&i);
                }
                for j in 0..90u8 {
                    let found = table.find(crowded_key(j), |n| crowded_key(n.0 as u8) == crowded_key(j));
                    prop_assert_eq!(found.is_some(), model.contains_key(&j));
                }
            }
            let overflowed = table.buckets.iter().any(Bucket::overflowed);
            if model.is_empty() { prop_assert!(!overflowed); }
        }
    }
}
