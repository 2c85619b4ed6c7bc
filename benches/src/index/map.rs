//! The limit: the standard hash map from key to slot and nothing else. It knows no tiers, no parents and no
//! leaves, so no index can ask less of the machine per operation; a batch can overlap its cache misses.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use kv_core::key::BlockKey;

use super::{CHAIN, Contender, Operation, Workload};

/// A hasher to measure with.
pub trait Flavour {
    /// As it is printed.
    const NAME: &'static str;
    /// The standard map's parameter.
    type Build: BuildHasher + Default;
}

/// The standard library's default.
pub struct Sip;

impl Flavour for Sip {
    const NAME: &'static str = "HashMap, SipHash";
    type Build = RandomState;
}

/// Keys are uniform: the low half is the hash.
pub struct Identity;

impl Flavour for Identity {
    const NAME: &'static str = "HashMap, identity";
    type Build = BuildHasherDefault<LowHalf>;
}

/// See [`Identity`].
#[derive(Default)]
pub struct LowHalf(u64);

impl Hasher for LowHalf {
    fn write(&mut self, bytes: &[u8]) {
        for (i, byte) in bytes.iter().take(8).enumerate() {
            self.0 ^= u64::from(*byte) << (8 * i);
        }
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// `HashMap<u128, u32>`.
pub struct Map<F: Flavour> {
    slots: HashMap<u128, u32, F::Build>,
    matched: Vec<u32>,
}

fn raw(key: BlockKey) -> u128 {
    u128::from_le_bytes(key.to_bytes())
}

impl<F: Flavour> Map<F> {
    /// Holds all blocks of `load`.
    #[must_use]
    pub fn new(load: &Workload) -> Self {
        let slots = HashMap::with_capacity_and_hasher(load.blocks(), F::Build::default());
        let mut this = Self { slots, matched: Vec::with_capacity(CHAIN) };
        this.register_all(load);
        this
    }

    /// Length of the longest prefix of `chain` that is there.
    #[inline]
    pub fn lookup(&mut self, chain: &[BlockKey]) -> usize {
        self.matched.clear();
        self.matched.extend(chain.iter().map_while(|key| self.slots.get(&raw(*key))));
        self.matched.len()
    }

    fn register_all(&mut self, load: &Workload) -> usize {
        let new = |(slot, key): (usize, &BlockKey)| self.slots.insert(raw(*key), slot as u32).is_none();
        load.chains().flatten().enumerate().map(new).filter(|new| *new).count()
    }
}

impl<F: Flavour> Contender for Map<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn prepare(&mut self, _: Operation, _: &Workload) {}

    fn run(&mut self, operation: Operation, load: &Workload) -> Option<usize> {
        match operation {
            Operation::Match => Some(load.chains().map(|chain| self.lookup(chain)).sum()),
            Operation::MatchPin => None,
            Operation::Evict => {
                Some(load.leaves_first().filter_map(|key| self.slots.remove(&raw(key))).count())
            }
            Operation::Register => Some(self.register_all(load)),
        }
    }
}
