//! A 4-ary min-heap of slots that knows where each slot is, so that any of them can be moved or taken out.

use crate::ids::SlotId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const ABSENT: u32 = u32::MAX;
/// Children per node: a shallower heap, whose siblings share a cache line.
const ARITY: usize = 4;

/// Slots ordered by a 64-bit rank, lowest first.
pub(super) struct SlotHeap {
    heap: Vec<(u64, u32)>,
    /// Index in `heap` of each slot.
    place: Vec<u32>,
    /// Scratch of [`SlotHeap::find`].
    frontier: BinaryHeap<Reverse<(u64, u32)>>,
}

impl SlotHeap {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            heap: Vec::with_capacity(capacity),
            place: vec![ABSENT; capacity],
            frontier: BinaryHeap::new(),
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.place.len()
    }

    /// Inserts `slot` (which must be below the capacity) or moves it.
    pub(super) fn set(&mut self, slot: SlotId, rank: u64) {
        let at = match self.place[slot.0 as usize] {
            ABSENT => {
                self.heap.push((rank, slot.0));
                self.heap.len() - 1
            }
            at => {
                self.heap[at as usize].0 = rank;
                at as usize
            }
        };
        self.settle(at);
    }

    pub(super) fn rank(&self, slot: SlotId) -> Option<u64> {
        self.heap.get(*self.place.get(slot.0 as usize)? as usize).map(|entry| entry.0)
    }

    pub(super) fn remove(&mut self, slot: SlotId) {
        let Some(place) = self.place.get_mut(slot.0 as usize).filter(|p| **p != ABSENT) else { return };
        let at = std::mem::replace(place, ABSENT) as usize;
        self.heap.swap_remove(at);
        if at < self.heap.len() {
            self.settle(at);
        }
    }

    /// The lowest-ranked slot that `wanted` accepts. Costs O(k log k) when k slots are refused.
    pub(super) fn find(&mut self, wanted: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId> {
        let (rank, first) = *self.heap.first()?;
        if wanted(SlotId(first)) {
            return Some(SlotId(first));
        }
        self.frontier.clear();
        self.frontier.push(Reverse((rank, 0)));
        while let Some(Reverse((_, at))) = self.frontier.pop() {
            let slot = SlotId(self.heap[at as usize].1);
            if at != 0 && wanted(slot) {
                return Some(slot);
            }
            let first = at as usize * ARITY + 1;
            for child in first..(first + ARITY).min(self.heap.len()) {
                self.frontier.push(Reverse((self.heap[child].0, child as u32)));
            }
        }
        None
    }

    /// Every slot, in an order that is approximately ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = SlotId> {
        self.heap.iter().map(|(_, slot)| SlotId(*slot))
    }

    /// Moves the entry at `at`, whose rank may have changed either way, to where it belongs.
    fn settle(&mut self, mut at: usize) {
        let entry = self.heap[at];
        while at > 0 && entry < self.heap[(at - 1) / ARITY] {
            self.put(at, self.heap[(at - 1) / ARITY]);
            at = (at - 1) / ARITY;
        }
        loop {
            let first = at * ARITY + 1;
            let children = first..(first + ARITY).min(self.heap.len());
            match children.min_by_key(|child| self.heap[*child]) {
                Some(child) if self.heap[child] < entry => {
                    self.put(at, self.heap[child]);
                    at = child;
                }
                _ => break,
            }
        }
        self.put(at, entry);
    }

    fn put(&mut self, at: usize, entry: (u64, u32)) {
        self.heap[at] = entry;
        self.place[entry.1 as usize] = at as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_sorted_map_from_slots_to_ranks(
            steps in prop::collection::vec((0..50_u32, prop::option::of(0..100_u64), any::<u64>()), 1..300),
        ) {
            let mut heap = SlotHeap::new(50);
            let mut ranks = BTreeMap::new();
            for (slot, rank, mask) in steps {
                match rank {
                    Some(rank) => {
                        heap.set(SlotId(slot), rank);
                        ranks.insert(slot, rank);
                    }
                    None => {
                        heap.remove(SlotId(slot));
                        ranks.remove(&slot);
                    }
                }
                prop_assert_eq!(heap.rank(SlotId(slot)), ranks.get(&slot).copied());
                prop_assert_eq!(heap.iter().count(), ranks.len());
                let wanted = |slot: &u32| mask & (1 << slot) != 0;
                // Among equal ranks any slot will do.
                let lowest = ranks.iter().filter(|(slot, _)| wanted(slot)).map(|(_, rank)| *rank).min();
                let found = heap.find(&mut |slot| wanted(&slot.0));
                prop_assert!(found.is_none_or(|slot| wanted(&slot.0)));
                prop_assert_eq!(found.and_then(|slot| heap.rank(slot)), lowest);
            }
        }
    }
}
