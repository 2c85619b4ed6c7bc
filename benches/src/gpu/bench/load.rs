//! Loads that somebody waits for: alone, behind write-backs, layer by layer; and opening a device.

use std::time::Instant;

use kv_core::ids::JobId;
use kv_core::job::Urgency;
use kv_cuda::Direction::{ToDevice, ToHost};
use kv_cuda::{BlockCopy, Device};

use super::figure::{Figure, plain};
use super::scene::Scene;
use super::{Bench, GpuError};
use crate::gpu::rig::{Rig, timed, wait_for};

/// Bytes of the write-backs that a demand load meets.
const WRITE_BACKS: usize = 200_000_000;
/// A block of 25 layers of 2 KiB: 50 KB.
const SMALL: (usize, usize) = (2 << 10, 25 * (2 << 10));
/// What the two figures are called, for the marks.
pub(super) const DEMAND: &str = "a demand load of 50 KB";
pub(super) const ALONE: &str = "alone";
/// Loads of one round, alone.
const REPEATED: usize = 20;

pub(super) fn measure(rig: &Rig, bench: &Bench) -> Result<Vec<Figure>, GpuError> {
    let mut figures = demand(rig, bench)?;
    figures.extend(layers(rig, bench)?);
    figures.extend(opening(rig, bench)?);
    Ok(figures)
}

fn demand(rig: &Rig, bench: &Bench) -> Result<Vec<Figure>, GpuError> {
    let (fragment, block) = SMALL;
    // No more than all copies have, so that a small run stays small.
    let behind = WRITE_BACKS.min(2 * bench.bytes.0 as usize);
    let scene = Scene::of_blocks(rig, behind + block, fragment, block)?;
    let over = scene.contender(None)?;
    let mut stores = scene.copies(ToHost);
    let last = stores.pop().map(|copy| BlockCopy { direction: ToDevice, ..copy });
    let Some(load) = last else { return Ok(Vec::new()) };
    let (mut alone, mut overtaking) = (Vec::new(), Vec::new());
    for round in 0..=bench.rounds {
        for _ in 0..REPEATED {
            let seconds = over.run(&[&[load]])?;
            if round > 0 {
                alone.push(seconds * 1e6);
            }
        }
        // SAFETY: every copy has its own block and span, and nobody looks at either before the end.
        unsafe { over.device.submit(&stores, Urgency::WriteBack) }?;
        let start = Instant::now();
        // SAFETY: as above.
        unsafe { over.device.submit(&[load], Urgency::Demand) }?;
        let mut left = stores.len() + 1;
        loop {
            left -= 1;
            if wait_for(&over.completions, 1)? == [JobId(load.job.0)] {
                break;
            }
        }
        if round > 0 {
            overtaking.push(start.elapsed().as_secs_f64() * 1e6);
        }
        wait_for(&over.completions, left)?;
    }
    let behind = format!("behind {} MB of write-backs", stores.len() * block / 1_000_000);
    let figures = [plain(DEMAND, ALONE, "us", alone), plain(DEMAND, &behind, "us", overtaking)];
    Ok(figures.into_iter().flatten().collect())
}

/// When the first layer is there, when the last, and when all would be without layers.
fn layers(rig: &Rig, bench: &Bench) -> Result<Vec<Figure>, GpuError> {
    let scene = Scene::new(rig, bench.bytes.0 as usize, 64 << 10)?;
    let over = scene.contender(None)?;
    let loads = scene.copies(ToDevice);
    let layers = scene.placement.layout().layers();
    let (mut whole, mut first, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=bench.rounds {
        let seconds = over.run(&[&loads])?;
        let start = Instant::now();
        // SAFETY: every copy has its own block and span, and nobody looks at either before the end.
        let progress = unsafe { over.device.submit_by_layer(&loads, Urgency::Demand) }?;
        progress.wait(0)?;
        let to_first = start.elapsed().as_secs_f64();
        progress.wait(layers - 1)?;
        let to_last = start.elapsed().as_secs_f64();
        wait_for(&over.completions, loads.len())?;
        if round > 0 {
            whole.push(seconds * 1e6);
            first.push(to_first * 1e6);
            last.push(to_last * 1e6);
        }
    }
    let work = format!("a load of {} MB, {layers} layers", scene.bytes() / 1_000_000);
    let figures = [
        plain(&work, "as a whole", "us", whole),
        plain(&work, "by layers: the first is there", "us", first),
        plain(&work, "by layers: the last is there", "us", last),
    ];
    Ok(figures.into_iter().flatten().collect())
}

/// What measuring the device adds to opening it.
fn opening(rig: &Rig, bench: &Bench) -> Result<Vec<Figure>, GpuError> {
    let scene = Scene::new(rig, 4 << 20, 64 << 10)?;
    let known = crate::gpu::methods::every(rig).first().copied();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        with.push(timed(|| scene.contender(None))?.1 * 1e6);
        without.push(timed(|| scene.contender(known))?.1 * 1e6);
    }
    let figures = [
        plain("opening a device", "measured", "us", with),
        plain("opening a device", "with a calibration given", "us", without),
    ];
    Ok(figures.into_iter().flatten().collect())
}
