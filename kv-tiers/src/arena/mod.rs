//! The pinned host arena: equal slots of locked memory that devices and the NVMe log read and write in place.
//!
//! ```text
//!   slot = | header page, 4096 B | payload, rounded up to 4096 B |     = the image of a record on disk
//! ```
//!
//! So one `O_DIRECT` transfer moves a whole record, and no byte is copied between the disk and the GPU.
//!
//! Who may touch a slot is decided by the planner, which hands out each slot to one owner at a time. The
//! arena adds one guard of its own: an NVMe job *claims* its slot, so two jobs on one slot are refused even
//! if the planner were wrong, and everything outside this module stays safe code.

mod device_view;
mod mapping;
mod numa;
mod stream;
mod sum;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kv_core::ids::SlotId;
use kv_core::payload_checksum;
use serde::Serialize;

use mapping::Mapping;
pub use numa::Placement;
pub use stream::{copy_block, copy_block_summed};
use sum::Sum;

/// Size and alignment of a header page: the largest logical block of common disks, so that `O_DIRECT` accepts it.
pub const PAGE: usize = 4096;

/// Largest slot. The kernel refuses to register an I/O buffer above 1 GiB, and a slot must lie in one.
pub const MAX_SLOT: usize = 1 << 30;

/// Bytes of a slot, and of a record on disk, for payloads of that size: a header page and the payload rounded up
/// to whole pages. `None` if the address space has no room for it.
#[must_use]
pub fn slot_bytes(payload_bytes: usize) -> Option<usize> {
    payload_bytes.checked_next_multiple_of(PAGE)?.checked_add(PAGE)
}

/// What an arena should look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaConfig {
    /// Number of slots.
    pub slots: u32,
    /// Bytes of one block's KV.
    pub payload_bytes: usize,
    /// Where the memory should lie on a machine with several NUMA nodes.
    pub placement: Placement,
}

impl ArenaConfig {
    /// `slots` slots of `payload_bytes` each, interleaved over the NUMA nodes.
    #[must_use]
    pub const fn new(slots: u32, payload_bytes: usize) -> Self {
        Self { slots, payload_bytes, placement: Placement::Interleave }
    }
}

/// Size of the pages behind the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Pages {
    /// Reserved huge pages (`/proc/sys/vm/nr_hugepages`): never swapped, fewest TLB misses.
    Huge2M,
    /// The kernel was asked for transparent huge pages and gives them as it can.
    Transparent,
    /// 4 KiB pages.
    Small,
}

/// What the arena got from the operating system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ArenaReport {
    /// Bytes of address space, headers and rounding included.
    pub bytes: usize,
    /// Page size.
    pub pages: Pages,
    /// Whether the memory is certain to stay in RAM.
    pub locked: bool,
    /// Online NUMA nodes.
    pub numa_nodes: usize,
    /// What fell short, and what to do about it.
    pub warnings: Vec<String>,
}

/// Why an arena could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// No slots or no payload.
    #[error("an arena needs at least one slot and one payload byte")]
    Empty,
    /// A slot does not fit a registered I/O buffer.
    #[error("a slot of {bytes} bytes exceeds the 1 GiB that the kernel accepts; use fewer tokens per block")]
    SlotTooLarge {
        /// Bytes of one slot.
        bytes: usize,
    },
    /// The address space cannot hold that much.
    #[error("{slots} slots of {slot_bytes} bytes exceed the address space")]
    TooManySlots {
        /// Slots asked for.
        slots: u32,
        /// Bytes of one slot.
        slot_bytes: usize,
    },
    /// The operating system has not that much memory for us.
    #[error("cannot map {bytes} bytes: {source}; configure fewer slots or raise the memory limit")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// A piece of the arena, for devices and system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First byte.
    pub(crate) start: *mut u8,
    /// Number of bytes.
    pub(crate) len: usize,
}

impl Span {
    pub(crate) fn iovec(self) -> libc::iovec {
        libc::iovec { iov_base: self.start.cast(), iov_len: self.len }
    }
}

/// Locked host memory cut into equal slots. Shared: whoever has I/O in flight holds an [`Arc`].
#[derive(Debug)]
pub struct Arena {
    memory: Mapping,
    /// One flag per slot: an NVMe job is using it.
    claimed: Box<[AtomicBool]>,
    /// One per slot: the checksum of its payload, if it is known.
    sums: Box<[Sum]>,
    payload_bytes: usize,
    slot_bytes: usize,
    report: ArenaReport,
}

