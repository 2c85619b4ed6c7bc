//! Between orders of a block, and between tensor-parallel shares: the copy kernels on their own.

use std::ops::Range;

use kv_core::ids::SlotId;
use kv_core::layout::{
    Arrangement, Attention, BlockView, HeadOrder, KvLayout, KvOrder, Nest, Placement, Shard,
};
use kv_cuda::cuda::{Side, Walk};
use kv_cuda::kernels::args::kv_block;

use super::{Case, Check, Done, Scale};
use crate::SplitMix64;
use crate::gpu::GpuError;
use crate::gpu::mirror::Mirror;
use crate::gpu::rig::Rig;
use crate::gpu::shapes;

pub(super) fn cases<'a>(check: &Check) -> Vec<Case<'a>> {
    let scale = check.scale;
    let drawn = |name: &'static str, share: bool| {
        check.seeds().map(move |seed| Case {
            part: "permutes",
            name: name.to_owned(),
            seed,
            run: Box::new(move |rig: &Rig, rng: &mut SplitMix64| permute(rig, rng, scale, share)),
        })
    };
    drawn("between drawn orders", false).chain(drawn("between tensor-parallel shares", true)).collect()
}

/// One side of a copy: blocks of `layout`, of which only `heads` take part.
struct End {
    pool: Mirror,
    heads: Option<Range<u32>>,
    /// As a pool of a runtime, or as blocks each at an address of its own.
    contiguous: bool,
}

impl End {
    fn draw(
        rig: &Rig,
        rng: &mut SplitMix64,
        layout: KvLayout,
        blocks: u32,
        heads: Option<Range<u32>>,
    ) -> Result<Self, GpuError> {
        let contiguous = rng.once_in(2);
        let placement = if contiguous {
            Placement::packed(layout, blocks, Arrangement::BlockOutermost)?
        } else {
            shapes::draw_placement(rng, layout, blocks)?
        };
        let shift = if rng.once_in(2) { 0 } else { 1 << rng.below(5) };
        Ok(Self { pool: Mirror::new(rig, placement, shift, rng)?, heads, contiguous })
    }

    fn layout(&self) -> &KvLayout {
        self.pool.placement().layout()
    }

    fn view(&self) -> Result<BlockView, GpuError> {
        let view = match self.contiguous {
            true => BlockView::page_first(self.layout()),
            false => BlockView::in_pool(self.pool.placement()),
        };
        Ok(match &self.heads {
            Some(heads) => view.heads(self.layout(), heads.clone())?,
            None => view,
        })
    }

    /// What a kernel is told of a block: its address, or its offset in the buffers.
    fn block(&self, block: SlotId, start: usize) -> u64 {
        let offset = self.pool.placement().block_offset(block).unwrap_or(0) + start;
        match (self.contiguous, self.pool.addresses().first()) {
            (true, Some(first)) => first.offset(offset).0,
            _ => offset as u64,
        }
    }

    /// First byte, page-first, of the vector of these indices of those that take part.
    fn offset(&self, [layer, plane, token, head]: [usize; 4]) -> usize {
        let layout = self.layout();
        let (tokens, vector) = (layout.tokens_per_block().0 as usize, vector_bytes(layout));
        let head = head + self.heads.as_ref().map_or(0, |heads| heads.start as usize);
        let vector_index = match layout.attention() {
            Attention::Latent { .. } => token,
            Attention::Heads { kv_heads, order, kv, .. } => {
                let heads = kv_heads as usize;
                let cell = match order {
                    HeadOrder::Nhd => token * heads + head,
                    HeadOrder::Hnd => head * tokens + token,
                };
                match kv {
                    KvOrder::Split => plane * tokens * heads + cell,
                    KvOrder::Fused => cell * 2 + plane,
                }
            }
        };
        layer * layout.bytes_per_layer() + vector_index * vector
    }

    /// How many layers, planes, tokens and heads take part.
    fn counts(&self) -> [usize; 4] {
        let layout = self.layout();
        let (planes, heads) = match layout.attention() {
            Attention::Latent { .. } => (1, 1),
            Attention::Heads { kv_heads, .. } => (2, kv_heads),
        };
        let heads = self.heads.as_ref().map_or(heads, |heads| heads.end - heads.start);
        [layout.layers() as usize, planes, layout.tokens_per_block().0 as usize, heads as usize]
    }
}

fn vector_bytes(layout: &KvLayout) -> usize {
    let elements = match layout.attention() {
        Attention::Latent { dim } => dim,
        Attention::Heads { head_dim, .. } => head_dim,
    };
    elements as usize * layout.dtype().bytes()
}

/// The same block in another order.
fn reordered(rng: &mut SplitMix64, layout: &KvLayout) -> Result<KvLayout, GpuError> {
    let attention = match layout.attention() {
        Attention::Heads { kv_heads, head_dim, .. } => Attention::Heads {
            kv_heads,
            head_dim,
            order: if rng.once_in(2) { HeadOrder::Nhd } else { HeadOrder::Hnd },
            kv: if rng.once_in(2) { KvOrder::Split } else { KvOrder::Fused },
        },
        latent @ Attention::Latent { .. } => latent,
    };
    Ok(KvLayout::new(layout.layers(), attention, layout.dtype(), layout.tokens_per_block())?)
}

