//! Eviction as a trait, one file per algorithm.

use crate::ids::SlotId;
use crate::key::BlockKey;
use crate::units::Nanos;
use std::collections::BTreeMap;

/// What a policy is told when a block is inserted or hit.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    /// Name of the block (already uniform: its low half may be used as a hash).
    pub key: BlockKey,
    /// Name of its parent; [`BlockKey::ROOT`] for the first block of a chain.
    pub parent: BlockKey,
    /// Position in its chain, 0 for the first block.
    pub depth: u32,
    /// Virtual or real time of the request.
    pub now: Nanos,
}

/// Ranks the resident blocks of one tier.
///
/// The planner touches the blocks of a request **tail first**, so that an ancestor is always at least as
/// recent as its descendants, and asks for victims with a filter that admits only unpinned leaves.
/// Implementations allocate in proportion to the capacity they were built with and not per call.
pub trait EvictionPolicy: Send {
    /// Name on the command line and in reports.
    fn name(&self) -> &'static str;
    /// `slot` became resident. It is not resident now.
    fn insert(&mut self, slot: SlotId, touch: &Touch);
    /// `slot`, which is resident, was used by a request.
    fn hit(&mut self, slot: SlotId, touch: &Touch);
    /// `slot` is no longer resident (evicted, invalidated or purged).
    fn remove(&mut self, slot: SlotId);
    /// The block that is worth least among those for which `evictable` holds. It stays resident until the
    /// planner calls [`EvictionPolicy::remove`].
    fn victim(&mut self, now: Nanos, evictable: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId>;
    /// Visits resident blocks, least valuable first, until `visit` returns `false`. Used for write-behind,
    /// so an approximate order is enough.
    fn coldest(&self, visit: &mut dyn FnMut(SlotId) -> bool);
}

/// Which policy ranks a tier's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyKind {
    /// Least recently used.
    #[default]
    Lru,
}

impl PolicyKind {
    /// Every kind.
    pub const ALL: [Self; 1] = [Self::Lru];
}

/// A write budget of the NVMe tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub struct BytesPerDay(pub u64);

/// Which blocks are worth a write to NVMe. Without a budget: all of them.
#[derive(Debug)]
pub struct NvmeAdmission(());

impl NvmeAdmission {
    /// Admission under a budget.
    #[must_use]
    pub fn new(_budget: Option<BytesPerDay>) -> Self {
        Self(())
    }

    /// Whether a block that was used `heat` times may be written now.
    pub fn admit(&mut self, _now: Nanos, _bytes: crate::units::Bytes, _heat: u8) -> bool {
        true
    }
}

/// A policy for `capacity` slots.
#[must_use]
pub fn build(_kind: PolicyKind, capacity: usize) -> Box<dyn EvictionPolicy> {
    Box::new(Lru { clock: 0, order: BTreeMap::new(), last_use: vec![0; capacity] })
}

struct Lru {
    clock: u64,
    order: BTreeMap<u64, SlotId>,
    last_use: Vec<u64>,
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }
    fn insert(&mut self, slot: SlotId, _touch: &Touch) {
        self.clock += 1;
        self.order.insert(self.clock, slot);
        self.last_use[slot.0 as usize] = self.clock;
    }
    fn hit(&mut self, slot: SlotId, touch: &Touch) {
        self.remove(slot);
        self.insert(slot, touch);
    }
    fn remove(&mut self, slot: SlotId) {
        self.order.remove(&self.last_use[slot.0 as usize]);
    }
    fn victim(&mut self, _now: Nanos, evictable: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId> {
        self.order.values().copied().find(|slot| evictable(*slot))
    }
    fn coldest(&self, visit: &mut dyn FnMut(SlotId) -> bool) {
        self.order.values().all(|slot| visit(*slot));
    }
}
