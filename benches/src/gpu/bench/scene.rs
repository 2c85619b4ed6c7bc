//! What is copied: a pool in fragments of one size, host blocks, and devices over both.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use kv_core::ids::{JobId, SlotId};
use kv_core::job::Urgency;
use kv_core::layout::{Arrangement, Attention, DType, KvLayout, Placement};
use kv_core::units::Tokens;
use kv_cuda::cuda::{CopyTuning, CudaDevice, Method, PoolMemory};
use kv_cuda::driver::{CopyList, DeviceBuffer, DevicePtr, Stream, StreamPriority, Submission};
use kv_cuda::{BlockCopy, Device, Direction};

use super::GpuError;
use crate::SplitMix64;
use crate::completions::Completions;
use crate::gpu::host::HostBlocks;
use crate::gpu::rig::{Rig, wait_for};

/// Bytes of a block, unless a fragment is larger: those of 16 tokens of an 8B model.
const BLOCK: usize = 2 << 20;

/// A pool, one buffer for each layer, one fragment for each layer of a block.
pub(super) struct Scene<'a> {
    pub(super) rig: &'a Rig,
    pub(super) placement: Placement,
    /// All layers, one behind the other.
    pub(super) memory: Arc<DeviceBuffer>,
    pub(super) host: HostBlocks,
    /// Device block and host slot of each copy, both in a random order.
    pairs: Vec<(SlotId, usize)>,
    streams: [Stream; 2],
}

impl<'a> Scene<'a> {
    pub(super) fn new(rig: &'a Rig, bytes: usize, fragment: usize) -> Result<Self, GpuError> {
        Self::of_blocks(rig, bytes, fragment, BLOCK.max(fragment))
    }

    pub(super) fn of_blocks(
        rig: &'a Rig,
        bytes: usize,
        fragment: usize,
        block: usize,
    ) -> Result<Self, GpuError> {
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        // Two at least: both ways take half of them each.
        let blocks = (bytes / block).max(2);
        let dim = narrow(fragment);
        let layers = narrow(block / fragment);
        let layout = KvLayout::new(layers, Attention::Latent { dim }, DType::Fp8E4M3, Tokens(1))?;
        let placement = Placement::packed(layout, narrow(blocks), Arrangement::BlockOuter)?;
        let mut rng = SplitMix64::new(fragment as u64);
        let host = HostBlocks::new(blocks, layout.bytes_per_block(), 0, 0, &mut rng)?;
        let mut device: Vec<SlotId> = (0..placement.num_blocks()).map(SlotId).collect();
        let mut slots: Vec<usize> = (0..blocks).collect();
        rng.shuffle(&mut device);
        rng.shuffle(&mut slots);
        let memory = rig.allocate(placement.buffers() as usize * placement.buffer_bytes())?;
        rig.fill(&memory, fragment as u64)?;
        let current = rig.enter()?;
        let stream = || Stream::new(&current, StreamPriority::High);
        let streams = [stream()?, stream()?];
        drop(current);
        let pairs = device.into_iter().zip(slots).collect();
        Ok(Self { rig, placement, memory: Arc::new(memory), host, pairs, streams })
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.placement.layout().bytes_per_block()
    }

    pub(super) fn bytes(&self) -> usize {
        self.pairs.len() * self.block_bytes()
    }

    pub(super) fn buffers(&self) -> Vec<DevicePtr> {
        let step = self.placement.buffer_bytes();
        (0..self.placement.buffers() as usize).map(|at| self.memory.at().offset(at * step)).collect()
    }

    /// All copies one way.
    pub(super) fn copies(&self, direction: Direction) -> Vec<BlockCopy> {
        let copy = |(at, &(device_block, slot)): (usize, &(SlotId, usize))| BlockCopy {
            job: JobId(at as u64),
            direction,
            device_block,
            host: self.host.span(slot),
        };
        self.pairs.iter().enumerate().map(copy).collect()
    }

