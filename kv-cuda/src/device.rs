//! What a device does for the engine.

use kv_core::ids::{JobId, SlotId};
use kv_core::job::Urgency;
use kv_core::layout::Placement;

use crate::memory::HostSpan;

/// Which way a block is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the device block to host memory.
    ToHost,
    /// From host memory to the device block.
    ToDevice,
}

/// One block to copy. Plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Returned with the completion.
    pub job: JobId,
    /// Which way.
    pub direction: Direction,
    /// Block of the device's pool.
    pub device_block: SlotId,
    /// The block in page-first order; exactly one block long.
    pub host: HostSpan,
}

/// Why a device did not take a call. Nothing was started, nothing will be completed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The pool has no such block.
    #[error("device block {block} is not in the pool of {num_blocks} blocks")]
    NoSuchBlock {
        /// The block asked for.
        block: u32,
        /// Blocks in the pool.
        num_blocks: u32,
    },
    /// Not exactly one block.
    #[error("{len} bytes on the host side, but a block has {block_bytes}")]
    WrongLength {
        /// Bytes named.
        len: usize,
        /// Bytes of a block in this device's layout.
        block_bytes: usize,
    },
    /// Memory that was not registered with this device.
    #[error("host bytes {}..{} are outside the registered region of {size} bytes", .span.offset, .span.offset.saturating_add(.span.len))]
    NotRegistered {
        /// The bytes named.
        span: HostSpan,
        /// Bytes registered.
        size: usize,
    },
    /// The device was closed.
    #[error("the device is closed")]
    Closed,
    /// The machine has not enough memory for the pool.
    #[error("no memory for {buffers} buffers of {bytes} bytes; use fewer blocks")]
    OutOfMemory {
        /// Buffers of the pool.
        buffers: u32,
        /// Bytes of each.
        bytes: usize,
    },
    /// The operating system gave no thread.
    #[error("cannot start the device's thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// A pool of KV blocks on a device, and the engine that copies them.
///
/// One value per KV group of a GPU. The host memory and the [sink](kv_core::job::CompletionSink) are given when it is made.
/// Copies complete in any order. Dropping a device closes it.
pub trait Device: Send + Sync {
    /// The pool: its layout and where each block lies.
    fn placement(&self) -> &Placement;

    /// Starts copies and returns at once; each is completed exactly once through the [sink](kv_core::job::CompletionSink), perhaps
    /// before this returns. Copies that are [`Urgency::Demand`] overtake waiting write-backs.
    ///
    /// A copy to the host sees what work queued by the runtime before this call leaves in the block. What
    /// two outstanding copies to the same device block leave in it is not defined.
    ///
    /// # Safety
    /// From this call to a copy's completion nobody but that copy writes the bytes of its `host` span, and
    /// if it copies to the host nobody else reads them. Other outstanding copies are somebody else, on
    /// this device and on any other. The planner warrants it: a host slot is the destination of at most
    /// one job, and no job reads a slot before its bytes are [`Verified`](kv_core::Verified).
    ///
    /// # Errors
    /// If any copy cannot be, none is started: no such block, not one block long, memory that is not
    /// registered, or a closed device.
    unsafe fn submit(&self, copies: &[BlockCopy], urgency: Urgency) -> Result<(), DeviceError>;

    /// Writes a device block from its page-first bytes and waits for it. For tests, demonstrations that
    /// play the runtime, and for erasing a block.
    ///
    /// # Errors
    /// No such block, not one block long, or a closed device.
    fn upload(&self, block: SlotId, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Reads a device block in page-first order and waits for it.
    ///
    /// # Errors
    /// As for [`Device::upload`].
    fn download(&self, block: SlotId, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Takes no more copies, completes those that were not begun with [`Down`](kv_core::job::TransferError::Down), and returns
    /// when the last one is completed: from then on the device does not touch the host memory. Called by a
    /// [sink](kv_core::job::CompletionSink) it returns before that. May be called again.
    fn close(&self);
}
