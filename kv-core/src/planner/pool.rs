//! The slots of one tier (HBM or host): who holds each, and who leaves first.
//!
//! ```text
//!            allocate              bind + bytes expected          bytes verified
//!   Free ───────────► Private ───────────────────────► Filling ─────────────────► Ready
//!    ▲                   │ give_back                      │ abandon                 │ evict
//!    └───────────────────┴────────────────────────────────┴─────────────────────────┘
//! ```
//!
//! A slot whose transfer was left in doubt is `GivenUp`, for ever: late bytes must not hit another block.
//!
//! `Private`, `Filling` and pins are move-only tokens: a slot in such a state has exactly one holder, and
//! only that holder can move it on. A slot that is bound to a node is known to the eviction policy; it can
//! be chosen only while `Ready`, unpinned and a leaf.

use crate::ids::{JobId, SlotId};
use crate::index::{NodeId, PrefixIndex};
use crate::job::TransferError;
use crate::policy::{EvictionPolicy, Touch};
use crate::tier::Tier;
use crate::units::Nanos;

/// A slot that belongs to its holder alone; the index does not know it.
#[derive(Debug)]
#[must_use = "dropping it leaks the slot"]
pub(super) struct Private(SlotId);

/// A slot whose bytes are on their way; bound to a node.
#[derive(Debug)]
#[must_use = "dropping it leaks the slot"]
pub(super) struct Filling(SlotId);

/// A promise that a ready slot stays as it is.
#[derive(Debug)]
#[must_use = "dropping it leaks a pin"]
pub(super) struct Pin(SlotId);

impl Private {
    pub(super) fn slot(&self) -> SlotId {
        self.0
    }
}
impl Filling {
    pub(super) fn slot(&self) -> SlotId {
        self.0
    }
}
impl Pin {
    pub(super) fn slot(&self) -> SlotId {
        self.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Private,
    Filling(Option<JobId>),
    Ready {
        pins: u32,
    },
    /// Somebody beyond our control may still write to it.
    GivenUp,
}

#[derive(Clone, Copy)]
struct Slot {
    state: State,
    node: Option<NodeId>,
    /// Write-behind has dealt with this block: it was written, or refused by admission. Not looked at again
    /// until it is used; otherwise an NVMe tier smaller than host RAM would be written round and round.
    settled: bool,
}

impl Slot {
    const FREE: Self = Self { state: State::Free, node: None, settled: false };
}

pub(super) struct SlotPool {
    tier: Tier,
    slots: Vec<Slot>,
    free: Vec<u32>,
    policy: Box<dyn EvictionPolicy>,
    /// See [`SlotPool::take_touches`].
    touches: usize,
}

impl SlotPool {
    pub(super) fn new(tier: Tier, capacity: u32, policy: Box<dyn EvictionPolicy>) -> Self {
        Self {
            tier,
            slots: vec![Slot::FREE; capacity as usize],
            free: (0..capacity).rev().collect(),
            policy,
            touches: 0,
        }
    }

    pub(super) fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(super) fn free_slots(&self) -> u32 {
        self.free.len() as u32
    }

    pub(super) fn policy_name(&self) -> &'static str {
        self.policy.name()
    }

    fn slot(&mut self, slot: SlotId) -> &mut Slot {
        &mut self.slots[slot.0 as usize]
    }

    pub(super) fn node(&self, slot: SlotId) -> Option<NodeId> {
        self.slots[slot.0 as usize].node
    }

    /// The job that is filling the slot.
    pub(super) fn filling_job(&self, slot: SlotId) -> Option<JobId> {
        match self.slots[slot.0 as usize].state {
            State::Filling(job) => job,
            _ => None,
        }
    }

    /// A free slot, without evicting anything.
    pub(super) fn take_free(&mut self) -> Option<Private> {
        let slot = SlotId(self.free.pop()?);
        self.slot(slot).state = State::Private;
        Some(Private(slot))
    }

    /// Frees up to `many` slots: of ready, unpinned leaves those that should leave next. `left` takes each block
    /// out of the index.
    pub(super) fn evict(
        &mut self,
        now: Nanos,
        many: usize,
        index: &mut PrefixIndex,
        left: &mut dyn FnMut(&mut PrefixIndex, NodeId),
    ) {
        let Self { tier, slots, free, policy, .. } = self;
        policy.evict(now, many, &mut |slot| {
            let held = &mut slots[slot.0 as usize];
            match held.node {
                Some(node) if held.state == State::Ready { pins: 0 } && index.is_leaf(node, *tier) => {
                    *held = Slot::FREE;
                    free.push(slot.0);
                    left(index, node);
                    true
                }
                _ => false,
            }
        });
    }

    /// Ready, and nobody holds a pin on it.
    pub(super) fn is_at_rest(&self, slot: SlotId) -> bool {
        self.slots[slot.0 as usize].state == State::Ready { pins: 0 }
    }

    /// Frees a slot that is at rest. The caller displaces the node in the index.
    pub(super) fn take_out(&mut self, slot: SlotId) {
        debug_assert!(self.is_at_rest(slot), "{slot:?} is in use");
        self.policy.remove(slot);
        self.free_slot(slot);
    }

