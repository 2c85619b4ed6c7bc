//! Zeroing, digests and single blocks, against the processor; in a pool of kvtier's own, too.

use kv_core::ids::SlotId;
use kv_core::layout::Placement;
use kv_cuda::cuda::{CopyTuning, PoolMemory};
use kv_cuda::{BlockDigest, Device};

use super::{Case, Check, Done, Scale};
use crate::SplitMix64;
use crate::completions::Completions;
use crate::gpu::GpuError;
use crate::gpu::host::{HostBlocks, compare};
use crate::gpu::mirror::Mirror;
use crate::gpu::rig::Rig;
use crate::gpu::shapes;

const PART: &str = "evidence";

pub(super) fn cases<'a>(check: &Check) -> Vec<Case<'a>> {
    let scale = check.scale;
    let drawn = check.seeds().map(move |seed| Case {
        part: PART,
        name: "a drawn layout".to_owned(),
        seed,
        run: Box::new(move |rig, rng| {
            let placement = draw(rng, scale)?;
            zero_and_digest(rig, rng, placement)
        }),
    });
    let own = Case {
        part: PART,
        name: "a pool of kvtier's own".to_owned(),
        seed: check.seed,
        run: Box::new(move |rig, rng| {
            let placement = draw(rng, scale)?;
            own_pool(rig, rng, placement)
        }),
    };
    drawn.chain([own]).collect()
}

fn draw(rng: &mut SplitMix64, scale: Scale) -> Result<Placement, GpuError> {
    let layout = shapes::draw_layout(rng, scale)?;
    let blocks = shapes::draw_blocks(rng, &layout, scale);
    Ok(shapes::draw_placement(rng, layout, blocks)?)
}

/// What a digest of these bytes must be.
fn digest_of(bytes: &[u8]) -> BlockDigest {
    let nonzero = bytes.iter().filter(|&&byte| byte != 0).count() as u64;
    BlockDigest { checksum: kv_core::payload_checksum(bytes), nonzero }
}

fn compare_digests(pool: &Mirror, blocks: &[SlotId], found: &[BlockDigest]) -> Result<(), GpuError> {
    if blocks.len() != found.len() {
        return Err(GpuError::wrong("not one digest for each block"));
    }
    for (block, found) in blocks.iter().zip(found) {
        let expected = digest_of(&pool.block(*block));
        if expected != *found {
            return Err(GpuError::wrong(format!(
                "the digest of {block:?} is {found:?} instead of {expected:?}"
            )));
        }
    }
    Ok(())
}

/// Digests all blocks, erases some, digests all again, and looks at every byte.
fn zero_and_digest(rig: &Rig, rng: &mut SplitMix64, placement: Placement) -> Result<Done, GpuError> {
    let shift = if rng.once_in(2) { 0 } else { rng.below(16) as usize };
    let mut pool = Mirror::new(rig, placement, shift, rng)?;
    let host = HostBlocks::new(1, placement.layout().bytes_per_block(), 0, 0, rng)?;
    let (sink, _completions) = Completions::channel();
    let device = rig.device(placement, pool.borrowed(), host.memory(), sink, None)?;
    let mut blocks: Vec<SlotId> = (0..placement.num_blocks()).map(SlotId).collect();
    rng.shuffle(&mut blocks);
    compare_digests(&pool, &blocks, &device.digest(&blocks)?)?;
    let erased = &blocks[..blocks.len().div_ceil(2)];
    device.zero(erased)?;
    let zeros = vec![0; placement.layout().bytes_per_block()];
    for &block in erased {
        pool.set_block(block, &zeros);
    }
    compare_digests(&pool, &blocks, &device.digest(&blocks)?)?;
    drop(device);
    pool.check(rig)?;
    let bytes = blocks.len() * zeros.len();
    Ok(Done { what: "kv_zero, kv_digest_blocks".to_owned(), bytes: bytes as u64 })
}

/// A pool that kvtier allocates is empty, and gives back what is put in. The device measures itself, as it
/// does for a runtime.
fn own_pool(rig: &Rig, rng: &mut SplitMix64, placement: Placement) -> Result<Done, GpuError> {
    let block_bytes = placement.layout().bytes_per_block();
    let host = HostBlocks::new(1, block_bytes, 0, 0, rng)?;
    let (sink, _completions) = Completions::channel();
    let device =
        rig.tuned_device(placement, PoolMemory::Allocate, host.memory(), sink, CopyTuning::default())?;
    let blocks: Vec<SlotId> = (0..placement.num_blocks()).map(SlotId).collect();
    if device.digest(&blocks)?.iter().any(|digest| digest.nonzero > 0) {
        return Err(GpuError::wrong("a new pool holds bytes of somebody else"));
    }
    let mut written = Vec::new();
    for &block in &blocks {
        let mut bytes = vec![0; block_bytes];
        rng.fill(&mut bytes);
        device.upload(block, &bytes)?;
        written.push(bytes);
    }
    let mut found = vec![0; block_bytes];
    for (block, bytes) in blocks.iter().zip(&written) {
        device.download(*block, &mut found)?;
        compare(bytes, &found, |at| format!("byte {at} of {block:?}"))?;
    }
    Ok(Done { what: "upload, download".to_owned(), bytes: (2 * blocks.len() * block_bytes) as u64 })
}
