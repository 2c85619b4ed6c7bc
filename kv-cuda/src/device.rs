//! What a device does for the engine.

use std::sync::Arc;
use std::time::Duration;

use kv_core::ids::{JobId, SlotId};
use kv_core::job::Urgency;
use kv_core::layout::Placement;

use crate::driver::CudaError;
use crate::layers::LayerProgress;
use crate::memory::{HostMemory, HostSpan};

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

/// What a block of a device holds, as read back by the device itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockDigest {
    /// [`payload_checksum`](kv_core::payload_checksum) of the block's page-first bytes.
    pub checksum: u64,
    /// Number of bytes that are not zero: 0 proves that a block was erased.
    pub nonzero: u64,
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
    /// A layered copy to the host: only loads arrive by layers.
    #[error("only copies to the device are made layer by layer")]
    NotALoad,
    /// The GPU is lost to this process; nothing but a new process brings it back.
    #[error("the GPU is lost: {0}; restart the process")]
    Lost(CudaError),
    /// The CUDA driver refused.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The GPU did not finish in time. What it may still touch stays allocated.
    #[error("the GPU did not finish in {0:?}")]
    Hung(Duration),
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
    /// Not as many buffers as the placement has.
    #[error("{found} buffers were given, the placement has {expected}")]
    WrongBuffers {
        /// As given.
        found: usize,
        /// As the placement says.
        expected: u32,
    },
    /// The operating system gave no thread.
    #[error("cannot start the device's thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// What every device checks before it takes a call.
pub(crate) struct Checks<'a> {
    pub(crate) placement: &'a Placement,
    pub(crate) host: &'a (dyn HostMemory + 'static),
}

impl Checks<'_> {
    pub(crate) fn length(&self, len: usize) -> Result<(), DeviceError> {
        let block_bytes = self.placement.layout().bytes_per_block();
        if len == block_bytes { Ok(()) } else { Err(DeviceError::WrongLength { len, block_bytes }) }
    }

    pub(crate) fn block(&self, block: SlotId) -> Result<(), DeviceError> {
        let num_blocks = self.placement.num_blocks();
        if block.0 < num_blocks {
            Ok(())
        } else {
            Err(DeviceError::NoSuchBlock { block: block.0, num_blocks })
        }
    }

    pub(crate) fn copies(&self, copies: &[BlockCopy]) -> Result<(), DeviceError> {
        copies.iter().try_for_each(|copy| {
            self.length(copy.host.len)?;
            self.block(copy.device_block)?;
            match self.host.slice(copy.host) {
                Some(_) => Ok(()),
                None => Err(DeviceError::NotRegistered { span: copy.host, size: self.host.size() }),
            }
        })
    }

    /// Layered copies all go to the device.
    pub(crate) fn loads(&self, copies: &[BlockCopy]) -> Result<(), DeviceError> {
        self.copies(copies)?;
        let stores = copies.iter().any(|copy| copy.direction == Direction::ToHost);
        if stores { Err(DeviceError::NotALoad) } else { Ok(()) }
    }
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

    /// Starts copies to the device that arrive layer by layer over all blocks, so that a forward pass can
    /// start before the last layer is there. Each copy is completed as with [`Device::submit`].
    ///
    /// # Safety
    /// As for [`Device::submit`].
    ///
    /// # Errors
    /// As for [`Device::submit`], and [`DeviceError::NotALoad`] for a copy to the host.
    unsafe fn submit_by_layer(
        &self,
        copies: &[BlockCopy],
        urgency: Urgency,
    ) -> Result<Arc<LayerProgress>, DeviceError>;

    /// Overwrites blocks with zeros and waits for it. The caller has drained the copies that name them.
    ///
    /// # Errors
    /// No such block, a closed device, or a GPU that is lost.
    fn zero(&self, blocks: &[SlotId]) -> Result<(), DeviceError>;

    /// Reads blocks where they are and says what they hold, in the same order: evidence for a purge.
    ///
    /// # Errors
    /// As for [`Device::zero`].
    fn digest(&self, blocks: &[SlotId]) -> Result<Vec<BlockDigest>, DeviceError>;

    /// Writes a device block from its page-first bytes and waits for it. For tests and demonstrations that
    /// play the runtime.
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
