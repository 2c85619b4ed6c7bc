//! Order: a copy sees what the runtime queued before it, a layer is there when it is said to be, and an
//! urgent copy overtakes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use kv_core::Verified;
use kv_core::ids::{JobId, SlotId};
use kv_core::job::{CompletionSink, TransferError, Urgency};
use kv_core::layout::{Arrangement, Attention, BlockView, DType, KvLayout, Nest, Placement};
use kv_core::units::Tokens;
use kv_cuda::cuda::Method;
use kv_cuda::driver::{DeviceBuffer, DevicePtr, Stream, StreamPriority};
use kv_cuda::kernels::args::kv_block;
use kv_cuda::{BlockCopy, Device, Direction};
use parking_lot::Mutex;

use super::{Case, Check, Done, Scale};
use crate::SplitMix64;
use crate::completions::Completions;
use crate::gpu::host::HostBlocks;
use crate::gpu::mirror::Mirror;
use crate::gpu::rig::{Rig, contiguous_walk, wait_for};
use crate::gpu::{GpuError, methods};

const PART: &str = "order";

/// Bytes that a kernel of one CTA copies before the copy that matters: milliseconds on any GPU.
const fn delay_bytes(scale: Scale) -> usize {
    match scale {
        Scale::Quick => 64 << 10,
        Scale::Full => 256 << 20,
    }
}

pub(super) fn cases<'a>(check: &Check, rig: &Rig) -> Vec<Case<'a>> {
    let scale = check.scale;
    let mut cases = Vec::new();
    let methods = [None].into_iter().chain(methods::every(rig).into_iter().map(Some));
    for method in methods {
        let label = methods::label(method);
        let case =
            |name: &str, run| Case { part: PART, name: format!("{name}, {label}"), seed: check.seed, run };
        cases.push(case(
            "a store behind a runtime's kernel that writes the block",
            Box::new(move |rig: &Rig, rng: &mut SplitMix64| store_behind(rig, rng, scale, method)),
        ));
        cases.push(case(
            "a load behind a runtime's kernel that reads the block",
            Box::new(move |rig: &Rig, rng: &mut SplitMix64| load_behind(rig, rng, scale, method)),
        ));
        cases.push(case(
            "a runtime's kernel behind each layer",
            Box::new(move |rig: &Rig, rng: &mut SplitMix64| layers_in_time(rig, rng, scale, method)),
        ));
    }
    cases.push(Case {
        part: PART,
        name: "a demand load behind write-backs".to_owned(),
        seed: check.seed,
        run: Box::new(move |rig, rng| urgent(rig, rng, scale)),
    });
    cases
}

/// A contiguous block of 4 layers in each of its places.
fn pool_of(layers: u32, layer_bytes: u32, blocks: u32) -> Result<Placement, GpuError> {
    let layout = KvLayout::new(layers, Attention::Latent { dim: layer_bytes }, DType::Fp8E4M3, Tokens(1))?;
    Ok(Placement::packed(layout, blocks, Arrangement::BlockOuter)?)
}

/// The runtime: a stream of its own, and a slow kernel in it.
struct Runtime<'a> {
    rig: &'a Rig,
    stream: Stream,
    scratch: [DeviceBuffer; 2],
    delay: usize,
    /// Kept until the end: launches read them.
    descriptors: Mutex<Vec<kv_cuda::driver::PinnedBuffer>>,
}

impl<'a> Runtime<'a> {
    fn new(rig: &'a Rig, scale: Scale) -> Result<Self, GpuError> {
        let delay = delay_bytes(scale);
        let stream = Stream::new(&rig.enter()?, StreamPriority::Low)?;
        let scratch = [rig.allocate(delay)?, rig.allocate(delay)?];
        Ok(Self { rig, stream, scratch, delay, descriptors: Mutex::default() })
    }

    /// Queues a kernel of one CTA that copies bytes from one place of device memory to another.
    fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<(), GpuError> {
        let narrow = u32::try_from(bytes).unwrap_or(u32::MAX);
        let layout = KvLayout::new(1, Attention::Latent { dim: narrow }, DType::Fp8E4M3, Tokens(1))?;
        let view = BlockView::page_first(&layout);
        let nest = Nest::between(&view, &view)?;
        let descriptor = self.rig.descriptors(&[kv_block { src: from.0, dst: to.0 }])?;
        let mut walk = contiguous_walk(&nest, &descriptor, 1);
        walk.vector = 1 << (walk.vector as u64 | to.0 | from.0).trailing_zeros();
        // SAFETY: callers name memory that lives until `finish`; so does the descriptor.
        unsafe { self.rig.kernels.copy(&self.rig.enter()?, &self.stream, &walk, 1, false) }?;
        self.descriptors.lock().push(descriptor);
        Ok(())
    }

