//! Blocks in and out by every method.

use kv_core::ids::{JobId, SlotId};
use kv_core::job::Urgency;
use kv_core::layout::Placement;
use kv_cuda::cuda::Method;
use kv_cuda::{BlockCopy, Device, Direction};

use super::{Case, Check, Done, Scale};
use crate::SplitMix64;
use crate::completions::Completions;
use crate::gpu::GpuError;
use crate::gpu::host::HostBlocks;
use crate::gpu::mirror::Mirror;
use crate::gpu::rig::{Rig, wait_for};
use crate::gpu::{methods, shapes};

const PART: &str = "copies";

/// Every method on every known layout, and on drawn ones a method drawn with them.
pub(super) fn cases<'a>(check: &Check, rig: &Rig) -> Result<Vec<Case<'a>>, GpuError> {
    let methods: Vec<_> = [None].into_iter().chain(methods::every(rig).into_iter().map(Some)).collect();
    let mut cases = Vec::new();
    let scale = check.scale;
    // A quick check has each method on every third layout only.
    let stride = if scale == Scale::Quick { 3 } else { 1 };
    for (number, (name, placement)) in shapes::known(scale)?.into_iter().enumerate() {
        for &method in methods.iter().skip(number % stride).step_by(stride) {
            let label = methods::label(method);
            cases.push(Case {
                part: PART,
                name: format!("{name}, {label}"),
                seed: check.seed,
                run: Box::new(move |rig, rng| one(rig, rng, placement, 0, method)),
            });
        }
    }
    for seed in check.seeds() {
        let methods = methods.clone();
        cases.push(Case {
            part: PART,
            name: "a drawn layout".to_owned(),
            seed,
            run: Box::new(move |rig, rng| {
                let method = methods[rng.below(methods.len() as u64) as usize];
                drawn(rig, rng, scale, method)
            }),
        });
    }
    Ok(cases)
}

pub(super) fn drawn(
    rig: &Rig,
    rng: &mut SplitMix64,
    scale: Scale,
    method: Option<Method>,
) -> Result<Done, GpuError> {
    let layout = shapes::draw_layout(rng, scale)?;
    let blocks = shapes::draw_blocks(rng, &layout, scale);
    let placement = shapes::draw_placement(rng, layout, blocks)?;
    let shift = if rng.once_in(2) { 0 } else { rng.below(16) as usize };
    one(rig, rng, placement, shift, method)
}

/// Loads some blocks, some of them layer by layer, and stores others, all at once; then looks at every byte.
fn one(
    rig: &Rig,
    rng: &mut SplitMix64,
    placement: Placement,
    shift: usize,
    method: Option<Method>,
) -> Result<Done, GpuError> {
    let block_bytes = placement.layout().bytes_per_block();
    let mut pool = Mirror::new(rig, placement, shift, rng)?;
    let mut blocks: Vec<SlotId> = (0..placement.num_blocks()).map(SlotId).collect();
    rng.shuffle(&mut blocks);
    // One of the kinds even if there is one block only.
    let kinds = rng.below(3) as usize;
    let mut slots: Vec<usize> = (0..blocks.len()).collect();
    rng.shuffle(&mut slots);
    let gap = if shift == 0 { 64 } else { 1 + rng.below(64) as usize };
    let mut host = HostBlocks::new(blocks.len(), block_bytes, shift, gap, rng)?;
    let copy = |at: usize, direction| BlockCopy {
        job: JobId(at as u64),
        direction,
        device_block: blocks[at],
        host: host.span(slots[at]),
    };
    let of_kind = |kind: usize, direction| -> Vec<BlockCopy> {
        (0..blocks.len()).filter(|at| (at + kinds) % 3 == kind).map(|at| copy(at, direction)).collect()
    };
    let loads = of_kind(0, Direction::ToDevice);
    let layered = of_kind(1, Direction::ToDevice);
    let stores = of_kind(2, Direction::ToHost);

    let (sink, completions) = Completions::channel();
    let device = rig.device(placement, pool.borrowed(), host.memory(), sink, method)?;
    let explained = device.explain(Direction::ToDevice, Urgency::Demand, blocks.len());
    // SAFETY: every copy has a host span and a device block of its own, and nobody looks at either before
    // all are completed and the device is closed.
    unsafe {
        device.submit(&stores, Urgency::WriteBack)?;
        device.submit(&loads, Urgency::Demand)?;
        device.submit_by_layer(&layered, Urgency::Demand)?;
    }
    let mut done: Vec<u64> = wait_for(&completions, blocks.len())?.iter().map(|job| job.0).collect();
    drop(device);
    done.sort_unstable();
    if done != (0..blocks.len() as u64).collect::<Vec<_>>() {
        return Err(GpuError::wrong("a copy was completed twice, another never"));
    }

    for (at, &slot) in slots.iter().enumerate() {
        if (at + kinds) % 3 == 2 {
            let block = pool.block(blocks[at]);
            host.set_block(slot, &block);
        } else {
            pool.set_block(blocks[at], host.block(slot));
        }
    }
    let context = |error: GpuError| match error {
        GpuError::Wrong(what) => {
            GpuError::Wrong(format!("{what}; {placement:?}, shifted by {shift}, by {}", explained.chosen))
        }
        error => error,
    };
    pool.check(rig).map_err(context)?;
    // SAFETY: the device is closed.
    unsafe { host.check() }.map_err(context)?;
    // A layout may be too odd for the method.
    let what = match method {
        Some(_) if !explained.forced => format!("{}, then as it chooses", methods::label(method)),
        _ => methods::label(method),
    };
    Ok(Done { what, bytes: (blocks.len() * block_bytes) as u64 })
}
