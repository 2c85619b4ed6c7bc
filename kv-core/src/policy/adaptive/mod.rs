//! The default: keeps the blocks with the most expected hits per block use that they occupy a slot.
//!
//! ```text
//!  uses, tail first ──► pending request ──► Class of each block ──► Cells: one list per (class, age band)
//!                            │                      │                 ▲ cells sorted by worth
//!                       History: uses and last      ▼                 │
//!                       use of 8 x capacity keys   LifeTable: hazard of reuse by (class, age)
//! ```
//!
//! No rule with fixed constants is good at every size: recency wins when the tier is large, frequency when
//! it is small, and a conversation's *next* turn depends on how it went so far. So nothing is fixed but what
//! is looked at (`class.rs`); how soon each class is used again is measured on a sample of the keys whether
//! they are resident or not (`life_table.rs`); and a victim comes from the cell with the lowest Gittins index
//! (`cells.rs`). An index is a rate, so it needs no knob for the capacity: a small tier never gets to the
//! good cells, a large one rarely has to look beyond the worthless.
//!
//! Time is counted in block uses. A tier is under pressure from uses, not from seconds, and equal or missing
//! timestamps do no harm.

mod cells;
mod class;
mod life_table;

use super::history::History;
use super::{EvictionPolicy, PolicyKind, Touch};
use crate::ids::SlotId;
use crate::key::BlockKey;
use crate::units::Nanos;
use cells::Cells;
use class::{Class, Return};
use life_table::{LifeTable, WatchId};

/// Keys remembered per slot of the tier.
const MEMORY: usize = 8;
/// Worths are computed anew after a quarter of the capacity in uses, but not more often than this.
const LEARN_AT_LEAST: u32 = 1024;
/// Blocks are checked for having aged four times per first age band, but not more often than this.
const AGE_AT_LEAST: u32 = 64;

/// What is remembered of a key.
#[derive(Clone, Copy, Default)]
struct Past {
    uses: u8,
    watch: WatchId,
}

/// A touched block of the request that is being reported.
struct Pending {
    slot: SlotId,
    key: BlockKey,
}

/// See the module's head.
pub struct Adaptive {
    cells: Cells,
    history: History<Past>,
    table: LifeTable,
    /// The blocks so far of the request that is being reported, tail first; they are in no cell.
    pending: Vec<Pending>,
    /// The parent of the last of them: a touch of another block begins another request.
    expected: BlockKey,
    /// The pending blocks that have been counted, with their uses, tail first.
    counted: Vec<(SlotId, Past)>,
    /// Block uses so far.
    clock: u32,
    learnt: u32,
    aged: u32,
}

impl Adaptive {
    /// Ranks slots `0..capacity`.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            cells: Cells::new(capacity),
            history: History::new(capacity.saturating_mul(MEMORY)),
            table: LifeTable::new(capacity),
            pending: Vec::with_capacity(capacity),
            expected: BlockKey::ROOT,
            counted: Vec::with_capacity(capacity),
            clock: 0,
            learnt: 0,
            aged: 0,
        }
    }

    fn touch(&mut self, slot: SlotId, touch: &Touch) {
        if slot.0 as usize >= self.cells.capacity() {
            return;
        }
        if touch.key != self.expected || self.pending.len() == self.cells.capacity() {
            self.settle();
        }
        self.cells.remove(slot);
        self.pending.push(Pending { slot, key: touch.key });
        self.expected = touch.parent;
        if touch.depth == 0 {
            self.count();
        }
    }

    /// The pending blocks are a whole request.
    fn count(&mut self) {
        let mut back = Return::New;
        let mut fresh = 0;
        for block in &self.pending {
            self.clock = self.clock.wrapping_add(1);
            let (gap, past) = self.history.visit(block.key, self.clock);
            self.table.used(past.watch, self.clock);
            let known_before = self.counted.len() - fresh;
            match gap {
                None => fresh += 1,
                Some(gap) if known_before == 0 => {
                    back = Return::of(past.uses, gap, self.cells.capacity());
                }
                Some(_) => {}
            }
            past.uses = past.uses.saturating_add(1);
            past.watch = self.table.watch(block.key, self.clock);
            self.counted.push((block.slot, *past));
        }
        self.pending.clear();
        self.expected = BlockKey::ROOT;
        let mut deeper = Class::TAIL;
        for (from_tail, (slot, past)) in self.counted.drain(..).enumerate() {
            let class = match from_tail {
                0 => Class::TAIL,
                _ => Class::of(past.uses, fresh, back),
            };
            self.table.classify(past.watch, class);
            // A block cannot be worth less than its descendants, which are worth nothing without it.
            deeper = self.cells.better(class, deeper);
            self.cells.put(slot, deeper, self.clock);
        }
        self.keep_up();
    }

    /// Whatever is pending did not come from a request that used it: those are reported down to depth 0.
    /// The blocks were loaded ahead of their use, and rank by what is known of them.
    fn settle(&mut self) {
        for block in self.pending.drain(..) {
            let uses = self.history.get(block.key, self.clock).map_or(0, |(_, past)| past.uses);
            self.cells.put(block.slot, Class::of(uses, 0, Return::Soon), self.clock);
        }
        self.expected = BlockKey::ROOT;
    }

    fn keep_up(&mut self) {
        let capacity = self.cells.capacity() as u32;
        if self.clock.wrapping_sub(self.aged) >= (capacity / 16).max(AGE_AT_LEAST) {
            self.aged = self.clock;
            self.cells.advance(self.clock, &self.table);
        }
        if self.clock.wrapping_sub(self.learnt) >= (capacity / 4).max(LEARN_AT_LEAST) {
            self.learnt = self.clock;
            self.table.advance(self.clock);
            self.cells.reorder(&self.table.worths());
        }
    }
}

