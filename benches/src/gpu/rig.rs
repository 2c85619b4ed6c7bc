//! A GPU and a stream of ours on which everything is waited for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::ids::JobId;
use kv_core::job::CompletionSink;
use kv_core::layout::Placement;
use kv_cuda::cuda::{CopyTuning, CudaConfig, CudaDevice, Kernels, Method, PoolMemory, Side, Walk};
use kv_cuda::driver::{
    Context, CopyList, CudaError, Current, Driver, GpuInfo, PinnedBuffer, Stream, StreamPriority, Submission,
};
use kv_cuda::driver::{DeviceBuffer, DevicePtr};
use kv_cuda::kernels::args::kv_block;
use kv_cuda::{Direction, HostMemory};

use super::{GpuError, methods};
use crate::SplitMix64;
use crate::completions::Completions;

/// Bytes that go through the bounce buffer at a time.
const BOUNCE: usize = 4 << 20;
/// How long a device may be silent before it counts as hung. Far above any copy of a check.
const PATIENCE: Duration = Duration::from_secs(60);

/// A GPU to be checked or measured. Keeps its primary context, so that what devices leave behind is seen.
pub(crate) struct Rig {
    pub(crate) context: Arc<Context>,
    pub(crate) kernels: Kernels,
    pub(crate) stream: Stream,
    bounce: PinnedBuffer,
}

impl Rig {
    pub(crate) fn open(ordinal: u32) -> Result<Self, GpuError> {
        let context = Context::new(Driver::load()?, ordinal)?;
        let current = context.enter()?;
        let kernels = Kernels::load(&current)?;
        let stream = Stream::new(&current, StreamPriority::Low)?;
        let bounce = PinnedBuffer::new(&current, BOUNCE)?;
        drop(current);
        Ok(Self { context, kernels, stream, bounce })
    }

    pub(crate) fn gpu(&self) -> &GpuInfo {
        self.context.info()
    }

    pub(crate) fn enter(&self) -> Result<Current, CudaError> {
        self.context.enter()
    }