impl Arena {
    /// Maps, places, touches and locks the memory. Touching runs at 1–4 GB/s, so a large arena takes seconds.
    ///
    /// # Errors
    /// Impossible sizes, or not enough memory. Missing huge pages and a refused lock are warnings in the
    /// [`ArenaReport`], not errors.
    ///
    /// ```
    /// use kv_tiers::arena::{Arena, ArenaConfig};
    /// let arena = Arena::new(ArenaConfig::new(4, 10_000))?;
    /// assert_eq!(arena.slot_bytes(), 4096 + 12_288);
    /// # Ok::<(), kv_tiers::arena::ArenaError>(())
    /// ```
    pub fn new(config: ArenaConfig) -> Result<Arc<Self>, ArenaError> {
        let ArenaConfig { slots, payload_bytes, placement } = config;
        if slots == 0 || payload_bytes == 0 {
            return Err(ArenaError::Empty);
        }
        let slot_bytes = match slot_bytes(payload_bytes) {
            Some(bytes) if bytes <= MAX_SLOT => bytes,
            other => return Err(ArenaError::SlotTooLarge { bytes: other.unwrap_or(usize::MAX) }),
        };
        let total = (slots as usize)
            .checked_mul(slot_bytes)
            .and_then(|b| b.checked_next_multiple_of(mapping::HUGE_PAGE))
            .ok_or(ArenaError::TooManySlots { slots, slot_bytes })?;
        let (memory, report) =
            Mapping::new(total, placement).map_err(|source| ArenaError::Memory { bytes: total, source })?;
        for warning in &report.warnings {
            tracing::warn!("{warning}");
        }
        let claimed = (0..slots).map(|_| AtomicBool::new(false)).collect();
        let sums = (0..slots).map(|_| Sum::default()).collect();
        Ok(Arc::new(Self { memory, claimed, sums, payload_bytes, slot_bytes, report }))
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.claimed.len() as u32
    }

    /// Bytes of one payload.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Bytes of one slot: header page and padded payload. Also the stride of records on disk.
    #[must_use]
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// What the operating system gave.
    #[must_use]
    pub fn report(&self) -> &ArenaReport {
        &self.report
    }

    /// The whole arena, to be registered with a device.
    #[must_use]
    pub(crate) fn span(&self) -> Span {
        Span { start: self.memory.base(), len: self.memory.len() }
    }

    /// A payload, to read.
    ///
    /// # Safety
    /// `slot` is below [`Arena::slots`], and for the life of the slice nothing writes the payload: no `Read`
    /// job and no device copy into the slot is in flight, and no [`Arena::payload_mut`] slice of it exists.
    /// The planner promises this to whoever holds a pin of the block in the slot.
    #[must_use]
    pub unsafe fn payload(&self, slot: SlotId) -> &[u8] {
        // SAFETY: the slot exists (caller), so these bytes are mapped and initialised; nobody writes them (caller).
        unsafe { std::slice::from_raw_parts(self.start_of(slot).add(PAGE), self.payload_bytes) }
    }

    /// A payload, to fill.
    ///
    /// # Safety
    /// `slot` is below [`Arena::slots`], and for the life of the slice the caller is the only one who reads or
    /// writes the payload: no job of any kind and no device copy for the slot is in flight. The planner
    /// promises this to whoever was given the slot to fill.
    #[must_use]
    #[allow(clippy::mut_from_ref)] // the slots are disjoint and the caller owns this one
    pub unsafe fn payload_mut(&self, slot: SlotId) -> &mut [u8] {
        self.forget_checksum(slot);
        // SAFETY: the slot exists (caller), so these bytes are mapped and initialised; nobody else uses them (caller).
        unsafe { std::slice::from_raw_parts_mut(self.start_of(slot).add(PAGE), self.payload_bytes) }
    }

    /// Notes the [`payload_checksum`](kv_core::payload_checksum) of a payload, so that writing it to NVMe need not read it
    /// for that. Good until the payload is written again. A wrong one makes the block a miss once it is read back.
    pub(crate) fn note_checksum(&self, slot: SlotId, checksum: u64) {
        if let Some(sum) = self.sums.get(slot.0 as usize) {
            sum.note(checksum);
        }
    }

