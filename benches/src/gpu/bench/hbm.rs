//! Within the GPU: gathers, permutes and resharding beside a plain copy of as many bytes; zeroing and digests.

use kv_core::ids::SlotId;
use kv_core::layout::{Attention, BlockView, DType, HeadOrder, KvLayout, KvOrder, Nest};
use kv_core::units::Tokens;
use kv_cuda::Device;
use kv_cuda::cuda::{Side, Walk};
use kv_cuda::driver::{DeviceBuffer, Event, PinnedBuffer};
use kv_cuda::kernels::args::kv_block;

use super::figure::{Contender, Figure, LIMIT, Work, take_turns};
use super::scene::Scene;
use super::{Bench, GpuError};
use crate::ByteSize;
use crate::gpu::rig::{Rig, contiguous_walk, timed};

pub(super) fn measure(rig: &Rig, bench: &Bench) -> Result<Vec<Figure>, GpuError> {
    let mut figures = Vec::new();
    for &fragment in &bench.fragments {
        figures.extend(gather(rig, bench, fragment)?);
    }
    figures.extend(permutes(rig, bench)?);
    figures.extend(evidence(rig, bench)?);
    Ok(figures)
}

/// Seconds by the GPU's clock for what `queue` queues in the rig's stream.
pub(super) fn on_gpu(rig: &Rig, queue: impl FnOnce() -> Result<(), GpuError>) -> Result<f64, GpuError> {
    let current = rig.enter()?;
    let (start, end) = (Event::new(&current)?, Event::new(&current)?);
    start.record(&rig.stream)?;
    queue()?;
    end.record(&rig.stream)?;
    rig.stream.synchronize()?;
    Ok(end.seconds_since(&start)?)
}

/// The limit: one copy of so many bytes.
fn plain_copy(rig: &Rig, to: &DeviceBuffer, from: &DeviceBuffer, bytes: usize) -> Result<f64, GpuError> {
    on_gpu(rig, || {
        // SAFETY: callers give buffers of at least so many bytes; `on_gpu` waits.
        Ok(unsafe { rig.stream.copy_on_device(&rig.enter()?, to.at(), from.at(), bytes) }?)
    })
}

/// Paged to contiguous, by all multiprocessors.
fn gather(rig: &Rig, bench: &Bench, fragment: ByteSize) -> Result<Vec<Figure>, GpuError> {
    let scene = Scene::new(rig, bench.bytes.0 as usize, fragment.0 as usize)?;
    let target = rig.allocate(scene.bytes())?;
    let layout = scene.placement.layout();
    let nest = Nest::between(&BlockView::in_pool(&scene.placement), &BlockView::page_first(layout))?;
    let table = rig.table(&scene.buffers())?;
    let block = |at: u32| kv_block {
        src: scene.placement.block_offset(SlotId(at)).unwrap_or(0) as u64,
        dst: target.at().offset(at as usize * scene.block_bytes()).0,
    };
    let blocks: Vec<kv_block> = (0..scene.placement.num_blocks()).map(block).collect();
    let descriptors = rig.descriptors(&blocks)?;
    let walk = |bulk: bool| {
        let (nest, table, descriptors, count) = (&nest, &table, &descriptors, blocks.len());
        move || {
            let from = Side::Pool { table: table.at() };
            let walk = Walk { from, ..contiguous_walk(nest, descriptors, count) };
            on_gpu(rig, || {
                // SAFETY: blocks of the pool and of the target, which live until `on_gpu` has waited.
                Ok(unsafe {
                    rig.kernels.copy(&rig.enter()?, &rig.stream, &walk, rig.gpu().multiprocessors, bulk)
                }?)
            })
        }
    };
    let ctas = rig.gpu().multiprocessors;
    let mut contenders = vec![
        Contender::new(LIMIT, ctas, || plain_copy(rig, &target, &scene.memory, scene.bytes())),
        Contender::new("kernel", ctas, walk(false)),
    ];
    if rig.kernels.has_bulk() && nest.alignment() == 16 {
        contenders.push(Contender::new("bulk", ctas, walk(true)));
    }
    let work = Work { name: "d2d", fragment: Some(fragment), bytes: scene.bytes() };
    take_turns(&work, bench.rounds, &mut contenders)
}

/// Names of the permutes, for the marks.
pub(super) const PERMUTE: &str = "permute ";

