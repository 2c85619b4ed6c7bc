//! One way and one urgency: its streams, and the slots of the pieces that are under way.
//!
//! ```text
//! engine    link:  copy, done
//! kernel    side:  launch, done
//! staged    link:  copy to staging, mid        side:  wait mid, scatter, done      host to device
//!           side:  gather to staging, mid      link:  wait mid, copy, done         device to host
//! ```
//!
//! A slot is a piece's share of staging, its descriptors and its events. It is free again when its `done`
//! has been seen, so nothing of a piece is reused while the GPU may look at it.

use std::ops::Range;

use kv_core::job::Urgency;
use kv_core::layout::Nest;

use super::CudaError;
use super::launch::{Kernels, Side, Walk};
use super::method::Method;
use super::piece::{Limit, Piece};
use super::pool::Pool;
use crate::device::{BlockCopy, Direction};
use crate::driver::{
    CopyList, Current, DeviceBuffer, DevicePtr, Event, PinnedBuffer, Registration, Stream, StreamPriority,
    Submission,
};
use crate::kernels::args::kv_block;
use crate::memory::{HostMemory, HostSpan};

/// Pieces under way at once: one on the link, one behind it so that the link does not idle, one in each
/// half of staging.
const SLOTS: usize = 4;
/// Bytes of a demand piece.
pub(super) const DEMAND_PIECE: usize = 4 << 20;
/// Bytes of a write-back piece: those under way together are what a demand copy may have to wait for.
pub(super) const WRITE_BACK_PIECE: usize = DEMAND_PIECE / SLOTS;
/// Copies that the CPU hands over in one go: half a millisecond at half a microsecond each.
const MAX_RUNS: usize = 1024;
/// Blocks of one launch.
const MAX_BLOCKS: usize = 4096;

/// What every lane of a device works with.
pub(super) struct Ground<'a> {
    pub(super) pool: &'a Pool,
    /// The pool's walk from page-first bytes, the other way round than [`Pool::gather`].
    pub(super) scatter: &'a Nest,
    pub(super) host: &'a dyn HostMemory,
    pub(super) registration: &'a Registration,
    pub(super) kernels: &'a Kernels,
    pub(super) submission: Submission,
}

/// One way and one urgency.
pub(super) struct Lane {
    pub(super) direction: Direction,
    pub(super) urgency: Urgency,
    link: Stream,
    side: Stream,
    slots: Vec<Slot>,
    staging: DeviceBuffer,
    descriptors: PinnedBuffer,
    /// Scratch of one submission.
    copies: CopyList,
}

struct Slot {
    busy: bool,
    mid: Event,
}

/// A slot in use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SlotIndex(usize);

impl Lane {
    pub(super) fn new(current: &Current, direction: Direction, urgency: Urgency) -> Result<Self, CudaError> {
        let priority = match urgency {
            Urgency::Demand => StreamPriority::High,
            Urgency::WriteBack => StreamPriority::Low,
        };
        let slots = (0..SLOTS).map(|_| Ok(Slot { busy: false, mid: Event::new(current)? }));
        Ok(Self {
            direction,
            urgency,
            link: Stream::new(current, priority)?,
            side: Stream::new(current, priority)?,
            slots: slots.collect::<Result<_, CudaError>>()?,
            staging: DeviceBuffer::new(current, SLOTS * piece_bytes(urgency))?,
            descriptors: PinnedBuffer::new(current, SLOTS * MAX_BLOCKS * size_of::<kv_block>())?,
            copies: CopyList::default(),
        })
    }

    /// How large this lane's pieces are, copied in that way.
    pub(super) fn limit(&self, method: Method) -> Limit {
        let bytes = piece_bytes(self.urgency);
        match method {
            Method::EngineLoop | Method::EngineBatch => Limit { bytes, runs: MAX_RUNS, blocks: usize::MAX },
            Method::Staged { .. } => Limit { bytes, runs: usize::MAX, blocks: MAX_RUNS },
            Method::Kernel { .. } | Method::Bulk { .. } => {
                Limit { bytes: super::method::KERNEL_PIECES * bytes, runs: usize::MAX, blocks: MAX_BLOCKS }
            }
        }
    }

    /// A slot for a piece, if one is free.
    pub(super) fn take_slot(&mut self) -> Option<SlotIndex> {
        let free = self.slots.iter().position(|slot| !slot.busy)?;
        self.slots[free].busy = true;
        Some(SlotIndex(free))
    }

    /// The piece is over: the GPU uses the slot no more.
    pub(super) fn free_slot(&mut self, slot: SlotIndex) {
        self.slots[slot.0].busy = false;
    }

    /// All that is queued from now on starts after `event`.
    pub(super) fn wait(&self, event: &Event) -> Result<(), CudaError> {
        self.link.wait(event)?;
        self.side.wait(event)
    }

