//! What this GPU and its link can do, measured when a device is opened.
//!
//! Every method copies a few megabytes in runs of a few sizes, timed by the GPU's own events. What does not
//! fit into [`BUDGET`] is left out, and methods without figures are not chosen.

use std::time::{Duration, Instant};

use kv_core::layout::{Attention, BlockView, DType, KvLayout, Nest, Placement, Step, Strides};
use kv_core::units::Tokens;

use super::CudaError;
use super::cost::{Calibration, Cost, Curve, DirectionCosts};
use super::error::OpenError;
use super::launch::{Kernels, Side, Walk};
use crate::device::Direction;
use crate::driver::{
    CopyList, Current, DeviceBuffer, Event, PinnedBuffer, Stream, StreamPriority, Submission,
};
use crate::kernels::args::kv_block;
use crate::memory::HostMemory;

/// Time for all measurements. The driver's compilation of the kernels is not among them.
const BUDGET: Duration = Duration::from_millis(50);
/// Bytes on each side. Every second run of device memory is skipped, so half as many are copied.
const SCRATCH: usize = 8 << 20;
/// Runs at most, so that small ones do not take all the time.
const MOST_RUNS: usize = 512;
/// Sizes of runs, in bytes, the most telling first.
const ENGINE_RUNS: [usize; 5] = [4 << 10, 1 << 20, 64 << 10, 16 << 10, 256 << 10];
const KERNEL_RUNS: [usize; 3] = [4 << 10, 64 << 10, 512];

/// Measures the device behind `current`.
pub(super) fn measure(current: &Current, kernels: &Kernels, max_ctas: u32) -> Result<Calibration, OpenError> {
    let bench = Bench::new(current, kernels)?;
    // The first use of anything is slower.
    for direction in [Direction::ToDevice, Direction::ToHost] {
        bench.engine(direction, Submission::Loop, 1 << 20, 4)?;
        bench.kernel(Ends::Link(direction), 4 << 10, 64, max_ctas, false)?;
    }
    let until = Instant::now() + BUDGET;
    let costs = |direction| -> Result<DirectionCosts, OpenError> {
        let engine = |how| bench.engine_cost(direction, how, until);
        let batch = current.context().driver().has_batch_copies();
        let mut costs = DirectionCosts {
            engine_loop: engine(Submission::Loop)?,
            engine_batch: batch.then(|| engine(Submission::Batch)).transpose()?,
            ..DirectionCosts::default()
        };
        let mut counts = vec![max_ctas];
        if max_ctas > 1 {
            counts.push(1);
        }
        for ctas in counts {
            let kernel = |ends, bulk| bench.kernel_cost(ends, ctas, bulk, until);
            costs.stage.extend(kernel(Ends::Hbm, false)?.map(|cost| (ctas, cost)));
            costs.kernel.extend(kernel(Ends::Link(direction), false)?.map(|cost| (ctas, cost)));
            if kernels.has_bulk() {
                costs.bulk.extend(kernel(Ends::Link(direction), true)?.map(|cost| (ctas, cost)));
            }
        }
        Ok(costs)
    };
    Ok(Calibration {
        multiprocessors: current.context().info().multiprocessors,
        to_device: costs(Direction::ToDevice)?,
        to_host: costs(Direction::ToHost)?,
    })
}

/// Between which memories a kernel copies.
#[derive(Clone, Copy)]
enum Ends {
    Link(Direction),
    Hbm,
}

struct Bench<'a> {
    current: &'a Current,
    kernels: &'a Kernels,
    stream: Stream,
    start: Event,
    end: Event,
    device: DeviceBuffer,
    other: DeviceBuffer,
    host: PinnedBuffer,
    descriptor: PinnedBuffer,
}

impl<'a> Bench<'a> {
    fn new(current: &'a Current, kernels: &'a Kernels) -> Result<Self, CudaError> {
        Ok(Self {
            current,
            kernels,
            stream: Stream::new(current, StreamPriority::High)?,
            start: Event::new(current)?,
            end: Event::new(current)?,
            device: DeviceBuffer::new(current, SCRATCH)?,
            other: DeviceBuffer::new(current, SCRATCH)?,
            host: PinnedBuffer::new(current, SCRATCH)?,
            descriptor: PinnedBuffer::new(current, size_of::<kv_block>())?,
        })
    }