    /// Device memory.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<DeviceBuffer, CudaError> {
        DeviceBuffer::new(&self.enter()?, bytes)
    }

    /// Pinned host memory.
    pub(crate) fn pinned(&self, bytes: usize) -> Result<PinnedBuffer, CudaError> {
        PinnedBuffer::new(&self.enter()?, bytes)
    }

    /// Writes bytes into device memory that nothing else uses now, in one copy of the engine at a time.
    pub(crate) fn write(&self, buffer: &DeviceBuffer, bytes: &[u8]) -> Result<(), GpuError> {
        if bytes.len() > buffer.bytes() {
            return Err(GpuError::wrong("more bytes than the buffer has"));
        }
        for (at, part) in (0..).step_by(BOUNCE).zip(bytes.chunks(BOUNCE)) {
            // SAFETY: at most `BOUNCE` bytes, into memory that only this function and `read` use, and both
            // wait for the GPU.
            unsafe { self.bounce.base().as_ptr().copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            self.copy(buffer.at().offset(at), part.len(), Direction::ToDevice)?;
        }
        Ok(())
    }

    /// Fills a buffer with floats between 1 and 2: on zeros a GPU may be faster than on anything real.
    pub(crate) fn fill(&self, buffer: &DeviceBuffer, seed: u64) -> Result<(), GpuError> {
        let mut rng = SplitMix64::new(seed);
        let mut bytes = vec![0; buffer.bytes()];
        for float in bytes.chunks_mut(4) {
            let bits = 0x3F80_0000 | (rng.next_u64() as u32 >> 9);
            float.copy_from_slice(&bits.to_le_bytes()[..float.len()]);
        }
        self.write(buffer, &bytes)
    }

    /// Reads all of a buffer that nothing writes now.
    pub(crate) fn read(&self, buffer: &DeviceBuffer) -> Result<Vec<u8>, GpuError> {
        let mut bytes = vec![0; buffer.bytes()];
        for (at, part) in (0..).step_by(BOUNCE).zip(bytes.chunks_mut(BOUNCE)) {
            self.copy(buffer.at().offset(at), part.len(), Direction::ToHost)?;
            // SAFETY: as in `write`.
            unsafe { self.bounce.base().as_ptr().copy_to_nonoverlapping(part.as_mut_ptr(), part.len()) };
        }
        Ok(bytes)
    }

    /// Between device memory and the bounce buffer; over when it returns.
    fn copy(&self, device: DevicePtr, bytes: usize, direction: Direction) -> Result<(), CudaError> {
        let mut list = CopyList::default();
        list.push(device, self.bounce.base().addr().get() as u64, bytes);
        // SAFETY: both callers name bytes inside a live buffer and at most `BOUNCE` of them; waited for.
        unsafe { self.stream.copy(&self.enter()?, direction, &mut list, Submission::Loop) }?;
        self.stream.synchronize()
    }

    /// A device over this GPU that copies in this way only, or, with `None`, as it chooses. Nothing is
    /// measured when it opens: every method is known to it, at made-up costs.
    pub(crate) fn device(
        &self,
        placement: Placement,
        pool: PoolMemory,
        host: Arc<dyn HostMemory>,
        sink: Arc<dyn CompletionSink>,
        method: Option<Method>,
    ) -> Result<CudaDevice, GpuError> {
        let calibration = Some(methods::all_known(self));
        let tuning = CopyTuning { method, calibration, ..CopyTuning::default() };
        self.tuned_device(placement, pool, host, sink, tuning)
    }

    /// A device over this GPU.
    pub(crate) fn tuned_device(
        &self,
        placement: Placement,
        pool: PoolMemory,
        host: Arc<dyn HostMemory>,
        sink: Arc<dyn CompletionSink>,
        tuning: CopyTuning,
    ) -> Result<CudaDevice, GpuError> {
        let config = CudaConfig {
            ordinal: self.gpu().ordinal,
            pool,
            runtime_streams: Vec::new(),
            tuning,
            patience: PATIENCE / 2,
        };
        Ok(CudaDevice::open(placement, config, host, sink)?)
    }

    /// A table of addresses in device memory.
    pub(crate) fn table(&self, addresses: &[DevicePtr]) -> Result<DeviceBuffer, GpuError> {
        let bytes: Vec<u8> = addresses.iter().flat_map(|at| at.0.to_le_bytes()).collect();
        let table = self.allocate(bytes.len())?;
        self.write(&table, &bytes)?;
        Ok(table)
    }

    /// Block descriptors, where kernels read them.
    pub(crate) fn descriptors(&self, blocks: &[kv_block]) -> Result<PinnedBuffer, CudaError> {
        let pinned = self.pinned(size_of_val(blocks).max(1))?;
        for (at, block) in blocks.iter().enumerate() {
            // SAFETY: inside a buffer of so many, which nobody else knows yet.
            unsafe { pinned.base().cast::<kv_block>().add(at).write(*block) };
        }
        Ok(pinned)
    }
}

/// A walk over all runs of contiguous blocks.
pub(crate) fn contiguous_walk<'a>(
    nest: &'a kv_core::layout::Nest,
    blocks: &PinnedBuffer,
    num_blocks: usize,
) -> Walk<'a> {
    Walk {
        nest,
        from: Side::Contiguous,
        to: Side::Contiguous,
        runs: 0..nest.runs(),
        vector: nest.alignment(),
        blocks: blocks.device_at(),
        num_blocks,
    }
}

/// Waits for so many jobs and says which they were, in the order of their completion.
pub(crate) fn wait_for(completions: &Completions, jobs: usize) -> Result<Vec<JobId>, GpuError> {
    let silent = |done: usize| GpuError::Silent(jobs - done, PATIENCE.as_secs());
    (0..jobs).map(|done| completions.wait_at_most(PATIENCE)?.ok_or_else(|| silent(done))).collect()
}

/// Seconds that it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T, GpuError>) -> Result<(T, f64), GpuError> {
    let start = Instant::now();
    let result = work()?;
    Ok((result, start.elapsed().as_secs_f64()))
}