    /// Marks the beginning of a transfer in the stream that its first piece goes to.
    pub(super) fn mark_start(&self, method: Method, event: &Event) -> Result<(), CudaError> {
        event.record(self.first_stream(method))
    }

    /// Marks the end of everything that is queued for the piece.
    pub(super) fn mark_done(&self, method: Method, event: &Event) -> Result<(), CudaError> {
        event.record(self.last_stream(method))
    }

    /// After a failed submission: lets the stream of the piece's end wait for its other stream, where
    /// half of the piece may be queued.
    pub(super) fn join(&self, method: Method, slot: &SlotIndex) -> Result<(), CudaError> {
        let mid = &self.slots[slot.0].mid;
        mid.record(self.first_stream(method))?;
        self.last_stream(method).wait(mid)
    }

    fn first_stream(&self, method: Method) -> &Stream {
        match (method, self.direction) {
            (Method::EngineLoop | Method::EngineBatch, _) | (Method::Staged { .. }, Direction::ToDevice) => {
                &self.link
            }
            _ => &self.side,
        }
    }

    fn last_stream(&self, method: Method) -> &Stream {
        match (method, self.direction) {
            (Method::EngineLoop | Method::EngineBatch, _) | (Method::Staged { .. }, Direction::ToHost) => {
                &self.link
            }
            _ => &self.side,
        }
    }

    /// Queues a piece. After an error some of its copies may be queued all the same.
    ///
    /// # Safety
    /// The copies' host spans and device blocks are used as [`Device::submit`](crate::Device::submit) asks
    /// until the event that is recorded after this has come to pass; the slot was taken and is freed after
    /// that event.
    pub(super) unsafe fn submit(
        &mut self,
        current: &Current,
        ground: &Ground<'_>,
        copies: &[BlockCopy],
        piece: &Piece,
        method: Method,
        slot: &SlotIndex,
    ) -> Result<(), CudaError> {
        let blocks = &copies[piece.blocks.clone()];
        match method {
            Method::EngineLoop | Method::EngineBatch => {
                self.list_runs(ground, blocks, &piece.bytes);
                let how = if method == Method::EngineLoop { Submission::Loop } else { Submission::Batch };
                // SAFETY: runs of checked blocks and spans, in memory that the caller keeps.
                unsafe { self.link.copy(current, self.direction, &mut self.copies, how) }
            }
            Method::Kernel { ctas } | Method::Bulk { ctas } => {
                let host = |at: usize| ground.registration.device_address(blocks[at].host);
                let bulk = matches!(method, Method::Bulk { .. });
                // SAFETY: as above; the descriptors are the slot's.
                unsafe {
                    self.launch(current, ground, blocks, piece, host, Launch { ctas, bulk, slot: slot.0 })
                }
            }
            Method::Staged { ctas } => {
                let each = piece.bytes.len();
                let staging = self.staging.at().offset(slot.0 * piece_bytes(self.urgency));
                // As if the whole block were there: the walk begins at the piece's first byte.
                let staged = |at: usize| Some(staging.offset((at * each).wrapping_sub(piece.bytes.start)));
                let launch = Launch { ctas, bulk: false, slot: slot.0 };
                self.list_staged(ground, blocks, &piece.bytes, staging);
                // SAFETY: as above; staging is the slot's, too, and the events order its two users.
                unsafe {
                    match self.direction {
                        Direction::ToDevice => {
                            self.link.copy(current, self.direction, &mut self.copies, ground.submission)?;
                            self.slots[slot.0].mid.record(&self.link)?;
                            self.side.wait(&self.slots[slot.0].mid)?;
                            self.launch(current, ground, blocks, piece, staged, launch)
                        }
                        Direction::ToHost => {
                            self.launch(current, ground, blocks, piece, staged, launch)?;
                            self.slots[slot.0].mid.record(&self.side)?;
                            self.link.wait(&self.slots[slot.0].mid)?;
                            self.link.copy(current, self.direction, &mut self.copies, ground.submission)
                        }
                    }
                }
            }
        }
    }

    /// Lists the runs between the pool and host memory.
    fn list_runs(&mut self, ground: &Ground<'_>, blocks: &[BlockCopy], bytes: &Range<usize>) {
        self.copies.clear();
        let pool = ground.pool;
        let run = pool.placement().fragment_bytes();
        // Blocks of one run may be neighbours on both sides, in whatever order they were submitted.
        let mut order: Vec<&BlockCopy> = blocks.iter().collect();
        if pool.placement().fragments_per_block() == 1 {
            order.sort_by_key(|copy| copy.device_block);
        }
        for copy in order {
            let Some(fragments) = pool.placement().fragments(copy.device_block) else { continue };
            let first = bytes.start / run;
            for (at, fragment) in fragments.enumerate().skip(first) {
                // The part of this run that the piece copies.
                let (start, end) = ((at * run).max(bytes.start), ((at + 1) * run).min(bytes.end));
                if start >= end {
                    break;
                }
                let Some(buffer) = pool.buffer(fragment.buffer) else { continue };
                let device = buffer.offset(fragment.offset + start - at * run);
                push(&mut self.copies, ground, device, copy.host.offset + start, end - start);
            }
        }
    }