impl EvictionPolicy for Adaptive {
    fn name(&self) -> &'static str {
        PolicyKind::Adaptive.name()
    }

    fn insert(&mut self, slot: SlotId, touch: &Touch) {
        self.touch(slot, touch);
    }

    fn hit(&mut self, slot: SlotId, touch: &Touch) {
        self.touch(slot, touch);
    }

    fn remove(&mut self, slot: SlotId) {
        self.settle();
        self.cells.remove(slot);
    }

    fn victim(&mut self, _: Nanos, evictable: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId> {
        self.settle();
        self.cells.find(evictable)
    }

    fn evict(&mut self, _: Nanos, many: usize, take: &mut dyn FnMut(SlotId) -> bool) -> usize {
        self.settle();
        self.cells.evict(many, take)
    }

    fn coldest(&self, visit: &mut dyn FnMut(SlotId) -> bool) {
        self.cells.ascending().chain(self.pending.iter().map(|block| block.slot)).all(visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(block: u32) -> BlockKey {
        BlockKey::from_bytes([block as u8 + 1; 16])
    }

    fn touch(block: u32) -> Touch {
        let parent = block.checked_sub(1).map_or(BlockKey::ROOT, key);
        Touch { key: key(block), parent, depth: block, now: Nanos(0) }
    }

    fn uses(policy: &Adaptive, block: u32) -> Option<u8> {
        policy.history.get(key(block), policy.clock).map(|(_, past)| past.uses)
    }

    #[test]
    fn a_block_that_arrives_ahead_of_a_request_is_used_once() {
        let mut policy = Adaptive::new(8);
        for block in 1..4 {
            policy.insert(SlotId(block), &touch(block));
        }
        assert_eq!(policy.victim(Nanos(0), &mut |slot| slot.0 == 2), Some(SlotId(2)), "it is ranked at once");
        assert_eq!(uses(&policy, 3), None);
        policy.insert(SlotId(0), &touch(0));
        let before = uses(&policy, 0);
        for block in (0..4).rev() {
            policy.hit(SlotId(block), &touch(block));
        }
        assert_eq!([1, 2, 3].map(|block| uses(&policy, block)), [Some(1); 3]);
        assert_eq!(uses(&policy, 0), before.map(|n| n + 1));
    }

    #[test]
    fn the_parts_of_a_request_get_classes_of_their_own() {
        let mut policy = Adaptive::new(8);
        for end in [2, 5] {
            for block in (0..=end).rev() {
                policy.insert(SlotId(block), &touch(block));
            }
        }
        let uses = [0, 1, 2, 3, 4, 5].map(|block| uses(&policy, block));
        assert_eq!(uses, [Some(2), Some(2), Some(2), Some(1), Some(1), Some(1)]);
        let mut order = Vec::new();
        policy.coldest(&mut |slot| {
            order.push(slot.0);
            true
        });
        assert_eq!(order, [5, 4, 3, 2, 1, 0], "before anything is learnt the tail leaves first");
    }
}