    /// Whoever writes a payload does this first.
    fn forget_checksum(&self, slot: SlotId) {
        if let Some(sum) = self.sums.get(slot.0 as usize) {
            sum.forget();
        }
    }

    /// Reserves a slot for one NVMe job; `None` if there is no such slot or another job has it.
    pub(crate) fn claim(self: &Arc<Self>, slot: SlotId) -> Option<Claim> {
        let flag = self.claimed.get(slot.0 as usize)?;
        let free = flag.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        free.then(|| Claim { arena: Arc::clone(self), slot })
    }

    /// Pieces of at most 1 GiB, each a whole number of slots, for buffer registration.
    pub(crate) fn chunks(&self) -> Vec<Span> {
        self.chunks_of(MAX_SLOT / self.slot_bytes)
    }

    fn chunks_of(&self, per_chunk: usize) -> Vec<Span> {
        let slots = self.claimed.len();
        (0..slots)
            .step_by(per_chunk)
            .map(|first| Span {
                start: self.start_of(SlotId(first as u32)),
                len: per_chunk.min(slots - first) * self.slot_bytes,
            })
            .collect()
    }

    /// Which of the [`Arena::chunks`] holds a slot.
    pub(crate) fn chunk_of(&self, slot: SlotId) -> usize {
        slot.0 as usize / (MAX_SLOT / self.slot_bytes)
    }

    /// First byte of a slot. Wrapping, so that an impossible slot gives a useless pointer and not undefined behaviour.
    fn start_of(&self, slot: SlotId) -> *mut u8 {
        self.memory.base().wrapping_add(slot.0 as usize * self.slot_bytes)
    }
}

/// A slot that one NVMe job is using. Dropping it gives the slot back.
///
/// Only one claim of a slot exists at a time, and the contracts of [`Arena::payload`] and
/// [`Arena::payload_mut`] exclude jobs in flight, so the methods here are safe. A `Write` job uses only
/// [`Claim::header_mut`] and [`Claim::image`]; pinned readers of the payload are not disturbed.
#[derive(Debug)]
pub(crate) struct Claim {
    arena: Arc<Arena>,
    slot: SlotId,
}

impl Claim {
    /// The header page. No reader of a payload ever looks at it.
    pub(crate) fn header_mut(&mut self) -> &mut [u8] {
        // SAFETY: the claim proves that the slot exists, and only its one claim reaches the header page.
        unsafe { std::slice::from_raw_parts_mut(self.arena.start_of(self.slot), PAGE) }
    }

    /// Header and padded payload, as they are on disk.
    pub(crate) fn image(&self) -> &[u8] {
        // SAFETY: the slot exists; its header is ours, and its payload is not written while a job is in flight
        // (contract of `payload_mut`), except by that job's own transfer, which `&self` excludes.
        unsafe { std::slice::from_raw_parts(self.arena.start_of(self.slot), self.arena.slot_bytes) }
    }

    /// The checksum of the payload, made if nobody has noted it.
    pub(crate) fn checksum(&self) -> u64 {
        let noted = self.arena.sums.get(self.slot.0 as usize).and_then(Sum::noted);
        noted.unwrap_or_else(|| payload_checksum(self.payload()))
    }

    /// A `Read` job is going to fill the slot.
    pub(crate) fn begin_read(&self) {
        self.arena.forget_checksum(self.slot);
    }

