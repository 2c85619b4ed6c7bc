//! Hash table from block key to node handle.
//!
//! Keys are uniform already, so their halves *are* the hash: the high half picks a bucket, the low half
//! gives a 32-bit tag. A bucket is one cache line of seven entries that is searched without branches, so
//! that the processor can overlap the cache misses of a whole batch of look-ups. A bucket counts the entries
//! that had to go past it; a search stops at the first bucket that nothing went past.

use super::NodeId;
use crate::key::BlockKey;

/// Entries per bucket: seven tags, seven handles and the overflow count fill 64 bytes.
const ENTRIES: usize = 7;
/// Where the overflow count lies among the tags.
const OVERFLOW: usize = 7;
const ENTRY_MASK: u32 = (1 << ENTRIES) - 1;
/// The table grows beyond this share of used entries (percent).
const MAX_LOAD: usize = 80;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    /// `0` is an empty entry; the last one counts entries that overflowed past this bucket.
    tags: [u32; 8],
    nodes: [u32; 8],
}

impl Bucket {
    const EMPTY: Self = Self { tags: [0; 8], nodes: [0; 8] };

    /// Bit `i` is set where entry `i` carries `tag`.
    #[inline]
    fn matches(&self, tag: u32) -> u32 {
        let mut mask = 0;
        for (i, t) in self.tags.iter().enumerate() {
            mask |= u32::from(*t == tag) << i;
        }
        mask & ENTRY_MASK
    }
}

/// Open-addressed table; node handles only, the keys themselves live in the nodes.
pub(super) struct KeyTable {
    buckets: Vec<Bucket>,
    len: usize,
}

#[inline]
fn tag_of(key: BlockKey) -> u32 {
    (key.low() as u32).max(1)
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

    /// The first entry in the home bucket with the key's tag: almost always the right one, found without a
    /// branch that depends on memory. `None` says nothing.
    #[inline]
    pub(super) fn guess(&self, key: BlockKey) -> Option<NodeId> {
        let bucket = &self.buckets[self.home(key)];
        let mask = bucket.matches(tag_of(key));
        (mask != 0).then(|| NodeId(bucket.nodes[mask.trailing_zeros() as usize & 7]))
    }

    /// The node for which `is` holds, among those with the key's tag.
    pub(super) fn find(&self, key: BlockKey, is: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let (bucket, entry) = self.locate(key, is)?;
        Some(NodeId(self.buckets[bucket].nodes[entry]))
    }

    fn locate(&self, key: BlockKey, is: impl Fn(NodeId) -> bool) -> Option<(usize, usize)> {
        let tag = tag_of(key);
        let mut at = self.home(key);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            let mut mask = bucket.matches(tag);
            while mask != 0 {
                let entry = mask.trailing_zeros() as usize;
                if is(NodeId(bucket.nodes[entry])) {
                    return Some((at, entry));
                }
                mask &= mask - 1;
            }
            if bucket.tags[OVERFLOW] == 0 {
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
            let free = self.buckets[at].matches(0);
            let bucket = &mut self.buckets[at];
            if free != 0 {
                let entry = free.trailing_zeros() as usize;
                bucket.tags[entry] = tag_of(key);
                bucket.nodes[entry] = node.0;
                return;
            }
            bucket.tags[OVERFLOW] += 1;
            at = self.after(at);
        }
    }

    fn grow(&mut self, key_of: impl Fn(NodeId) -> BlockKey) {
        let larger = Self::with_capacity((self.len * 2).max(64));
        let old = std::mem::replace(&mut self.buckets, larger.buckets);
        for bucket in &old {
            for entry in 0..ENTRIES {
                if bucket.tags[entry] != 0 {
                    let node = NodeId(bucket.nodes[entry]);
                    self.place(key_of(node), node);
                }
            }
        }
    }

    /// Removes a node that is in the table; does nothing otherwise.
    pub(super) fn remove(&mut self, key: BlockKey, node: NodeId) {
        let Some((found, entry)) = self.locate(key, |n| n == node) else { return };
        let mut at = self.home(key);
        while at != found {
            self.buckets[at].tags[OVERFLOW] -= 1;
            at = self.after(at);
        }
        self.buckets[found].tags[entry] = 0;
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
            let overflow: u32 = table.buckets.iter().map(|b| b.tags[OVERFLOW]).sum();
            if model.is_empty() { prop_assert_eq!(overflow, 0); }
        }
    }
}
