//! What is not a copy between tiers: single blocks in and out, zeroing, reading back. One at a time, and
//! waited for.

use kv_core::ids::SlotId;
use kv_core::layout::Nest;

use super::launch::{Side, Walk};
use super::{CudaError, Shared};
use crate::device::{BlockDigest, DeviceError, Direction};
use crate::driver::{CopyList, Current, Event, PinnedBuffer, Stream, StreamPriority, Submission};
use crate::kernels::args::{kv_block, kv_digest};
use crate::memory::HostMemory;

/// Blocks of one launch.
const BATCH: usize = 1024;

/// A stream and its scratch memory.
pub(super) struct Utility {
    stream: Stream,
    done: Event,
    /// One block.
    bounce: PinnedBuffer,
    descriptors: PinnedBuffer,
    digests: PinnedBuffer,
}

impl Utility {
    pub(super) fn new(current: &Current, block_bytes: usize) -> Result<Self, CudaError> {
        Ok(Self {
            stream: Stream::new(current, StreamPriority::Low)?,
            done: Event::new(current)?,
            bounce: PinnedBuffer::new(current, block_bytes)?,
            descriptors: PinnedBuffer::new(current, BATCH * size_of::<kv_block>())?,
            digests: PinnedBuffer::new(current, BATCH * size_of::<kv_digest>())?,
        })
    }

    pub(super) const fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(super) fn upload(
        &mut self,
        current: &Current,
        shared: &Shared,
        block: SlotId,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        // SAFETY: the bounce buffer has one block, which is what `bytes` has; the GPU is done with it.
        unsafe { self.bounce.base().as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.copy(current, shared, block, Direction::ToDevice)
    }

    pub(super) fn download(
        &mut self,
        current: &Current,
        shared: &Shared,
        block: SlotId,
        bytes: &mut [u8],
    ) -> Result<(), DeviceError> {
        self.copy(current, shared, block, Direction::ToHost)?;
        // SAFETY: as in `upload`.
        unsafe { self.bounce.base().as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// One block between the pool and the bounce buffer.
    fn copy(
        &mut self,
        current: &Current,
        shared: &Shared,
        block: SlotId,
        direction: Direction,
    ) -> Result<(), DeviceError> {
        let mut list = CopyList::default();
        let mut host = self.bounce.base().addr().get() as u64;
        for fragment in shared.pool.placement().fragments(block).into_iter().flatten() {
            let Some(buffer) = shared.pool.buffer(fragment.buffer) else { continue };
            list.push(buffer.offset(fragment.offset), host, fragment.len);
            host += fragment.len as u64;
        }
        // SAFETY: fragments of a checked block and a buffer of one block, both kept until it is over.
        unsafe { self.stream.copy(current, direction, &mut list, Submission::Loop) }?;
        self.finish(shared)
    }

    pub(super) fn zero(
        &mut self,
        current: &Current,
        shared: &Shared,
        blocks: &[SlotId],
    ) -> Result<(), DeviceError> {
        for blocks in blocks.chunks(BATCH) {
            let walk = self.walk(shared, &shared.scatter, blocks);
            // SAFETY: blocks of the pool; no copy that names them is outstanding.
            unsafe { shared.kernels.zero(current, &self.stream, &walk, multiprocessors(current)) }?;
            self.finish(shared)?;
        }
        Ok(())
    }

    pub(super) fn digest(
        &mut self,
        current: &Current,
        shared: &Shared,
        blocks: &[SlotId],
    ) -> Result<Vec<BlockDigest>, DeviceError> {
        let mut found = Vec::with_capacity(blocks.len());
        for blocks in blocks.chunks(BATCH) {
            let walk = self.walk(shared, shared.pool.gather(), blocks);
            let (digests, ctas) = (self.digests.device_at(), multiprocessors(current));
            // SAFETY: blocks of the pool are read, the digests are ours.
            unsafe { shared.kernels.digest(current, &self.stream, &walk, digests, ctas) }?;
            self.finish(shared)?;
            for at in 0..blocks.len() {
                // SAFETY: inside the buffer, written by the launch that is over.
                let digest = unsafe { self.digests.base().cast::<kv_digest>().add(at).read() };
                found.push(BlockDigest { checksum: digest.crc64, nonzero: digest.nonzero });
            }
        }
        Ok(found)
    }

    /// A walk of that nest over all of these blocks, of which one side is looked at.
    fn walk<'a>(&self, shared: &Shared, nest: &'a Nest, blocks: &[SlotId]) -> Walk<'a> {
        let pool = Side::Pool { table: shared.pool.table() };
        for (at, &block) in blocks.iter().enumerate().take(BATCH) {
            let offset = shared.pool.placement().block_offset(block).unwrap_or(0) as u64;
            let block = kv_block { src: offset, dst: offset };
            // SAFETY: inside the descriptors, which no launch reads now.
            unsafe { self.descriptors.base().cast::<kv_block>().add(at).write(block) };
        }
        Walk {
            nest,
            from: pool,
            to: pool,
            runs: 0..nest.runs(),
            vector: shared.pool.alignment(),
            blocks: self.descriptors.device_at(),
            num_blocks: blocks.len(),
        }
    }

    /// Waits for what was queued. If that fails, the GPU may still use the scratch memory: the device is
    /// not used any more, and keeps it.
    fn finish(&self, shared: &Shared) -> Result<(), DeviceError> {
        let over = self.done.record(&self.stream).map_err(DeviceError::from);
        over.and_then(|()| shared.wait(&self.done)).inspect_err(|error| shared.abandon(error))
    }
}

fn multiprocessors(current: &Current) -> u32 {
    current.context().info().multiprocessors
}