    /// Lists the blocks between staging and host memory.
    fn list_staged(
        &mut self,
        ground: &Ground<'_>,
        blocks: &[BlockCopy],
        bytes: &Range<usize>,
        staging: DevicePtr,
    ) {
        self.copies.clear();
        for (at, copy) in blocks.iter().enumerate() {
            let device = staging.offset(at * bytes.len());
            push(&mut self.copies, ground, device, copy.host.offset + bytes.start, bytes.len());
        }
    }

    /// Launches the walk between the pool and contiguous blocks, block `at` of which begins at
    /// `contiguous(at)`.
    ///
    /// # Safety
    /// As for [`Lane::submit`].
    unsafe fn launch(
        &self,
        current: &Current,
        ground: &Ground<'_>,
        blocks: &[BlockCopy],
        piece: &Piece,
        contiguous: impl Fn(usize) -> Option<DevicePtr>,
        launch: Launch,
    ) -> Result<(), CudaError> {
        let Launch { ctas, bulk, slot } = launch;
        let place = slot * MAX_BLOCKS * size_of::<kv_block>();
        let descriptors = self.descriptors.base().as_ptr().wrapping_add(place).cast::<kv_block>();
        let mut bits = ground.pool.alignment();
        for (at, copy) in blocks.iter().enumerate().take(MAX_BLOCKS) {
            let pool = ground.pool.placement().block_offset(copy.device_block).unwrap_or(0) as u64;
            // Checked before this method was chosen.
            let contiguous = contiguous(at).unwrap_or(DevicePtr(0)).0;
            bits |= contiguous as usize;
            let block = match self.direction {
                Direction::ToDevice => kv_block { src: contiguous, dst: pool },
                Direction::ToHost => kv_block { src: pool, dst: contiguous },
            };
            // SAFETY: inside this slot's part of the descriptors, which no launch reads now.
            unsafe { descriptors.add(at).write(block) };
        }
        let pool = Side::Pool { table: ground.pool.table() };
        let (nest, from, to) = match self.direction {
            Direction::ToDevice => (ground.scatter, Side::Contiguous, pool),
            Direction::ToHost => (ground.pool.gather(), pool, Side::Contiguous),
        };
        let run = nest.run_bytes();
        let walk = Walk {
            nest,
            from,
            to,
            runs: piece.bytes.start / run..piece.bytes.end / run,
            vector: 1 << bits.trailing_zeros().min(4),
            blocks: self.descriptors.device_at().offset(place),
            num_blocks: blocks.len(),
        };
        // SAFETY: the walk visits exactly the named runs of checked blocks; the caller keeps them.
        unsafe { ground.kernels.copy(current, &self.side, &walk, ctas, bulk) }
    }
}

/// How a walk is launched.
#[derive(Clone, Copy)]
struct Launch {
    ctas: u32,
    bulk: bool,
    slot: usize,
}

/// Bytes of a piece that a copy engine is handed.
pub(super) const fn piece_bytes(urgency: Urgency) -> usize {
    match urgency {
        Urgency::Demand => DEMAND_PIECE,
        Urgency::WriteBack => WRITE_BACK_PIECE,
    }
}

/// Adds a copy, cut where one registration of the host memory ends.
fn push(copies: &mut CopyList, ground: &Ground<'_>, device: DevicePtr, offset: usize, bytes: usize) {
    let base = ground.host.base().addr().get();
    let (mut done, mut apart) = (0, ground.registration.starts_at_border(offset));
    while done < bytes {
        let part = (bytes - done).min(ground.registration.bytes_to_border(offset + done));
        let host = (base + offset + done) as u64;
        if apart {
            copies.push_apart(device.offset(done), host, part);
        } else {
            copies.push(device.offset(done), host, part);
        }
        done += part;
        apart = true;
    }
}

/// Whether the GPU sees all of these spans as single pieces of memory, and the widest access in bytes that
/// suits their addresses: what a kernel needs to know of the host side.
pub(super) fn host_alignment(
    registration: &Registration,
    spans: impl Iterator<Item = HostSpan>,
) -> Option<usize> {
    let mut bits = 16;
    for span in spans {
        bits |= registration.device_address(span)?.0 as usize;
    }
    Some(1 << bits.trailing_zeros().min(4))
}
