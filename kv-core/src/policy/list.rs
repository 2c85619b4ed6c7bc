//! Doubly linked lists threaded through arrays that are indexed by slot: no allocation after construction.

use crate::ids::SlotId;

const NIL: u32 = u32::MAX;

/// The links of every slot. A slot is in at most one list at a time; its owner knows which.
pub(super) struct Links {
    prev: Vec<u32>,
    next: Vec<u32>,
}

impl Links {
    pub(super) fn new(capacity: usize) -> Self {
        Self { prev: vec![NIL; capacity], next: vec![NIL; capacity] }
    }
}

/// One list, coldest slot in front.
#[derive(Clone, Copy)]
pub(super) struct List {
    front: u32,
    back: u32,
    len: usize,
}

impl List {
    pub(super) const EMPTY: Self = Self { front: NIL, back: NIL, len: 0 };

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn front(&self) -> Option<SlotId> {
        (self.front != NIL).then_some(SlotId(self.front))
    }

    /// `slot` must be in no list.
    pub(super) fn push_back(&mut self, links: &mut Links, slot: SlotId) {
        links.prev[slot.0 as usize] = self.back;
        links.next[slot.0 as usize] = NIL;
        match self.back {
            NIL => self.front = slot.0,
            back => links.next[back as usize] = slot.0,
        }
        self.back = slot.0;
        self.len += 1;
    }

    /// `slot` must be in this list.
    pub(super) fn unlink(&mut self, links: &mut Links, slot: SlotId) {
        let (prev, next) = (links.prev[slot.0 as usize], links.next[slot.0 as usize]);
        match prev {
            NIL => self.front = next,
            prev => links.next[prev as usize] = next,
        }
        match next {
            NIL => self.back = prev,
            next => links.prev[next as usize] = prev,
        }
        self.len -= 1;
    }

    /// The slot behind `slot`, which must be in a list.
    pub(super) fn after(links: &Links, slot: SlotId) -> Option<SlotId> {
        let next = links.next[slot.0 as usize];
        (next != NIL).then_some(SlotId(next))
    }

    /// Slots from the front.
    pub(super) fn iter<'a>(&self, links: &'a Links) -> impl Iterator<Item = SlotId> + use<'a> {
        let mut at = self.front;
        std::iter::from_fn(move || {
            let slot = (at != NIL).then_some(SlotId(at))?;
            at = links.next[at as usize];
            Some(slot)
        })
    }
}
