//! S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023), for leaves.
//!
//! A new block enters a small queue and leaves the cache at its end unless it was used again; then it moves
//! to the main queue, which is a CLOCK. A ghost of what left sends a block that comes back straight to main.
//!
//! Adapted to prefixes: a block that has outlived its place in a queue but is not a leaf carries something
//! worth more than itself, so it is treated as used.

use super::history::History;
use super::list::{Links, List};
use super::{EvictionPolicy, PolicyKind, Touch};
use crate::ids::SlotId;
use crate::key::BlockKey;
use crate::units::Nanos;

/// Share of the capacity that the small queue may hold, as in the paper.
const SMALL_SHARE: usize = 10;
/// Uses that are counted, as in the paper.
const MAX_USES: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Absent,
    Small,
    Main,
}

#[derive(Clone, Copy)]
struct State {
    key: BlockKey,
    queue: Queue,
    uses: u8,
}

/// See the module's head.
pub struct S3Fifo {
    links: Links,
    small: List,
    main: List,
    /// What left the small queue; the clock counts departures.
    ghost: History<()>,
    departures: u32,
    slots: Vec<State>,
}

impl S3Fifo {
    /// Ranks slots `0..capacity`.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            links: Links::new(capacity),
            small: List::EMPTY,
            main: List::EMPTY,
            ghost: History::new(capacity),
            departures: 0,
            slots: vec![State { key: BlockKey::ROOT, queue: Queue::Absent, uses: 0 }; capacity],
        }
    }

    fn push(&mut self, slot: SlotId, queue: Queue) {
        let state = &mut self.slots[slot.0 as usize];
        (state.queue, state.uses) = (queue, 0);
        match queue {
            Queue::Small => self.small.push_back(&mut self.links, slot),
            Queue::Main => self.main.push_back(&mut self.links, slot),
            Queue::Absent => {}
        }
    }

    fn unlink(&mut self, slot: SlotId) {
        match self.slots[slot.0 as usize].queue {
            Queue::Small => self.small.unlink(&mut self.links, slot),
            Queue::Main => self.main.unlink(&mut self.links, slot),
            Queue::Absent => {}
        }
    }

    fn small_victim(&mut self, evictable: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId> {
        while let Some(slot) = self.small.front() {
            if self.slots[slot.0 as usize].uses == 0 && evictable(slot) {
                return Some(slot);
            }
            self.unlink(slot);
            self.push(slot, Queue::Main);
        }
        None
    }

    fn main_victim(&mut self, evictable: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId> {
        // Every round lowers each count by one, so that after the last all counts are zero.
        for _ in 0..(usize::from(MAX_USES) + 1) * self.main.len() {
            let slot = self.main.front()?;
            let uses = self.slots[slot.0 as usize].uses;
            if uses == 0 && evictable(slot) {
                return Some(slot);
            }
            self.unlink(slot);
            self.push(slot, Queue::Main);
            self.slots[slot.0 as usize].uses = uses.saturating_sub(1);
        }
        None
    }
}

impl EvictionPolicy for S3Fifo {
    fn name(&self) -> &'static str {
        PolicyKind::S3Fifo.name()
    }

    fn insert(&mut self, slot: SlotId, touch: &Touch) {
        if slot.0 as usize >= self.slots.len() {
            return;
        }
        self.unlink(slot);
        self.slots[slot.0 as usize].key = touch.key;
        let returned = self
            .ghost
            .get(touch.key, self.departures)
            .is_some_and(|(departures, ())| (departures as usize) < self.slots.len());
        let queue = if returned { Queue::Main } else { Queue::Small };
        self.push(slot, queue);
    }

    fn hit(&mut self, slot: SlotId, _: &Touch) {
        if let Some(state) = self.slots.get_mut(slot.0 as usize) {
            state.uses = (state.uses + 1).min(MAX_USES);
        }
    }

    fn remove(&mut self, slot: SlotId) {
        let Some(state) = self.slots.get(slot.0 as usize).copied() else { return };
        self.unlink(slot);
        self.slots[slot.0 as usize].queue = Queue::Absent;
        if state.queue == Queue::Small {
            self.departures = self.departures.wrapping_add(1);
            self.ghost.visit(state.key, self.departures);
        }
    }

    fn victim(&mut self, _: Nanos, evictable: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId> {
        if self.small.len() * SMALL_SHARE < self.slots.len()
            && let Some(slot) = self.main_victim(evictable)
        {
            return Some(slot);
        }
        // What the small queue refuses is in main afterwards.
        self.small_victim(evictable).or_else(|| self.main_victim(evictable))
    }

    fn coldest(&self, visit: &mut dyn FnMut(SlotId) -> bool) {
        self.small.iter(&self.links).chain(self.main.iter(&self.links)).all(visit);
    }
}