    /// A device over the pool that copies in this way, or chooses by what it measures when it opens.
    pub(super) fn contender(&self, method: Option<Method>) -> Result<Over, GpuError> {
        let (sink, completions) = Completions::channel();
        let memory = self.host.memory();
        let device = match method {
            Some(_) => self.rig.device(self.placement, self.pool(), memory, sink, method)?,
            None => {
                self.rig.tuned_device(self.placement, self.pool(), memory, sink, CopyTuning::default())?
            }
        };
        Ok(Over { device, completions })
    }

    fn pool(&self) -> PoolMemory {
        PoolMemory::Borrow {
            buffers: self.buffers(),
            owner: Arc::clone(&self.memory) as Arc<dyn Any + Send + Sync>,
        }
    }

    /// One copy of all bytes in one piece, or half of them each way at once. The host memory must be
    /// registered: a device over it is open.
    pub(super) fn contiguous(&self, ways: &[Direction]) -> Result<f64, GpuError> {
        let part = self.bytes() / ways.len().max(1);
        let mut lists: Vec<CopyList> = Vec::new();
        for at in 0..ways.len() {
            let mut list = CopyList::default();
            list.push(self.memory.at().offset(at * part), self.host_address(0) + (at * part) as u64, part);
            lists.push(list);
        }
        self.bare(ways, &mut lists, Submission::Loop)
    }

    /// Every fragment handed to the driver by itself, without kvtier.
    pub(super) fn fragments(&self, ways: &[Direction], how: Submission) -> Result<f64, GpuError> {
        let buffers = self.buffers();
        let each = self.pairs.len().div_ceil(ways.len().max(1));
        let mut lists = Vec::new();
        for pairs in self.pairs.chunks(each) {
            let mut list = CopyList::default();
            for &(block, slot) in pairs {
                let mut host = self.host_address(self.host.span(slot).offset);
                for fragment in self.placement.fragments(block).into_iter().flatten() {
                    let device = buffers[fragment.buffer as usize].offset(fragment.offset);
                    list.push(device, host, fragment.len);
                    host += fragment.len as u64;
                }
            }
            lists.push(list);
        }
        self.bare(ways, &mut lists, how)
    }

    fn host_address(&self, offset: usize) -> u64 {
        (self.host.memory().base().addr().get() + offset) as u64
    }

    /// Seconds for lists of copies, each way in a stream of its own. Making the lists is not counted.
    fn bare(&self, ways: &[Direction], lists: &mut [CopyList], how: Submission) -> Result<f64, GpuError> {
        let current = self.rig.enter()?;
        let start = Instant::now();
        for ((&way, list), stream) in ways.iter().zip(lists).zip(&self.streams) {
            // SAFETY: fragments of the pool and spans of the host blocks, all alive; nothing else uses
            // them now, and both streams are waited for before this returns.
            unsafe { stream.copy(&current, way, list, how) }?;
        }
        for stream in &self.streams {
            stream.synchronize()?;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// A device over a scene.
pub(super) struct Over {
    pub(super) device: CudaDevice,
    pub(super) completions: Completions,
}

impl Over {
    /// Whether it copies as it was told, each way of these.
    pub(super) fn obeys(&self, ways: &[Direction], blocks: usize) -> bool {
        ways.iter().all(|&way| self.device.explain(way, urgency(way), blocks).forced)
    }

    /// Seconds from submission until every copy is known to be complete.
    pub(super) fn run(&self, copies: &[&[BlockCopy]]) -> Result<f64, GpuError> {
        let start = Instant::now();
        for copies in copies {
            let Some(first) = copies.first() else { continue };
            // SAFETY: every copy has its own block and span, and nobody looks at either before the end.
            unsafe { self.device.submit(copies, urgency(first.direction)) }?;
        }
        wait_for(&self.completions, copies.iter().map(|copies| copies.len()).sum())?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Loads are waited for, stores are not.
pub(super) const fn urgency(direction: Direction) -> Urgency {
    match direction {
        Direction::ToDevice => Urgency::Demand,
        Direction::ToHost => Urgency::WriteBack,
    }
}
