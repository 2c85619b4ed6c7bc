//! The pool of blocks in device memory: where its bytes are, and how a block is walked.

use std::any::Any;
use std::sync::Arc;

use kv_core::ids::SlotId;
use kv_core::layout::{BlockView, Nest, Placement};

use super::CudaError;
use super::config::PoolMemory;
use super::error::OpenError;
use crate::driver::{Current, DeviceBuffer, DevicePtr, IpcBuffer, PinnedBuffer, Stream, is_device_memory};
use crate::memory::HostMemory;

/// A pool, its memory kept until drop.
pub(super) struct Pool {
    placement: Placement,
    /// Pool to page-first.
    gather: Nest,
    buffers: Vec<DevicePtr>,
    /// `buffers` in device memory, for kernels.
    table: DeviceBuffer,
    /// Ends in as many zero bits as every block of every buffer is aligned to.
    address_bits: u64,
    _memory: Memory,
}

/// What keeps the buffers allocated.
enum Memory {
    Owned { _buffers: Vec<DeviceBuffer> },
    Borrowed { _owner: Arc<dyn Any + Send + Sync> },
    Shared { _buffers: Vec<IpcBuffer> },
}

impl Pool {
    pub(super) fn new(
        current: &Current,
        stream: &Stream,
        placement: Placement,
        memory: PoolMemory,
    ) -> Result<Self, OpenError> {
        let layout = placement.layout();
        let gather = Nest::between(&BlockView::in_pool(&placement), &BlockView::page_first(layout))?;
        let (buffers, memory) = open(current, stream, &placement, memory)?;
        let table = upload_table(current, stream, &buffers)?;
        let mut address_bits = 0;
        for buffer in &buffers {
            address_bits |= buffer.0;
        }
        // Offset of block 1: the step from block to block.
        address_bits |= placement.block_offset(SlotId(1)).unwrap_or(0) as u64;
        Ok(Self { placement, gather, buffers, table, address_bits, _memory: memory })
    }

    pub(super) const fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The walk from a block of the pool to its page-first bytes.
    pub(super) const fn gather(&self) -> &Nest {
        &self.gather
    }

    /// First byte of a buffer.
    pub(super) fn buffer(&self, index: u32) -> Option<DevicePtr> {
        self.buffers.get(index as usize).copied()
    }

    /// The table of buffer addresses, in device memory.
    pub(super) const fn table(&self) -> DevicePtr {
        self.table.at()
    }

    /// Widest access in bytes that suits every block, at most 16.
    pub(super) fn alignment(&self) -> usize {
        let bits = self.address_bits | self.gather.alignment() as u64;
        1 << bits.trailing_zeros()
    }
}

fn open(
    current: &Current,
    stream: &Stream,
    placement: &Placement,
    memory: PoolMemory,
) -> Result<(Vec<DevicePtr>, Memory), OpenError> {
    let (count, bytes) = (placement.buffers(), placement.buffer_bytes());
    let expect = |found: usize| match found == count as usize {
        true => Ok(()),
        false => Err(OpenError::WrongBuffers { found, expected: count }),
    };
    match memory {
        PoolMemory::Allocate => {
            let owned = (0..count).map(|_| DeviceBuffer::new(current, bytes));
            let owned = owned.collect::<Result<Vec<_>, CudaError>>();
            let owned = owned.map_err(|error| OpenError::pool(error, count, bytes))?;
            // What was there before may be another tenant's.
            let zeroed = owned.iter().try_for_each(|buffer| stream.zero(current, buffer));
            // Before a buffer can be freed, even if not all could be zeroed.
            if let Err(error) = stream.synchronize() {
                // Nobody knows whether they are written still.
                std::mem::forget(owned);
                return Err(error.into());
            }
            zeroed?;
            Ok((owned.iter().map(DeviceBuffer::at).collect(), Memory::Owned { _buffers: owned }))
        }
        PoolMemory::Borrow { buffers, owner } => {
            expect(buffers.len())?;
            check(current, &buffers, bytes)?;
            Ok((buffers, Memory::Borrowed { _owner: owner }))
        }
        PoolMemory::Shared { buffers } => {
            expect(buffers.len())?;
            // An allocation is opened once, however many buffers lie in it.
            let (mut opened, mut at): (Vec<(_, IpcBuffer)>, Vec<_>) = (Vec::new(), Vec::new());
            for (handle, offset) in buffers {
                let base = match opened.iter().find(|(name, _)| *name == handle) {
                    Some((_, buffer)) => buffer.at(),
                    None => {
                        let buffer = IpcBuffer::open(current, handle)?;
                        let base = buffer.at();
                        opened.push((handle, buffer));
                        base
                    }
                };
                at.push(base.offset(offset));
            }
            check(current, &at, bytes)?;
            let opened = opened.into_iter().map(|(_, buffer)| buffer).collect();
            Ok((at, Memory::Shared { _buffers: opened }))
        }
    }
}

/// First and last byte of each buffer must be this GPU's. (What lies between is the caller's word: a
/// tensor may be made of several mappings.)
fn check(current: &Current, buffers: &[DevicePtr], bytes: usize) -> Result<(), OpenError> {
    let here = |at: DevicePtr| is_device_memory(current, at);
    match buffers.iter().position(|&at| !here(at) || !here(at.offset(bytes.saturating_sub(1)))) {
        Some(buffer) => Err(OpenError::NotDeviceMemory { buffer, at: buffers[buffer], bytes }),
        None => Ok(()),
    }
}

fn upload_table(
    current: &Current,
    stream: &Stream,
    buffers: &[DevicePtr],
) -> Result<DeviceBuffer, CudaError> {
    let bytes = size_of_val(buffers);
    let (pinned, table) = (PinnedBuffer::new(current, bytes)?, DeviceBuffer::new(current, bytes)?);
    for (at, buffer) in buffers.iter().enumerate() {
        // SAFETY: inside the buffer, which nobody else knows; its start is page-aligned.
        unsafe { pinned.base().cast::<u64>().add(at).write(buffer.0) };
    }
    // SAFETY: both are alive until the synchronisation.
    unsafe { stream.upload(current, table.at(), pinned.base(), bytes) }?;
    if let Err(error) = stream.synchronize() {
        // Nobody knows whether they are in use still.
        std::mem::forget((pinned, table));
        return Err(error);
    }
    Ok(table)
}