    /// Queues something slow.
    fn delay(&self) -> Result<(), GpuError> {
        self.copy(self.scratch[1].at(), self.scratch[0].at(), self.delay)
    }

    fn finish(&self) -> Result<(), GpuError> {
        Ok(self.stream.synchronize()?)
    }
}

/// One block in a pool, its bytes in host memory, and a second set of device bytes.
struct Scene {
    pool: Mirror,
    host: HostBlocks,
    other: Mirror,
}

impl Scene {
    fn new(rig: &Rig, rng: &mut SplitMix64, scale: Scale) -> Result<Self, GpuError> {
        let layer_bytes = if scale == Scale::Quick { 4 << 10 } else { 2 << 20 };
        let placement = pool_of(4, layer_bytes, 1)?;
        let bytes = placement.layout().bytes_per_block();
        Ok(Self {
            pool: Mirror::new(rig, placement, 0, rng)?,
            host: HostBlocks::new(1, bytes, 0, 64, rng)?,
            other: Mirror::new(rig, placement, 0, rng)?,
        })
    }

    fn job(&self, direction: Direction) -> BlockCopy {
        BlockCopy { job: JobId(0), direction, device_block: SlotId(0), host: self.host.span(0) }
    }

    fn layer_bytes(&self) -> usize {
        self.pool.placement().layout().bytes_per_layer()
    }

    fn done(&self, what: &str, method: Option<Method>) -> Done {
        let bytes = self.pool.placement().layout().bytes_per_block() as u64;
        Done { what: format!("{what}, {}", methods::label(method)), bytes }
    }

    /// # Safety
    /// No copy to the host memory is outstanding.
    unsafe fn check(&self, rig: &Rig) -> Result<(), GpuError> {
        self.pool.check(rig)?;
        self.other.check(rig)?;
        // SAFETY: passed on to the caller.
        unsafe { self.host.check() }
    }
}

/// One copy, submitted while the runtime still writes the block (a store) or reads it (a load).
fn behind_runtime(
    rig: &Rig,
    rng: &mut SplitMix64,
    scale: Scale,
    method: Option<Method>,
    direction: Direction,
) -> Result<Scene, GpuError> {
    let scene = Scene::new(rig, rng, scale)?;
    let runtime = Runtime::new(rig, scale)?;
    let (sink, completions) = Completions::channel();
    let device =
        rig.device(*scene.pool.placement(), scene.pool.borrowed(), scene.host.memory(), sink, method)?;
    runtime.delay()?;
    for (pool, other) in scene.pool.addresses().into_iter().zip(scene.other.addresses()) {
        let (to, from) = if direction == Direction::ToHost { (pool, other) } else { (other, pool) };
        runtime.copy(to, from, scene.layer_bytes())?;
    }
    let urgency = if direction == Direction::ToHost { Urgency::WriteBack } else { Urgency::Demand };
    // SAFETY: nobody looks at the span before the copy is completed; the stream outlives the device.
    unsafe { device.submit_after(&[scene.job(direction)], urgency, &[runtime.stream.handle()]) }?;
    wait_for(&completions, 1)?;
    drop(device);
    runtime.finish()?;
    Ok(scene)
}

fn store_behind(
    rig: &Rig,
    rng: &mut SplitMix64,
    scale: Scale,
    method: Option<Method>,
) -> Result<Done, GpuError> {
    let mut scene = behind_runtime(rig, rng, scale, method, Direction::ToHost)?;
    let block = scene.other.block(SlotId(0));
    scene.pool.set_block(SlotId(0), &block);
    scene.host.set_block(0, &block);
    // SAFETY: the device is closed.
    unsafe { scene.check(rig) }?;
    Ok(scene.done("store behind a kernel", method))
}

fn load_behind(
    rig: &Rig,
    rng: &mut SplitMix64,
    scale: Scale,
    method: Option<Method>,
) -> Result<Done, GpuError> {
    let mut scene = behind_runtime(rig, rng, scale, method, Direction::ToDevice)?;
    let old = scene.pool.block(SlotId(0));
    scene.other.set_block(SlotId(0), &old);
    let new = scene.host.block(0).to_vec();
    scene.pool.set_block(SlotId(0), &new);
    // SAFETY: the device is closed.
    unsafe { scene.check(rig) }?;
    Ok(scene.done("load behind a kernel", method))
}