/// Contiguous blocks from one order to another, or one rank's share of them, by all multiprocessors.
fn permutes(rig: &Rig, bench: &Bench) -> Result<Vec<Figure>, GpuError> {
    let layout = |kv_heads, order, kv| {
        let heads = Attention::Heads { kv_heads, head_dim: 128, order, kv };
        KvLayout::new(32, heads, DType::Bf16, Tokens(16))
    };
    let nhd = layout(8, HeadOrder::Nhd, KvOrder::Split)?;
    let hnd = layout(8, HeadOrder::Hnd, KvOrder::Split)?;
    let fused = layout(8, HeadOrder::Nhd, KvOrder::Fused)?;
    let (half_nhd, half_hnd) =
        (layout(4, HeadOrder::Nhd, KvOrder::Split)?, layout(4, HeadOrder::Hnd, KvOrder::Split)?);
    let view = BlockView::page_first;
    let cases = [
        ("NHD to HND", view(&nhd), view(&hnd), hnd),
        ("HND to NHD", view(&hnd), view(&nhd), nhd),
        ("split to fused K and V", view(&nhd), view(&fused), fused),
        ("NHD to half of the heads", view(&nhd).heads(&nhd, 4..8)?, view(&half_nhd), half_nhd),
        ("NHD to half of the heads, HND", view(&nhd).heads(&nhd, 4..8)?, view(&half_hnd), half_hnd),
    ];
    let whole = nhd.bytes_per_block();
    let count = (bench.bytes.0 as usize / whole).max(1);
    let memory = [rig.allocate(count * whole)?, rig.allocate(count * whole)?];
    for (seed, buffer) in (0..).zip(&memory) {
        rig.fill(buffer, seed)?;
    }
    let mut figures = Vec::new();
    for (name, from, to, moved) in cases {
        let nest = Nest::between(&from, &to)?;
        let descriptors = block_pairs(rig, &nest, &memory, count, [whole, moved.bytes_per_block()])?;
        let walk = contiguous_walk(&nest, &descriptors, count);
        let bytes = count * moved.bytes_per_block();
        let ctas = rig.gpu().multiprocessors;
        let run = |bulk: bool| {
            let walk = &walk;
            move || {
                on_gpu(rig, || {
                    // SAFETY: blocks of the two buffers, which live until `on_gpu` has waited.
                    Ok(unsafe { rig.kernels.copy(&rig.enter()?, &rig.stream, walk, ctas, bulk) }?)
                })
            }
        };
        let mut contenders = vec![
            Contender::new(LIMIT, ctas, || plain_copy(rig, &memory[1], &memory[0], bytes)),
            Contender::new("kernel", ctas, run(false)),
        ];
        if rig.kernels.has_bulk() && walk.vector == 16 {
            contenders.push(Contender::new("bulk", ctas, run(true)));
        }
        let fragment = Some(ByteSize(nest.run_bytes() as u64));
        let work = Work { name: &format!("{PERMUTE}{name}"), fragment, bytes };
        figures.extend(take_turns(&work, bench.rounds, &mut contenders)?);
    }
    Ok(figures)
}

fn block_pairs(
    rig: &Rig,
    nest: &Nest,
    memory: &[DeviceBuffer; 2],
    count: usize,
    steps: [usize; 2],
) -> Result<PinnedBuffer, GpuError> {
    let (from, to) = nest.starts();
    let pair = |at: usize| kv_block {
        src: memory[0].at().offset(at * steps[0] + from).0,
        dst: memory[1].at().offset(at * steps[1] + to).0,
    };
    Ok(rig.descriptors(&(0..count).map(pair).collect::<Vec<_>>())?)
}

/// Zeroing and digests of all blocks of a device, end to end.
fn evidence(rig: &Rig, bench: &Bench) -> Result<Vec<Figure>, GpuError> {
    let mut figures = Vec::new();
    let sizes = [bench.fragments.first(), bench.fragments.last()];
    for &fragment in sizes.into_iter().flatten() {
        let scene = Scene::new(rig, bench.bytes.0 as usize, fragment.0 as usize)?;
        let other = rig.allocate(scene.bytes())?;
        let over = scene.contender(None)?;
        let blocks: Vec<SlotId> = (0..scene.placement.num_blocks()).map(SlotId).collect();
        let run = |work: &dyn Fn() -> Result<(), GpuError>| timed(work).map(|((), seconds)| seconds);
        let mut contenders = [
            Contender::new(LIMIT, 0, || plain_copy(rig, &other, &scene.memory, scene.bytes())),
            Contender::new("zero", 0, || run(&|| Ok(over.device.zero(&blocks)?))),
            Contender::new("digest", 0, || run(&|| Ok(over.device.digest(&blocks).map(drop)?))),
        ];
        let work = Work { name: "evidence", fragment: Some(fragment), bytes: scene.bytes() };
        figures.extend(take_turns(&work, bench.rounds, &mut contenders)?);
    }
    Ok(figures)
}
