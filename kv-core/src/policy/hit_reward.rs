//! LRU with a decaying hit reward.
//!
//! A block ranks by the time of its last use plus a reward for earlier uses, also those before it was last
//! evicted: `clock + REWARD x capacity x heat`, where every reuse adds 1 to the heat and `HALF_LIFE x
//! capacity` block uses halve it. Rank never falls behind pure recency by more than the reward, so an idle
//! block leaves in bounded time however hot it was. Time is a count of block uses.

use super::heap::SlotHeap;
use super::history::History;
use super::{EvictionPolicy, PolicyKind, Touch};
use crate::ids::SlotId;
use crate::key::BlockKey;
use crate::units::Nanos;

/// What one reuse is worth, in capacities of block uses. A static compromise: 4 would reach 46 % of the
/// optimum at 2 % of the Mooncake conversation trace's blocks, but 68 instead of 80 % at 10 %.
const REWARD: f64 = 1.0;
/// Block uses, in capacities, after which the heat is half.
const HALF_LIFE: f64 = 4.0;
/// Keys remembered per slot.
const MEMORY: usize = 8;

/// See the module's head.
pub struct HitReward {
    ranks: SlotHeap,
    heat: History<f32>,
    clock: u64,
    /// The parent of the block that was touched last, and that block's rank.
    deeper: (BlockKey, u64),
}

impl HitReward {
    /// Ranks slots `0..capacity`.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            ranks: SlotHeap::new(capacity),
            heat: History::new(capacity * MEMORY),
            clock: 0,
            deeper: (BlockKey::ROOT, 0),
        }
    }

    fn touch(&mut self, slot: SlotId, touch: &Touch) {
        let capacity = self.ranks.capacity() as f64;
        if slot.0 as usize >= self.ranks.capacity() {
            return;
        }
        self.clock += 1;
        let (age, heat) = self.heat.visit(touch.key, self.clock as u32);
        if let Some(age) = age {
            *heat = 1.0 + *heat * (-f64::from(age) / (HALF_LIFE * capacity)).exp2() as f32;
        }
        let heat = f64::from(*heat);
        let mut rank = self.clock + (REWARD * capacity * heat) as u64;
        // Never below a descendant's, nor below its own of before, when it had descendants that are still
        // there: so the lowest rank is a leaf's.
        if touch.key == self.deeper.0 {
            rank = rank.max(self.deeper.1);
        }
        rank = rank.max(self.ranks.rank(slot).unwrap_or(0));
        self.deeper = (touch.parent, rank);
        self.ranks.set(slot, rank);
    }
}

impl EvictionPolicy for HitReward {
    fn name(&self) -> &'static str {
        PolicyKind::HitReward.name()
    }

    fn insert(&mut self, slot: SlotId, touch: &Touch) {
        self.touch(slot, touch);
    }

    fn hit(&mut self, slot: SlotId, touch: &Touch) {
        self.touch(slot, touch);
    }

    fn remove(&mut self, slot: SlotId) {
        self.ranks.remove(slot);
    }

    fn victim(&mut self, _: Nanos, evictable: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId> {
        self.ranks.find(evictable)
    }

    fn coldest(&self, visit: &mut dyn FnMut(SlotId) -> bool) {
        self.ranks.iter().all(visit);
    }
}