fn layers_in_time(
    rig: &Rig,
    rng: &mut SplitMix64,
    scale: Scale,
    method: Option<Method>,
) -> Result<Done, GpuError> {
    let mut scene = Scene::new(rig, rng, scale)?;
    let runtime = Runtime::new(rig, Scale::Quick)?;
    let (sink, completions) = Completions::channel();
    let device =
        rig.device(*scene.pool.placement(), scene.pool.borrowed(), scene.host.memory(), sink, method)?;
    let copies = [scene.job(Direction::ToDevice)];
    // SAFETY: as in `behind_runtime`.
    let progress = unsafe { device.submit_by_layer(&copies, Urgency::Demand) }?;
    for (layer, (from, to)) in (0..).zip(scene.pool.addresses().into_iter().zip(scene.other.addresses())) {
        // SAFETY: the runtime's stream is alive, in the primary context.
        unsafe { progress.hold(layer, runtime.stream.handle()) }?;
        runtime.copy(to, from, scene.layer_bytes())?;
    }
    runtime.finish()?;
    wait_for(&completions, 1)?;
    progress.wait(3)?;
    drop(device);
    let new = scene.host.block(0).to_vec();
    scene.pool.set_block(SlotId(0), &new);
    scene.other.set_block(SlotId(0), &new);
    // SAFETY: the device is closed.
    unsafe { scene.check(rig) }?;
    Ok(scene.done("a kernel behind each layer", method))
}

/// Holds the device up at its first completion until somebody lets it go on.
struct Gate {
    out: Sender<(JobId, Instant, Result<(), TransferError>)>,
    go_on: Mutex<Option<Receiver<()>>>,
}

impl CompletionSink for Gate {
    fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
        self.out.send((job, Instant::now(), result.map(drop))).ok();
        if let Some(go_on) = self.go_on.lock().take() {
            go_on.recv_timeout(Duration::from_secs(10)).ok();
        }
    }
}

/// Write-backs of 200 MB, and when the first of them is over a demand load of 50 KB: it must not be last.
fn urgent(rig: &Rig, rng: &mut SplitMix64, scale: Scale) -> Result<Done, GpuError> {
    let write_backs = if scale == Scale::Quick { 256 } else { 4000 };
    let placement = pool_of(25, 2 << 10, write_backs + 1)?;
    let block_bytes = placement.layout().bytes_per_block();
    let mut pool = Mirror::new(rig, placement, 0, rng)?;
    let mut host = HostBlocks::new(write_backs as usize + 1, block_bytes, 0, 0, rng)?;
    let (out, completed) = channel();
    let (let_go, go_on) = channel();
    let sink = Arc::new(Gate { out, go_on: Mutex::new(Some(go_on)) });
    let device = rig.device(placement, pool.borrowed(), host.memory(), sink, None)?;
    let copy = |at: u32, direction| BlockCopy {
        job: JobId(u64::from(at)),
        direction,
        device_block: SlotId(at),
        host: host.span(at as usize),
    };
    let stores: Vec<_> = (0..write_backs).map(|at| copy(at, Direction::ToHost)).collect();
    let silent = |_| GpuError::Silent(1, 60);
    let next = || completed.recv_timeout(Duration::from_secs(60)).map_err(silent);
    // SAFETY: every copy has its own span and block; nobody looks at them before all are completed.
    unsafe { device.submit(&stores, Urgency::WriteBack) }?;
    let mut order = vec![next()?];
    let start = Instant::now();
    // SAFETY: as above.
    unsafe { device.submit(&[copy(write_backs, Direction::ToDevice)], Urgency::Demand) }?;
    let_go.send(()).ok();
    for _ in 0..write_backs {
        order.push(next()?);
    }
    drop(device);
    for (_, _, result) in &order {
        (*result)?;
    }
    let demand = JobId(u64::from(write_backs));
    let at = order.iter().position(|(job, ..)| *job == demand).unwrap_or(order.len());
    if at + 1 >= order.len() {
        return Err(GpuError::wrong("a demand load came after all write-backs that were queued before it"));
    }
    for at in 0..write_backs {
        let block = pool.block(SlotId(at));
        host.set_block(at as usize, &block);
    }
    pool.set_block(SlotId(write_backs), host.block(write_backs as usize));
    pool.check(rig)?;
    // SAFETY: the device is closed.
    unsafe { host.check() }?;
    let microseconds = order[at].1.duration_since(start).as_micros();
    let megabytes = (write_backs as usize * block_bytes) as f64 / 1e6;
    let what = format!("50 KB load behind {megabytes:.0} MB of write-backs: {microseconds} us");
    Ok(Done { what, bytes: (order.len() * block_bytes) as u64 })
}
