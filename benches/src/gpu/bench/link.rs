//! Between host and device, by every method.

use kv_cuda::Direction::{self, ToDevice, ToHost};
use kv_cuda::driver::Submission;

use super::figure::{Contender, Figure, LIMIT, Work, take_turns};
use super::scene::{Over, Scene};
use super::{Bench, GpuError};
use crate::ByteSize;
use crate::gpu::methods;
use crate::gpu::rig::Rig;

/// Names of the ways to hand fragments to the driver without kvtier.
pub(super) const BARE: [&str; 2] = ["cuMemcpyAsync loop, bare", "cuMemcpyBatchAsync, bare"];

pub(super) fn measure(rig: &Rig, bench: &Bench, fragment: ByteSize) -> Result<Vec<Figure>, GpuError> {
    let scene = Scene::new(rig, bench.bytes.0 as usize, fragment.0 as usize)?;
    let mut devices = vec![(None, scene.contender(None)?)];
    for method in methods::every(rig) {
        devices.push((Some(method), scene.contender(Some(method))?));
    }
    let mut figures = Vec::new();
    let ways: [(&str, &[Direction]); 3] =
        [("h2d", &[ToDevice]), ("d2h", &[ToHost]), ("both", &[ToDevice, ToHost])];
    for (name, ways) in ways {
        let work = Work { name, fragment: Some(fragment), bytes: scene.bytes() };
        let mut contenders = vec![Contender::new(LIMIT, 0, || scene.contiguous(ways))];
        contenders.push(Contender::new(BARE[0], 0, || scene.fragments(ways, Submission::Loop)));
        if rig.context.driver().has_batch_copies() {
            contenders.push(Contender::new(BARE[1], 0, || scene.fragments(ways, Submission::Batch)));
        }
        for (method, over) in &devices {
            let blocks = scene.placement.num_blocks() as usize / ways.len();
            // A method that such a layout does not allow has no figure.
            if method.is_none() || over.obeys(ways, blocks) {
                let ctas = match method {
                    Some(method) => method.ctas(),
                    None => most_ctas(over, ways, blocks),
                };
                let halves = halves(&scene, ways);
                contenders.push(Contender::new(methods::label(*method), ctas, move || {
                    over.run(&halves.iter().map(Vec::as_slice).collect::<Vec<_>>())
                }));
            }
        }
        figures.extend(take_turns(&work, bench.rounds, &mut contenders)?);
    }
    Ok(figures)
}

/// Blocks of threads that a device which chooses would take now.
fn most_ctas(over: &Over, ways: &[Direction], blocks: usize) -> u32 {
    let of = |&way: &Direction| over.device.explain(way, super::scene::urgency(way), blocks).chosen.ctas();
    ways.iter().map(of).max().unwrap_or(0)
}

/// All blocks, dealt to the ways.
fn halves(scene: &Scene<'_>, ways: &[Direction]) -> Vec<Vec<kv_cuda::BlockCopy>> {
    let deal = |(number, &way): (usize, &Direction)| {
        let copies = scene.copies(way);
        let each = copies.len().div_ceil(ways.len());
        copies.chunks(each).nth(number).map(<[_]>::to_vec).unwrap_or_default()
    };
    ways.iter().enumerate().map(deal).collect()
}