    /// The same, for a `Read` job to fill.
    pub(crate) fn image_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `image`; a slot that is being read into has no readers (contract of `payload`).
        unsafe { std::slice::from_raw_parts_mut(self.arena.start_of(self.slot), self.arena.slot_bytes) }
    }

    /// The payload.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.image()[PAGE..PAGE + self.arena.payload_bytes]
    }

    /// The whole image as a buffer for the kernel, and the registered chunk that it lies in.
    pub(crate) fn raw(&self) -> (Span, usize) {
        let span = Span { start: self.arena.start_of(self.slot), len: self.arena.slot_bytes };
        (span, self.arena.chunk_of(self.slot))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(flag) = self.arena.claimed.get(self.slot.0 as usize) {
            flag.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_disjoint_aligned_and_zeroed() {
        let arena = Arena::new(ArenaConfig::new(5, 5000)).unwrap();
        assert_eq!(arena.slot_bytes(), PAGE + 8192);
        for slot in 0..5 {
            // SAFETY: nobody else knows this arena.
            let payload = unsafe { arena.payload_mut(SlotId(slot)) };
            assert_eq!(payload.as_ptr() as usize % PAGE, 0);
            assert!(payload.iter().all(|&b| b == 0));
            payload.fill(slot as u8 + 1);
        }
        for slot in 0..5 {
            let mut claim = arena.claim(SlotId(slot)).unwrap();
            assert!(claim.header_mut().iter().all(|&b| b == 0));
            assert!(claim.payload().iter().all(|&b| b == slot as u8 + 1));
            assert!(claim.image()[PAGE + 5000..].iter().all(|&b| b == 0));
        }
        assert_eq!(arena.payload_range(SlotId(5)), None);
        assert_eq!(arena.payload_range(SlotId(u32::MAX)), None);
    }

    #[test]
    fn a_slot_has_one_claim_at_a_time() {
        let arena = Arena::new(ArenaConfig::new(2, 1)).unwrap();
        let first = arena.claim(SlotId(0)).unwrap();
        assert!(arena.claim(SlotId(0)).is_none());
        assert!(arena.claim(SlotId(1)).is_some());
        assert!(arena.claim(SlotId(2)).is_none());
        drop(first);
        assert!(arena.claim(SlotId(0)).is_some());
    }

    #[test]
    fn a_checksum_is_noted_until_the_payload_may_have_changed() {
        let arena = Arena::new(ArenaConfig::new(2, 5000)).unwrap();
        let slot = SlotId(1);
        // SAFETY: nobody else knows this arena.
        unsafe { arena.payload_mut(slot) }.fill(7);
        let made = payload_checksum(&[7; 5000]);
        let sum = || arena.claim(slot).unwrap().checksum();
        assert_eq!(sum(), made);
        arena.note_checksum(slot, 99);
        assert_eq!(sum(), 99, "not made again");
        assert_eq!(arena.claim(SlotId(0)).unwrap().checksum(), payload_checksum(&[0; 5000]));
        // SAFETY: as above.
        let fill = || assert!(unsafe { arena.payload_mut(slot) }.iter().all(|&b| b == 7));
        let copy = || assert!(arena.payload_range(slot).is_some());
        let read = || arena.claim(slot).unwrap().begin_read();
        for change in [&fill as &dyn Fn(), &copy, &read] {
            arena.note_checksum(slot, 99);
            change();
            assert_eq!(sum(), made);
        }
        arena.note_checksum(SlotId(2), 1);
    }

    #[test]
    fn chunks_cover_every_slot_once_and_none_is_split() {
        let arena = Arena::new(ArenaConfig::new(100, 4096)).unwrap();
        let whole = Span { start: arena.span().start, len: 100 * 8192 };
        assert_eq!(arena.chunks(), [whole]);
        assert_eq!(arena.chunk_of(SlotId(99)), 0);
        let chunks = arena.chunks_of(3);
        assert_eq!(chunks.len(), 34);
        let mut next = whole.start;
        for chunk in &chunks {
            assert_eq!((chunk.start, chunk.len % 8192), (next, 0));
            next = chunk.start.wrapping_add(chunk.len);
        }
        assert_eq!(next, whole.start.wrapping_add(whole.len));
    }

    #[test]
    fn impossible_sizes_are_typed_errors() {
        let err = |slots, bytes| Arena::new(ArenaConfig::new(slots, bytes)).unwrap_err();
        assert!(matches!(err(0, 4096), ArenaError::Empty));
        assert!(matches!(err(1, 0), ArenaError::Empty));
        assert!(matches!(err(1, MAX_SLOT), ArenaError::SlotTooLarge { .. }));
        assert!(matches!(err(1, usize::MAX), ArenaError::SlotTooLarge { .. }));
        assert!(matches!(err(u32::MAX, MAX_SLOT - PAGE), ArenaError::Memory { .. }));
    }

    #[test]
    fn an_unlocked_arena_says_what_to_do() {
        let arena = Arena::new(ArenaConfig::new(8, 1 << 20)).unwrap();
        let report = arena.report();
        assert!(report.numa_nodes >= 1);
        assert!(report.locked || report.warnings.iter().any(|w| w.contains("ulimit -l")));
    }
}
