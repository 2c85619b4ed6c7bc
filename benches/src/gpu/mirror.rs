//! Device memory with a pool in it, and what its bytes should be.

use std::any::Any;
use std::sync::Arc;

use kv_core::ids::SlotId;
use kv_core::layout::Placement;
use kv_cuda::cuda::PoolMemory;
use kv_cuda::driver::{DeviceBuffer, DevicePtr};

use super::GpuError;
use super::host::compare;
use super::rig::Rig;
use crate::SplitMix64;

/// Bytes before and behind each buffer that nothing may touch.
const GUARD: usize = 512;

/// A pool in device memory of ours, borrowed to devices, and an image of all of it: blocks, padding between
/// them and guard bands around them. The image follows [`Placement::fragments`], which is none of the code
/// that makes copies.
pub(crate) struct Mirror {
    placement: Placement,
    memory: Arc<Vec<DeviceBuffer>>,
    images: Vec<Vec<u8>>,
    /// Of the pool in each buffer.
    first: usize,
}

impl Mirror {
    /// A pool of random bytes that begins `shift` bytes behind an aligned address.
    pub(crate) fn new(
        rig: &Rig,
        placement: Placement,
        shift: usize,
        rng: &mut SplitMix64,
    ) -> Result<Self, GpuError> {
        let first = GUARD + shift;
        let bytes = first + placement.buffer_bytes() + GUARD;
        let (mut memory, mut images) = (Vec::new(), Vec::new());
        for _ in 0..placement.buffers() {
            let mut image = vec![0; bytes];
            rng.fill(&mut image);
            let buffer = rig.allocate(bytes)?;
            rig.write(&buffer, &image)?;
            memory.push(buffer);
            images.push(image);
        }
        Ok(Self { placement, memory: Arc::new(memory), images, first })
    }

    pub(crate) const fn placement(&self) -> &Placement {
        &self.placement
    }

    /// First byte of the pool in each buffer.
    pub(crate) fn addresses(&self) -> Vec<DevicePtr> {
        self.memory.iter().map(|buffer| buffer.at().offset(self.first)).collect()
    }

    /// For a device, which keeps it alive.
    pub(crate) fn borrowed(&self) -> PoolMemory {
        PoolMemory::Borrow {
            buffers: self.addresses(),
            owner: Arc::clone(&self.memory) as Arc<dyn Any + Send + Sync>,
        }
    }

    /// What a block should be, page-first.
    pub(crate) fn block(&self, block: SlotId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.placement.layout().bytes_per_block());
        for fragment in self.placement.fragments(block).into_iter().flatten() {
            let image = &self.images[fragment.buffer as usize];
            bytes.extend_from_slice(&image[self.first + fragment.offset..][..fragment.len]);
        }
        bytes
    }

    /// From now on a block should be this.
    pub(crate) fn set_block(&mut self, block: SlotId, bytes: &[u8]) {
        let mut rest = bytes;
        for fragment in self.placement.fragments(block).into_iter().flatten() {
            let (now, later) = rest.split_at(fragment.len.min(rest.len()));
            let image = &mut self.images[fragment.buffer as usize];
            image[self.first + fragment.offset..][..now.len()].copy_from_slice(now);
            rest = later;
        }
    }

    /// Compares every byte of every buffer.
    pub(crate) fn check(&self, rig: &Rig) -> Result<(), GpuError> {
        for (number, (buffer, image)) in self.memory.iter().zip(&self.images).enumerate() {
            let place = |at: usize| {
                let inside = at.checked_sub(self.first).filter(|&at| at < self.placement.buffer_bytes());
                match inside {
                    Some(at) => format!("byte {at} of buffer {number} of the pool"),
                    None => format!("byte {at} of buffer {number}, in a guard band"),
                }
            };
            compare(image, &rig.read(buffer)?, place)?;
        }
        Ok(())
    }
}