    pub(super) fn give_back(&mut self, private: Private) {
        self.free_slot(private.0);
    }

    /// The bytes will not come. The caller displaces the node in the index.
    pub(super) fn abandon(&mut self, filling: Filling, error: TransferError) {
        self.policy.remove(filling.0);
        self.failed(Private(filling.0), error);
    }

    /// A transfer into the slot failed: it is free again, unless that is in doubt.
    pub(super) fn failed(&mut self, private: Private, error: TransferError) {
        if error == TransferError::InDoubt {
            *self.slot(private.0) = Slot { state: State::GivenUp, ..Slot::FREE };
        } else {
            self.free_slot(private.0);
        }
    }

    fn free_slot(&mut self, slot: SlotId) {
        *self.slot(slot) = Slot::FREE;
        self.free.push(slot.0);
    }

    /// Binds the slot to a node; a job that [`SlotPool::attach`] names will bring the bytes.
    pub(super) fn bind_filling(&mut self, private: Private, node: NodeId) -> Filling {
        let slot = self.slot(private.0);
        slot.state = State::Filling(None);
        slot.node = Some(node);
        Filling(private.0)
    }

    /// Names the job that fills the slot from now on.
    pub(super) fn attach(&mut self, slot: SlotId, job: JobId) {
        self.slot(slot).state = State::Filling(Some(job));
    }

    /// Binds a slot that its holder has already filled.
    pub(super) fn bind_ready(&mut self, private: Private, node: NodeId) -> Pin {
        let slot = self.slot(private.0);
        slot.state = State::Ready { pins: 1 };
        slot.node = Some(node);
        Pin(private.0)
    }

    /// The bytes are there and verified. Comes pinned, so that nothing evicts it before its first use.
    pub(super) fn fill(&mut self, filling: Filling) -> Pin {
        self.touches += 1;
        self.slot(filling.0).state = State::Ready { pins: 1 };
        Pin(filling.0)
    }

    /// Pins a ready slot.
    pub(super) fn pin(&mut self, slot: SlotId) -> Option<Pin> {
        match &mut self.slot(slot).state {
            State::Ready { pins } => {
                *pins += 1;
                Some(Pin(slot))
            }
            _ => None,
        }
    }

    pub(super) fn unpin(&mut self, pin: Pin) {
        if let State::Ready { pins } = &mut self.slot(pin.0).state {
            *pins = pins.saturating_sub(1);
        }
    }

    pub(super) fn rank_new(&mut self, slot: SlotId, touch: &Touch) {
        self.touches += 1;
        self.policy.insert(slot, touch);
    }

    pub(super) fn rank_hit(&mut self, slot: SlotId, touch: &Touch) {
        self.touches += 1;
        self.slot(slot).settled = false;
        self.policy.hit(slot, touch);
    }

    pub(super) fn settle(&mut self, slot: SlotId) {
        self.slot(slot).settled = true;
    }

    /// Visits the `window` least valuable blocks: those that are ready and not settled.
    pub(super) fn coldest(&self, window: usize, visit: &mut dyn FnMut(SlotId, NodeId)) {
        let mut left = window;
        self.policy.coldest(&mut |slot| {
            if let Some(node) = self.node(slot)
                && self.is_unsettled(slot, node)
            {
                visit(slot, node);
            }
            left -= 1;
            left > 0
        });
    }

    /// The slot holds the node's block, ready, and write-behind has not dealt with it.
    pub(super) fn is_unsettled(&self, slot: SlotId, node: NodeId) -> bool {
        let s = &self.slots[slot.0 as usize];
        matches!(s.state, State::Ready { .. }) && s.node == Some(node) && !s.settled
    }

    /// True, and starts counting anew, if more than `many` blocks came in, became ready or were used.
    pub(super) fn take_touches(&mut self, many: usize) -> bool {
        let enough = self.touches > many;
        if enough {
            self.touches = 0;
        }
        enough
    }

    /// Sum of all pins and number of slots in each state, for the audit.
    pub(super) fn census(&self) -> Census {
        let mut census = Census::default();
        for slot in &self.slots {
            match slot.state {
                State::Free => census.free += 1,
                State::Private => census.private += 1,
                State::Filling(_) => census.filling += 1,
                State::GivenUp => census.given_up += 1,
                State::Ready { pins } => {
                    census.ready += 1;
                    census.pins += pins;
                }
            }
        }
        census
    }

    /// Every bound slot with its node and whether it is ready, for the audit.
    pub(super) fn bound(&self) -> impl Iterator<Item = (SlotId, NodeId, bool)> {
        self.slots.iter().enumerate().filter_map(|(i, s)| {
            s.node.map(|n| (SlotId(i as u32), n, matches!(s.state, State::Ready { .. })))
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) free: u32,
    pub(super) private: u32,
    pub(super) filling: u32,
    pub(super) given_up: u32,
    pub(super) ready: u32,
    pub(super) pins: u32,
}