    /// Seconds that the GPU took for what `queue` queues; the better of two.
    fn time(&self, queue: impl Fn() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        let mut best = f64::INFINITY;
        for _ in 0..2 {
            self.start.record(&self.stream)?;
            queue()?;
            self.end.record(&self.stream)?;
            self.stream.synchronize()?;
            best = best.min(self.end.seconds_since(&self.start)?);
        }
        Ok(best)
    }

    fn engine(
        &self,
        direction: Direction,
        how: Submission,
        run: usize,
        count: usize,
    ) -> Result<f64, CudaError> {
        self.time(|| {
            let mut list = CopyList::default();
            let host = self.host.base().addr().get();
            for at in 0..count {
                list.push_apart(self.device.at().offset(2 * at * run), (host + at * run) as u64, run);
            }
            // SAFETY: inside the scratch buffers, which nothing else uses; `time` waits for the end.
            unsafe { self.stream.copy(self.current, direction, &mut list, how) }
        })
    }

    fn engine_cost(&self, direction: Direction, how: Submission, until: Instant) -> Result<Cost, OpenError> {
        let one = self.engine(direction, how, ENGINE_RUNS[0], 1)?;
        let mut points = Vec::new();
        for run in ENGINE_RUNS {
            // The loop is what remains when all else fails: it is measured at least once.
            if points.is_empty() || Instant::now() < until {
                let count = count(run);
                points.push((run, self.engine(direction, how, run, count)? / count as f64));
            }
        }
        Ok(Cost { fixed: one, run: Curve::new(points) })
    }

    fn kernel(&self, ends: Ends, run: usize, count: usize, ctas: u32, bulk: bool) -> Result<f64, OpenError> {
        let nest = strided(run, count)?;
        let (hbm, host) = (self.device.at(), self.host.device_at());
        let (nest, from, to) = match ends {
            Ends::Link(Direction::ToDevice) => (nest.swapped(), host, hbm),
            Ends::Link(Direction::ToHost) => (nest, hbm, host),
            Ends::Hbm => (nest, hbm, self.other.at()),
        };
        let block = kv_block { src: from.0, dst: to.0 };
        // SAFETY: one descriptor in a buffer of one; the launch before was waited for.
        unsafe { self.descriptor.base().cast::<kv_block>().write(block) };
        let walk = Walk {
            nest: &nest,
            from: Side::Contiguous,
            to: Side::Contiguous,
            runs: 0..count,
            vector: 16,
            blocks: self.descriptor.device_at(),
            num_blocks: 1,
        };
        // SAFETY: the nest spans at most `SCRATCH` bytes on each side; `time` waits for the end.
        Ok(self.time(|| unsafe { self.kernels.copy(self.current, &self.stream, &walk, ctas, bulk) })?)
    }

    /// `None` if there was no time left to measure anything.
    fn kernel_cost(
        &self,
        ends: Ends,
        ctas: u32,
        bulk: bool,
        until: Instant,
    ) -> Result<Option<Cost>, OpenError> {
        if Instant::now() >= until {
            return Ok(None);
        }
        let one = self.kernel(ends, KERNEL_RUNS[0], 1, ctas, bulk)?;
        let mut points = Vec::new();
        for run in KERNEL_RUNS {
            if points.is_empty() || Instant::now() < until {
                let count = count(run);
                let rest = (self.kernel(ends, run, count, ctas, bulk)? - one).max(one * 1e-3);
                points.push((run, rest / count as f64));
            }
        }
        Ok(Some(Cost { fixed: one, run: Curve::new(points) }))
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        // After a failure something may still be queued that names the scratch buffers. If even this
        // fails, the context is lost and nothing will run.
        drop(self.stream.synchronize());
    }
}

/// How many runs of that size are copied.
const fn count(run: usize) -> usize {
    let fit = SCRATCH / 2 / run;
    if fit < MOST_RUNS { fit } else { MOST_RUNS }
}

/// A walk over `count` runs, each followed by a gap on the first side.
fn strided(run: usize, count: usize) -> Result<Nest, OpenError> {
    let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let layout =
        KvLayout::new(narrow(count), Attention::Latent { dim: narrow(run) }, DType::Fp8E4M3, Tokens(1))?;
    let apart = Step::Bytes(2 * run);
    let strides = Strides { layer: apart, plane: apart, block: SCRATCH, token: run, head: run };
    let pool = Placement::strided(layout, 1, strides)?;
    Ok(Nest::between(&BlockView::in_pool(&pool), &BlockView::page_first(&layout))?)
}