/// The layout, one rank's share of it, and the heads that the share has.
fn shared(rng: &mut SplitMix64, whole: &KvLayout) -> Result<(KvLayout, Option<Range<u32>>), GpuError> {
    let Attention::Heads { kv_heads, .. } = whole.attention() else { return Ok((*whole, None)) };
    let divisors: Vec<u32> = (1..=kv_heads).filter(|ranks| kv_heads % ranks == 0).collect();
    let ranks = divisors[rng.below(divisors.len() as u64) as usize];
    let shard = Shard::new(rng.below(u64::from(ranks)) as u32, ranks)?;
    Ok((whole.shard(shard)?, Some(shard.heads(kv_heads)?)))
}

fn permute(rig: &Rig, rng: &mut SplitMix64, scale: Scale, share: bool) -> Result<Done, GpuError> {
    let whole = shapes::draw_layout(rng, scale)?;
    let num_blocks = shapes::draw_blocks(rng, &whole, scale);
    let (part, heads) = if share { shared(rng, &whole)? } else { (whole, None) };
    let part = reordered(rng, &part)?;
    let mut ends =
        [End::draw(rig, rng, whole, num_blocks, heads)?, End::draw(rig, rng, part, num_blocks, None)?];
    if rng.once_in(2) {
        ends.reverse();
    }
    let [from, to] = &mut ends;
    let mut nest = Nest::between(&from.view()?, &to.view()?)?;
    // Kernels may walk in the order of either side.
    if rng.once_in(2) {
        nest = Nest::between(&to.view()?, &from.view()?)?.swapped();
    }
    let mut targets: Vec<SlotId> = (0..num_blocks).map(SlotId).collect();
    rng.shuffle(&mut targets);
    let pairs: Vec<(SlotId, SlotId)> = (0..num_blocks).map(SlotId).zip(targets).collect();
    let (from_start, to_start) = nest.starts();
    let descriptor = |&(source, target): &(SlotId, SlotId)| kv_block {
        src: from.block(source, from_start),
        dst: to.block(target, to_start),
    };
    let blocks: Vec<kv_block> = pairs.iter().map(descriptor).collect();
    let descriptors = rig.descriptors(&blocks)?;
    let tables = [rig.table(&from.pool.addresses())?, rig.table(&to.pool.addresses())?];
    let side = |end: &End, table: usize| match end.contiguous {
        true => Side::Contiguous,
        false => Side::Pool { table: tables[table].at() },
    };
    let mut bits = nest.alignment() as u64;
    for block in &blocks {
        bits |= block.src | block.dst;
    }
    for at in from.pool.addresses().iter().chain(&to.pool.addresses()) {
        bits |= at.0;
    }
    let vector = 1 << bits.trailing_zeros().min(4);
    // Half the time in two launches, as a transfer that is cut into pieces.
    let cut = if rng.once_in(2) { nest.runs() } else { rng.below(nest.runs() as u64 + 1) as usize };
    let bulk = rig.kernels.has_bulk() && rng.once_in(2);
    let ctas = if rng.once_in(3) { rig.gpu().multiprocessors } else { rng.between(1, 4) as u32 };
    let current = rig.enter()?;
    for runs in [0..cut, cut..nest.runs()].into_iter().filter(|runs| !runs.is_empty()) {
        let walk = Walk {
            nest: &nest,
            from: side(from, 0),
            to: side(to, 1),
            runs,
            vector,
            blocks: descriptors.device_at(),
            num_blocks: blocks.len(),
        };
        // SAFETY: the walk visits blocks of both pools, which live until the stream was waited for.
        unsafe { rig.kernels.copy(&current, &rig.stream, &walk, ctas, bulk) }?;
    }
    rig.stream.synchronize()?;

    let mut bytes = 0;
    for &(source, target) in &pairs {
        let (source, mut block) = (from.pool.block(source), to.pool.block(target));
        bytes += move_block(from, to, &source, &mut block);
        to.pool.set_block(target, &block);
    }
    for end in [&*from, &*to] {
        end.pool.check(rig).map_err(|error| match error {
            GpuError::Wrong(what) => {
                GpuError::Wrong(format!("{what}; vectors of {vector}, {ctas} CTAs, {nest:?}"))
            }
            error => error,
        })?;
    }
    let kernel = if bulk && vector == 16 { "kv_copy_bulk" } else { "kv_copy" };
    let what = if share { "shares of heads" } else { "orders" };
    Ok(Done { what: format!("{kernel}, {what}"), bytes })
}

/// Vector by vector. Says how many bytes.
fn move_block(from: &End, to: &End, source: &[u8], target: &mut [u8]) -> u64 {
    let vector = vector_bytes(from.layout());
    let [layers, planes, tokens, heads] = from.counts();
    for layer in 0..layers {
        for plane in 0..planes {
            for token in 0..tokens {
                for head in 0..heads {
                    let index = [layer, plane, token, head];
                    target[to.offset(index)..][..vector]
                        .copy_from_slice(&source[from.offset(index)..][..vector]);
                }
            }
        }
    }
    (layers * planes * tokens * heads * vector) as u64
}
