//! Least recently used.
//!
//! Leaf-first order needs no code here: requests touch tail first, so a block is always colder than its
//! ancestors, and the filter admits only leaves.

use super::list::{Links, List};
use super::{EvictionPolicy, PolicyKind, Touch};
use crate::ids::SlotId;
use crate::units::Nanos;

/// Evicts the block whose last use is longest ago. Every operation is O(1), a search for victims O(blocks that
/// are refused and colder than the last of them).
pub struct Lru {
    links: Links,
    order: List,
    resident: Vec<bool>,
}

impl Lru {
    /// Ranks slots `0..capacity`.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { links: Links::new(capacity), order: List::EMPTY, resident: vec![false; capacity] }
    }
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        PolicyKind::Lru.name()
    }

    fn insert(&mut self, slot: SlotId, _: &Touch) {
        if slot.0 as usize >= self.resident.len() {
            return;
        }
        self.remove(slot);
        self.resident[slot.0 as usize] = true;
        self.order.push_back(&mut self.links, slot);
    }

    fn hit(&mut self, slot: SlotId, touch: &Touch) {
        self.insert(slot, touch);
    }

    fn remove(&mut self, slot: SlotId) {
        if self.resident.get_mut(slot.0 as usize).is_some_and(std::mem::take) {
            self.order.unlink(&mut self.links, slot);
        }
    }

    fn victim(&mut self, _: Nanos, evictable: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId> {
        self.order.iter(&self.links).find(|slot| evictable(*slot))
    }

    fn evict(&mut self, _: Nanos, many: usize, take: &mut dyn FnMut(SlotId) -> bool) -> usize {
        let (mut taken, mut before) = (0, usize::MAX);
        // A second pass only if to take some has made others acceptable: parents colder than their children.
        while taken < many && taken != before {
            before = taken;
            let mut at = self.order.front();
            while taken < many
                && let Some(slot) = at
            {
                at = List::after(&self.links, slot);
                if take(slot) {
                    self.remove(slot);
                    taken += 1;
                }
            }
        }
        taken
    }

    fn coldest(&self, visit: &mut dyn FnMut(SlotId) -> bool) {
        self.order.iter(&self.links).all(visit);
    }
}
