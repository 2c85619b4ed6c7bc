//! The arena as a device sees it: one region to register, and the bytes of each slot in it.

use std::ptr::NonNull;

use kv_core::ids::SlotId;
use kv_cuda::{HostMemory, HostSpan};

use super::{Arena, PAGE};

impl Arena {
    /// The payload of a slot, for copies; `None` if there is no such slot.
    #[must_use]
    pub fn payload_range(&self, slot: SlotId) -> Option<HostSpan> {
        // The copy may write it.
        self.forget_checksum(slot);
        (slot.0 < self.slots()).then(|| HostSpan {
            offset: slot.0 as usize * self.slot_bytes() + PAGE,
            len: self.payload_bytes(),
        })
    }
}

// SAFETY: the mapping is made once, never moved or resized, and readable and writable until the arena is
// dropped. Safe code gets no reference into payloads: `payload` and `payload_mut` are unsafe and their
// callers answer for it that no copy is outstanding. Claims are private to this crate and are held for NVMe
// jobs, which the planner never gives out for a slot that a copy writes.
unsafe impl HostMemory for Arena {
    fn base(&self) -> NonNull<u8> {
        // A mapping is never at address 0; were it so, registration would fail and no byte be touched.
        NonNull::new(self.span().start).unwrap_or(NonNull::dangling())
    }
    fn size(&self) -> usize {
        if self.span().start.is_null() { 0 } else { self.span().len }
    }
    fn granule(&self) -> usize {
        self.slot_bytes()
    }
}
