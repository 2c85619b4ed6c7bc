//! Layouts to check: those of runtimes, and drawn ones.

use kv_core::layout::{
    Arrangement, Attention, DType, HeadOrder, KvLayout, KvOrder, LayoutError, Placement, Step, Strides,
};
use kv_core::units::Tokens;

use crate::SplitMix64;

/// How much is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As much as a processor that plays the GPU does in seconds.
    Quick,
    /// Whole models' blocks, up to 10,000 of them.
    Full,
}

impl Scale {
    /// Bytes of a drawn pool at most.
    const fn pool_bytes(self) -> usize {
        match self {
            Self::Quick => 128 << 10,
            Self::Full => 64 << 20,
        }
    }

    /// Blocks of a drawn pool at most.
    const fn blocks(self) -> u64 {
        match self {
            Self::Quick => 600,
            Self::Full => 10_000,
        }
    }

    fn known(self, layers: u32) -> (u32, u32) {
        match self {
            Self::Quick => (layers.min(2), 4),
            Self::Full => (layers, 48),
        }
    }
}

/// The pools of common runtimes and models.
pub(crate) fn known(scale: Scale) -> Result<Vec<(&'static str, Placement)>, LayoutError> {
    use Arrangement::{BlockOuter, BlockOutermost, KvOuter, SeparateKv};
    use HeadOrder::{Hnd, Nhd};
    use KvOrder::{Fused, Split};
    let heads = |kv_heads, order, kv| Attention::Heads { kv_heads, head_dim: 128, order, kv };
    let latent = |dim| Attention::Latent { dim };
    let all = [
        (
            "[2, blocks, 16, 8, 128] bf16, 32 layers (vLLM, FlashAttention)",
            32,
            heads(8, Nhd, Split),
            DType::Bf16,
            16,
            KvOuter,
        ),
        (
            "[blocks, 2, 16, 8, 128] bf16, 32 layers (FlashInfer)",
            32,
            heads(8, Nhd, Split),
            DType::Bf16,
            16,
            BlockOuter,
        ),
        (
            "[blocks, 2, 8, 16, 128] bf16, 32 layers (FlashInfer, HND)",
            32,
            heads(8, Hnd, Split),
            DType::Bf16,
            16,
            BlockOuter,
        ),
        (
            "[blocks, 8, 16, 2, 128] fp8, 32 layers (vLLM, fused, HND)",
            32,
            heads(8, Hnd, Fused),
            DType::Fp8E4M3,
            16,
            BlockOuter,
        ),
        (
            "K and V [blocks x 64, 1, 128] bf16, 80 layers (SGLang, tensor-parallel 8)",
            80,
            heads(1, Nhd, Split),
            DType::Bf16,
            64,
            SeparateKv,
        ),
        ("[blocks, 64, 576] bf16, 61 layers (DeepSeek MLA)", 61, latent(576), DType::Bf16, 64, BlockOuter),
        (
            "[blocks, 64, 656] fp8, 61 layers (DeepSeek sparse MLA)",
            61,
            latent(656),
            DType::Fp8E4M3,
            64,
            BlockOuter,
        ),
        (
            "[blocks, 64, 132] fp8, 61 layers (DeepSeek indexer)",
            61,
            latent(132),
            DType::Fp8E4M3,
            64,
            BlockOuter,
        ),
        (
            "[blocks, layers, 2, 16, 8, 128] bf16, 32 layers (one tensor)",
            32,
            heads(8, Nhd, Split),
            DType::Bf16,
            16,
            BlockOutermost,
        ),
    ];
    let place = |(name, layers, attention, dtype, tokens, arrangement)| {
        let (layers, blocks) = scale.known(layers);
        let layout = KvLayout::new(layers, attention, dtype, Tokens(tokens))?;
        Ok((name, Placement::packed(layout, blocks, arrangement)?))
    };
    all.into_iter().map(place).collect()
}

fn pick<T: Copy>(rng: &mut SplitMix64, from: &[T]) -> T {
    from[rng.below(from.len() as u64) as usize]
}

/// A block's shape: as models have them, or odd.
pub(crate) fn draw_layout(rng: &mut SplitMix64, scale: Scale) -> Result<KvLayout, LayoutError> {
    let layers = rng.skewed(1, if scale == Scale::Quick { 4 } else { 32 }) as u32;
    if rng.once_in(3) {
        let heads = Attention::Heads {
            kv_heads: pick(rng, &[1, 2, 4, 8]),
            head_dim: pick(rng, &[64, 128]),
            order: pick(rng, &[HeadOrder::Nhd, HeadOrder::Hnd]),
            kv: pick(rng, &[KvOrder::Split, KvOrder::Fused]),
        };
        return KvLayout::new(layers, heads, DType::Bf16, Tokens(16));
    }
    let dtype = pick(rng, &[DType::Bf16, DType::F16, DType::Fp8E4M3, DType::Fp8E5M2, DType::F32]);
    let attention = if rng.once_in(4) {
        Attention::Latent { dim: pick(rng, &[1, 3, 7, 16, 64, 132, 576, 656]) }
    } else {
        Attention::Heads {
            kv_heads: pick(rng, &[1, 2, 3, 4, 8]),
            head_dim: pick(rng, &[1, 2, 3, 8, 16, 40, 64, 80, 128]),
            order: pick(rng, &[HeadOrder::Nhd, HeadOrder::Hnd]),
            kv: pick(rng, &[KvOrder::Split, KvOrder::Fused]),
        }
    };
    let tokens = pick(rng, &[1, 2, 3, 5, 16, 32, 64]);
    KvLayout::new(layers, attention, dtype, Tokens(tokens))
}

/// How many blocks of that layout a drawn pool has.
pub(crate) fn draw_blocks(rng: &mut SplitMix64, layout: &KvLayout, scale: Scale) -> u32 {
    let most = (scale.pool_bytes() / layout.bytes_per_block()).max(1) as u64;
    rng.skewed(1, scale.blocks()).min(most) as u32
}

/// A pool of that many such blocks: packed as some runtime packs it, or with padding.
pub(crate) fn draw_placement(
    rng: &mut SplitMix64,
    layout: KvLayout,
    blocks: u32,
) -> Result<Placement, LayoutError> {
    if rng.once_in(3) {
        return Placement::strided(layout, blocks, draw_strides(rng, &layout, blocks));
    }
    let packed = Placement::packed(layout, blocks, pick(rng, &Arrangement::ALL));
    // An arrangement may be one that the layout does not have; this one all have.
    packed.or_else(|_| Placement::packed(layout, blocks, Arrangement::BlockOuter))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    Layer,
    Plane,
    Block,
    Token,
    Head,
}

/// Axes of a layer in the order that the layout demands, blocks and layers anywhere among them, and gaps.
fn draw_strides(rng: &mut SplitMix64, layout: &KvLayout, blocks: u32) -> Strides {
    let tokens = (Axis::Token, layout.tokens_per_block().0);
    let (mut axes, vector) = match layout.attention() {
        Attention::Heads { kv_heads, head_dim, order, kv } => {
            let (plane, heads) = ((Axis::Plane, 2), (Axis::Head, kv_heads));
            let axes = match (kv, order) {
                (KvOrder::Split, HeadOrder::Nhd) => vec![plane, tokens, heads],
                (KvOrder::Split, HeadOrder::Hnd) => vec![plane, heads, tokens],
                (KvOrder::Fused, HeadOrder::Nhd) => vec![tokens, heads, plane],
                (KvOrder::Fused, HeadOrder::Hnd) => vec![heads, tokens, plane],
            };
            (axes, head_dim)
        }
        Attention::Latent { dim } => (vec![tokens], dim),
    };
    let plane_outermost = axes.first().is_some_and(|&(axis, _)| axis == Axis::Plane);
    let (layer_apart, plane_apart) = (rng.once_in(2), plane_outermost && rng.once_in(2));
    axes.insert(rng.below(axes.len() as u64 + 1) as usize, (Axis::Block, blocks));
    axes.insert(rng.below(axes.len() as u64 + 1) as usize, (Axis::Layer, layout.layers()));
    let unit = pick(rng, &[1, 2, 4, 8, 16]);
    let mut strides = Strides { layer: Step::Buffer, plane: Step::Buffer, block: 0, token: 0, head: 0 };
    let mut inner = vector as usize * layout.dtype().bytes();
    for (axis, count) in axes.into_iter().rev() {
        if (axis == Axis::Layer && layer_apart) || (axis == Axis::Plane && plane_apart) {
            continue;
        }
        inner += rng.below(3) as usize * unit;
        match axis {
            Axis::Layer => strides.layer = Step::Bytes(inner),
            Axis::Plane => strides.plane = Step::Bytes(inner),
            Axis::Block => strides.block = inner,
            Axis::Token => strides.token = inner,
            Axis::Head => strides.head = inner,
        }
        inner *= count as usize;
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every seed gives a pool within its bounds, and together they reach what the check promises.
    #[test]
    fn drawn_pools_are_valid_and_cover_the_kinds() {
        for scale in [Scale::Quick, Scale::Full] {
            let (mut padded, mut buffers, mut most_blocks, mut widths) = (0, 0, 0, [0; 5]);
            for seed in 0..2000 {
                let mut rng = SplitMix64::new(seed);
                let layout = draw_layout(&mut rng, scale).unwrap();
                let blocks = draw_blocks(&mut rng, &layout, scale);
                let pool = draw_placement(&mut rng, layout, blocks).unwrap();
                let bytes = pool.buffers() as usize * pool.buffer_bytes();
                padded += usize::from(bytes > layout.bytes_per_block() * blocks as usize);
                buffers = buffers.max(pool.buffers());
                most_blocks = most_blocks.max(blocks);
                widths[pool.fragment_bytes().trailing_zeros().min(4) as usize] += 1;
            }
            assert!(
                padded > 200 && buffers > 4 && widths.iter().all(|&seen| seen > 20),
                "{padded} {widths:?}"
            );
            assert!(u64::from(most_blocks) > scale.blocks() / 2, "{most_blocks}");
        }
    }

    #[test]
    fn known_pools_are_valid() {
        assert_eq!(known(Scale::Quick).unwrap().len(), known(Scale::Full).unwrap().len());
    }
}
