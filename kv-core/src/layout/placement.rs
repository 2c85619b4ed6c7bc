//! Where the blocks of one pool lie in device memory.

use super::error::{in_range, product};
use super::fragments::{Fragments, Loop};
use super::{Attention, Axis, KvLayout, KvOrder, LayoutError};
use crate::ids::SlotId;

/// How the common runtimes arrange a packed pool. Shapes are outermost axis first; `..` stands for the
/// layer's axes in the order of the [`KvLayout`], `B` for the blocks of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// One tensor `[2, B, ..]` per layer (FlashAttention in vLLM up to the 0.2x releases).
    KvOuter,
    /// One tensor `[B, 2, ..]` per layer (FlashInfer), or `[B, ..]` for fused K and V (`LBHNC`, the default
    /// of vLLM 0.33) and for a latent (MLA in vLLM and SGLang).
    BlockOuter,
    /// Two tensors `[B, ..]` per layer, K and V (SGLang; its token axis is `B` times tokens per block).
    SeparateKv,
    /// One tensor `[B, layers, ..]` for everything (`BLHNC` of vLLM 0.33, TensorRT-LLM).
    BlockOutermost,
}

impl Arrangement {
    /// Every arrangement.
    pub const ALL: [Self; 4] = [Self::KvOuter, Self::BlockOuter, Self::SeparateKv, Self::BlockOutermost];

    const fn name(self) -> &'static str {
        match self {
            Self::KvOuter => "KvOuter",
            Self::BlockOuter => "BlockOuter",
            Self::SeparateKv => "SeparateKv",
            Self::BlockOutermost => "BlockOutermost",
        }
    }
}

/// How to get from one index of an axis to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Each index has a buffer of its own.
    Buffer,
    /// So many bytes further in the same buffer.
    Bytes(usize),
}

/// Distances in bytes between neighbours along each axis of a pool, as in a tensor's strides. They may be
/// padded. That of an axis with one index is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// Layer to layer.
    pub layer: Step,
    /// K to V.
    pub plane: Step,
    /// Block to block.
    pub block: usize,
    /// Token to token of the same block.
    pub token: usize,
    /// Head to head.
    pub head: usize,
}

impl Strides {
    pub(super) const fn of(&self, axis: Axis) -> Step {
        match axis {
            Axis::Layer => self.layer,
            Axis::Plane => self.plane,
            Axis::Block => Step::Bytes(self.block),
            Axis::Token => Step::Bytes(self.token),
            Axis::Head => Step::Bytes(self.head),
        }
    }

    const fn set(&mut self, axis: Axis, bytes: usize) {
        match axis {
            Axis::Layer => self.layer = Step::Bytes(bytes),
            Axis::Plane => self.plane = Step::Bytes(bytes),
            Axis::Block => self.block = bytes,
            Axis::Token => self.token = bytes,
            Axis::Head => self.head = bytes,
        }
    }
}

/// A pool of blocks in device memory: its buffers, and where in them each block lies.
///
/// Plain numbers; it holds no memory. All buffers of a pool have the same length.
///
/// ```
/// use kv_core::ids::SlotId;
/// use kv_core::layout::{Arrangement, Attention, DType, Fragment, HeadOrder, KvLayout, KvOrder, Placement};
/// use kv_core::units::Tokens;
///
/// let heads = Attention::Heads { kv_heads: 8, head_dim: 128, order: HeadOrder::Nhd, kv: KvOrder::Split };
/// let layout = KvLayout::new(32, heads, DType::Bf16, Tokens(16))?;
///
/// // One tensor [1000, 2, 16, 8, 128] per layer: a block is one fragment per layer.
/// let pool = Placement::packed(layout, 1000, Arrangement::BlockOuter)?;
/// let fragments: Vec<_> = pool.fragments(SlotId(3)).into_iter().flatten().collect();
/// assert_eq!(fragments.len(), 32);
/// assert_eq!(fragments[1], Fragment { buffer: 1, offset: 3 * (64 << 10), len: 64 << 10 });
///
/// // One tensor for all layers, blocks outermost: a block is one fragment.
/// let pool = Placement::packed(layout, 1000, Arrangement::BlockOutermost)?;
/// assert_eq!(pool.fragments_per_block(), 1);
/// # Ok::<(), kv_core::layout::LayoutError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    layout: KvLayout,
    num_blocks: u32,
    buffers: u32,
    buffer_bytes: usize,
    strides: Strides,
    /// Layer and the layer's axes in the order of the block's bytes. Levels that were coalesced count 1.
    loops: [Loop; 4],
    /// Bytes of a fragment; all fragments of a pool have the same length.
    run: usize,
}

impl Placement {
    /// A pool without padding, arranged as a runtime does it.
    ///
    /// # Errors
    /// No blocks, more bytes than can be addressed, or an arrangement that separates what the layout joins.
    pub fn packed(layout: KvLayout, num_blocks: u32, arrangement: Arrangement) -> Result<Self, LayoutError> {
        let separates = matches!(arrangement, Arrangement::KvOuter | Arrangement::SeparateKv);
        if separates && !matches!(layout.attention, Attention::Heads { kv: KvOrder::Split, .. }) {
            return Err(LayoutError::KvTogether { arrangement: arrangement.name() });
        }
        let [a, b, c] = layout.layer_axes();
        let (layer, block) = ((Axis::Layer, layout.layers), (Axis::Block, num_blocks));
        let outermost_first: &[_] = match arrangement {
            Arrangement::KvOuter => &[a, block, b, c],
            Arrangement::BlockOuter => &[block, a, b, c],
            Arrangement::SeparateKv => &[block, b, c],
            Arrangement::BlockOutermost => &[block, layer, a, b, c],
        };
        let mut strides = Strides { layer: Step::Buffer, plane: Step::Buffer, block: 0, token: 0, head: 0 };
        let mut inner = layout.vector_bytes();
        for &(axis, count) in outermost_first.iter().rev() {
            strides.set(axis, inner);
            inner = product("a buffer", &[inner, count as usize])?;
        }
        Self::strided(layout, num_blocks, strides)
    }

    /// A pool as its tensors' strides describe it.
    ///
    /// # Errors
    /// No blocks; strides that overlap, or that nest a layer's axes in another order than the layout does
    /// (the pool would be cut into its smallest pieces); more bytes than can be addressed.
    pub fn strided(layout: KvLayout, num_blocks: u32, strides: Strides) -> Result<Self, LayoutError> {
        in_range("num_blocks", num_blocks, 1, u32::MAX)?;
        let [a, b, c] = layout.layer_axes();
        check_order(&[a, b, c], &strides)?;
        let layer = (Axis::Layer, layout.layers);
        let buffer_bytes =
            span([layer, (Axis::Block, num_blocks), a, b, c], &strides, layout.vector_bytes())?;

        let mut run = layout.vector_bytes();
        let mut coalescing = true;
        let mut buffers = 1u32;
        let mut loops = [layer, a, b, c].map(|(axis, count)| Loop { count, step: strides.of(axis) });
        for level in loops.iter_mut().rev().filter(|level| level.count > 1) {
            coalescing &= level.step == Step::Bytes(run);
            if coalescing {
                run *= level.count as usize;
                level.count = 1;
            }
        }
        for level in loops.iter().filter(|level| level.step == Step::Buffer) {
            buffers = buffers.checked_mul(level.count).ok_or(LayoutError::TooLarge { what: "the pool" })?;
        }
        product("the pool", &[buffers as usize, buffer_bytes])?;
        Ok(Self { layout, num_blocks, buffers, buffer_bytes, strides, loops, run })
    }

    /// What each block is.
    #[must_use]
    pub const fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Blocks in the pool: slots `0..num_blocks`.
    #[must_use]
    pub const fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    /// Number of buffers.
    #[must_use]
    pub const fn buffers(&self) -> u32 {
        self.buffers
    }

    /// Bytes that each buffer must have at least.
    #[must_use]
    pub const fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Length in bytes of every fragment.
    #[must_use]
    pub const fn fragment_bytes(&self) -> usize {
        self.run
    }

    /// Number of fragments of every block.
    #[must_use]
    pub fn fragments_per_block(&self) -> usize {
        self.layout.bytes_per_block() / self.run
    }

    /// Offset of a block's first vector, the same in all buffers. `None` if the pool has no such block.
    #[must_use]
    pub fn block_offset(&self, block: SlotId) -> Option<usize> {
        (block.0 < self.num_blocks).then(|| block.0 as usize * self.strides.block)
    }

    pub(super) const fn strides(&self) -> &Strides {
        &self.strides
    }

    /// The fragments of a block in page-first order: laid end to end they are the block. No two neighbours
    /// could be one. `None` if the pool has no such block.
    #[must_use]
    pub fn fragments(&self, block: SlotId) -> Option<Fragments> {
        Some(Fragments::new(self.loops, self.run, self.block_offset(block)?))
    }
}

/// The strides must nest the axes of a layer as the layout does.
fn check_order(axes: &[(Axis, u32)], strides: &Strides) -> Result<(), LayoutError> {
    let mut outer: Option<Axis> = None;
    for &(axis, _) in axes.iter().filter(|(_, count)| *count > 1) {
        if let Some(outer) = outer {
            let nested = match (strides.of(outer), strides.of(axis)) {
                (Step::Buffer, _) => true,
                (Step::Bytes(outer), Step::Bytes(inner)) => outer > inner,
                (Step::Bytes(_), Step::Buffer) => false,
            };
            if !nested {
                return Err(LayoutError::Order { outer: outer.name(), inner: axis.name() });
            }
        }
        outer = Some(axis);
    }
    Ok(())
}

/// Bytes that the axes span in one buffer. No two indices may share a byte: sorted by stride, each axis
/// must step over all that the smaller ones occupy.
fn span(mut axes: [(Axis, u32); 5], strides: &Strides, vector: usize) -> Result<usize, LayoutError> {
    let bytes = |axis| match strides.of(axis) {
        Step::Buffer => 0,
        Step::Bytes(bytes) => bytes,
    };
    axes.sort_by_key(|&(axis, _)| bytes(axis));
    let (mut span, mut at_least) = (vector, vector);
    for (axis, count) in axes {
        if count == 1 || strides.of(axis) == Step::Buffer {
            continue;
        }
        let stride = bytes(axis);
        if stride < at_least {
            return Err(LayoutError::Overlap { axis: axis.name(), stride, at_least });
        }
        at_least = product("a buffer", &[stride, count as usize])?;
        span += at_least - stride;
    }
    Ok(span)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::{DType, Fragment, HeadOrder, Shard};
    use super::*;
    use crate::units::Tokens;

    fn attention() -> impl Strategy<Value = Attention> {
        let order = prop_oneof![Just(HeadOrder::Nhd), Just(HeadOrder::Hnd)];
        let kv = prop_oneof![Just(KvOrder::Split), Just(KvOrder::Fused)];
        prop_oneof![
            4 => (1u32..4, 1u32..4, order, kv)
                .prop_map(|(kv_heads, head_dim, order, kv)| Attention::Heads { kv_heads, head_dim, order, kv }),
            1 => (1u32..6).prop_map(|dim| Attention::Latent { dim }),
        ]
    }

    fn layout() -> impl Strategy<Value = KvLayout> {
        let dtype = prop_oneof![Just(DType::Fp8E4M3), Just(DType::Bf16), Just(DType::F32)];
        (1u32..4, attention(), dtype, 1u32..5).prop_map(|(layers, attention, dtype, tokens)| {
            KvLayout::new(layers, attention, dtype, Tokens(tokens)).unwrap()
        })
    }

    fn arrangement() -> impl Strategy<Value = Arrangement> {
        proptest::sample::select(Arrangement::ALL.as_slice())
    }

    /// Strides in a random nesting order with random gaps, layer and K/V in one buffer or several.
    fn padded() -> impl Strategy<Value = (KvLayout, u32, Strides)> {
        let nesting = (0usize..4, 0usize..5, any::<bool>(), any::<bool>());
        (layout(), 1u32..4, nesting, [0usize..3, 0..3, 0..3, 0..3, 0..3]).prop_map(
            |(layout, num_blocks, (block_at, layer_at, layer_apart, plane_apart), gaps)| {
                let mut axes = layout.layer_axes().to_vec();
                axes.insert(block_at, (Axis::Block, num_blocks));
                axes.insert(layer_at, (Axis::Layer, layout.layers()));
                let plane_apart = plane_apart && layout.layer_axes()[0].0 == Axis::Plane;
                let mut strides =
                    Strides { layer: Step::Buffer, plane: Step::Buffer, block: 0, token: 0, head: 0 };
                let mut inner = layout.vector_bytes();
                for ((axis, count), gap) in axes.into_iter().rev().zip(gaps) {
                    let apart = match axis {
                        Axis::Layer => layer_apart,
                        Axis::Plane => plane_apart,
                        _ => false,
                    };
                    if !apart {
                        inner += gap;
                        strides.set(axis, inner);
                        inner *= count as usize;
                    }
                }
                (layout, num_blocks, strides)
            },
        )
    }

    fn pool() -> impl Strategy<Value = Placement> {
        let packed = (layout(), 1u32..4, arrangement())
            .prop_filter_map("separates what the layout joins", |(layout, num_blocks, arrangement)| {
                Placement::packed(layout, num_blocks, arrangement).ok()
            });
        let padded = padded().prop_map(|(layout, num_blocks, strides)| {
            Placement::strided(layout, num_blocks, strides).unwrap()
        });
        prop_oneof![packed, padded]
    }

    fn blocks(pool: &Placement) -> impl Iterator<Item = Vec<Fragment>> {
        (0..pool.num_blocks()).map(|block| pool.fragments(SlotId(block)).unwrap().collect())
    }

    /// What the documentation of [`Arrangement`] and of the orders says, as axes, outermost first: `l`ayer,
    /// `k` or v, `b`lock, toke`n`, `h`ead. Axes before the bar choose the buffer. `None`: K and V cannot be
    /// separated.
    fn device_axes(attention: Attention, arrangement: Arrangement) -> Option<String> {
        let axes = block_axes(attention);
        match (arrangement, axes.strip_prefix('k')) {
            (Arrangement::KvOuter, inner) => Some(format!("l|kb{}", inner?)),
            (Arrangement::SeparateKv, inner) => Some(format!("lk|b{}", inner?)),
            (Arrangement::BlockOuter, _) => Some(format!("l|b{axes}")),
            (Arrangement::BlockOutermost, _) => Some(format!("|bl{axes}")),
        }
    }

    /// Axes of one layer of a block.
    fn block_axes(attention: Attention) -> &'static str {
        match attention {
            Attention::Latent { .. } => "n",
            Attention::Heads { order, kv, .. } => match (kv, order) {
                (KvOrder::Split, HeadOrder::Nhd) => "knh",
                (KvOrder::Split, HeadOrder::Hnd) => "khn",
                (KvOrder::Fused, HeadOrder::Nhd) => "nhk",
                (KvOrder::Fused, HeadOrder::Hnd) => "hnk",
            },
        }
    }

    /// Buffer and offset of every vector of a block in page-first order, by the row-major formula.
    fn naive(pool: &Placement, device_axes: &str, block: u32) -> Vec<(u32, usize)> {
        let layout = pool.layout();
        let heads = match layout.attention() {
            Attention::Heads { kv_heads, .. } => kv_heads,
            Attention::Latent { .. } => 1,
        };
        let extent = |axis| match axis {
            'l' => layout.layers() as usize,
            'k' => 2,
            'b' => pool.num_blocks() as usize,
            'n' => layout.tokens_per_block().0 as usize,
            'h' => heads as usize,
            other => panic!("axis {other}"),
        };
        let row_major = |axes: &str, at: &HashMap<char, usize>| {
            axes.chars().fold(0, |index, axis| index * extent(axis) + at[&axis])
        };
        let (buffer, place) = device_axes.split_once('|').unwrap();
        let axes = format!("l{}", block_axes(layout.attention()));
        (0..axes.chars().map(extent).product())
            .map(|vector: usize| {
                let (mut at, mut rest) = (HashMap::from([('b', block as usize)]), vector);
                for axis in axes.chars().rev() {
                    at.insert(axis, rest % extent(axis));
                    rest /= extent(axis);
                }
                (row_major(buffer, &at) as u32, row_major(place, &at) * layout.vector_bytes())
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn fragments_are_disjoint_complete_and_inside(pool in pool()) {
            let mut used = vec![vec![false; pool.buffer_bytes()]; pool.buffers() as usize];
            for fragments in blocks(&pool) {
                prop_assert_eq!(fragments.len(), pool.fragments_per_block());
                let bytes: usize = fragments.iter().map(|fragment| fragment.len).sum();
                prop_assert_eq!(bytes, pool.layout().bytes_per_block());
                for Fragment { buffer, offset, len } in fragments {
                    for byte in &mut used[buffer as usize][offset..offset + len] {
                        prop_assert!(!*byte, "a byte belongs to two blocks");
                        *byte = true;
                    }
                }
            }
            // The length asked for is not more than is needed.
            prop_assert!(used.iter().any(|buffer| buffer[pool.buffer_bytes() - 1]));
        }

        #[test]
        fn coalescing_is_maximal(pool in pool()) {
            for fragments in blocks(&pool) {
                for pair in fragments.windows(2) {
                    let adjacent = pair[0].buffer == pair[1].buffer && pair[0].offset + pair[0].len == pair[1].offset;
                    prop_assert!(!adjacent, "{:?}", pair);
                }
            }
        }

        /// Byte by byte: what the fragments gather is what the tensors' shapes say.
        #[test]
        fn fragments_follow_the_shapes(layout in layout(), num_blocks in 1u32..4, arrangement in arrangement()) {
            let pool = Placement::packed(layout, num_blocks, arrangement);
            let Some(axes) = device_axes(layout.attention(), arrangement) else {
                prop_assert_eq!(pool, Err(LayoutError::KvTogether { arrangement: arrangement.name() }));
                return Ok(());
            };
            let pool = pool.unwrap();
            for block in 0..num_blocks {
                let bytes = |(buffer, offset, len)| (offset..offset + len).map(move |byte| (buffer, byte));
                let found = pool.fragments(SlotId(block)).unwrap().map(|f| (f.buffer, f.offset, f.len));
                let expected = naive(&pool, &axes, block);
                let expected = expected.into_iter().map(|(buffer, offset)| (buffer, offset, layout.vector_bytes()));
                prop_assert!(found.flat_map(bytes).eq(expected.flat_map(bytes)));
            }
        }

        /// Strides that touch the same byte twice are refused, whatever else is wrong with them.
        #[test]
        fn accepted_strides_never_alias(
            layout in layout(),
            num_blocks in 1u32..4,
            [layer, plane, block, token, head] in [0usize..40, 0..40, 0..40, 0..40, 0..40],
        ) {
            let strides = Strides { layer: Step::Bytes(layer), plane: Step::Bytes(plane), block, token, head };
            if let Ok(pool) = Placement::strided(layout, num_blocks, strides) {
                let mut used = vec![false; pool.buffer_bytes()];
                for Fragment { offset, len, .. } in blocks(&pool).flatten() {
                    for byte in &mut used[offset..offset + len] {
                        prop_assert!(!*byte);
                        *byte = true;
                    }
                }
            }
        }
    }

    fn llama() -> KvLayout {
        let attention =
            Attention::Heads { kv_heads: 8, head_dim: 128, order: HeadOrder::Nhd, kv: KvOrder::Split };
        KvLayout::new(32, attention, DType::Bf16, Tokens(16)).unwrap()
    }

    #[test]
    fn known_pools_split_as_expected() {
        let fragments = |arrangement| {
            let pool = Placement::packed(llama(), 100, arrangement).unwrap();
            (pool.buffers(), pool.fragments_per_block(), pool.fragment_bytes())
        };
        assert_eq!(fragments(Arrangement::KvOuter), (32, 64, 32 << 10));
        assert_eq!(fragments(Arrangement::BlockOuter), (32, 32, 64 << 10));
        assert_eq!(fragments(Arrangement::SeparateKv), (64, 64, 32 << 10));
        assert_eq!(fragments(Arrangement::BlockOutermost), (1, 1, 2 << 20));
    }

    /// Figures that vLLM 0.33 shows for Llama-3.1-8B in its two layouts with fused K and V.
    #[test]
    fn fused_pools_of_vllm() {
        let attention =
            Attention::Heads { kv_heads: 8, head_dim: 128, order: HeadOrder::Hnd, kv: KvOrder::Fused };
        let layout = KvLayout::new(32, attention, DType::Bf16, Tokens(16)).unwrap();
        let fragment = |tp_size, arrangement| {
            let layout = layout.shard(Shard::new(0, tp_size).unwrap()).unwrap();
            Placement::packed(layout, 100, arrangement).unwrap().fragment_bytes()
        };
        assert_eq!(fragment(1, Arrangement::BlockOuter), 64 << 10);
        assert_eq!(fragment(4, Arrangement::BlockOuter), 16 << 10);
        assert_eq!(fragment(1, Arrangement::BlockOutermost), 2 << 20);
    }

    #[test]
    fn there_is_no_block_behind_the_last() {
        let pool = Placement::packed(llama(), 3, Arrangement::BlockOuter).unwrap();
        assert!(pool.fragments(SlotId(2)).is_some());
        assert!(pool.fragments(SlotId(3)).is_none());
        assert!(pool.fragments(SlotId(u32::MAX)).is_none());
        // The stride of an axis with one index may be anything.
        let strides = Strides {
            layer: Step::Bytes(64 << 10),
            plane: Step::Bytes(32 << 10),
            block: usize::MAX,
            token: 1 << 11,
            head: 1 << 8,
        };
        let pool = Placement::strided(llama(), 1, strides).unwrap();
        assert_eq!(pool.fragments(SlotId(0)).map(Iterator::count), Some(1));
        assert!(pool.fragments(SlotId(2)).is_none());
    }

    #[test]
    fn wrong_pools_are_refused() {
        let layout = llama();
        let packed = |num_blocks, arrangement| Placement::packed(layout, num_blocks, arrangement);
        assert!(matches!(
            packed(0, Arrangement::BlockOuter),
            Err(LayoutError::OutOfRange { field: "num_blocks", value: 0, .. })
        ));
        let latent = KvLayout::new(1, Attention::Latent { dim: 4 }, DType::Bf16, Tokens(4)).unwrap();
        assert_eq!(
            Placement::packed(latent, 1, Arrangement::KvOuter),
            Err(LayoutError::KvTogether { arrangement: "KvOuter" })
        );

        // [2, blocks, tokens, heads, dim] of one layer per buffer, in bytes.
        let good = Strides {
            layer: Step::Buffer,
            plane: Step::Bytes(100 << 15),
            block: 1 << 15,
            token: 1 << 11,
            head: 1 << 8,
        };
        let strided = |strides| Placement::strided(layout, 100, strides);
        assert_eq!(strided(good), packed(100, Arrangement::KvOuter));
        assert_eq!(
            strided(Strides { block: (1 << 15) - 1, ..good }),
            Err(LayoutError::Overlap { axis: "block", stride: (1 << 15) - 1, at_least: 1 << 15 })
        );
        assert_eq!(
            strided(Strides { token: 1 << 8, head: 1 << 12, ..good }),
            Err(LayoutError::Order { outer: "token", inner: "head" })
        );
        assert_eq!(
            strided(Strides { plane: Step::Bytes(usize::MAX), ..good }),
            Err(LayoutError::TooLarge { what: "a buffer" })
        );
        assert!(matches!(
            strided(Strides { head: 0, ..good }),
            Err(LayoutError::Overlap { axis: "head", .. })
        ));
    }

    #[test]
    fn a_pool_that_no_address_space_holds_is_refused() {
        let huge =
            KvLayout::new(u32::MAX, Attention::Latent { dim: 1 << 20 }, DType::F32, Tokens(1)).unwrap();
        for arrangement in [Arrangement::BlockOuter, Arrangement::BlockOutermost] {
            assert!(matches!(
                Placement::packed(huge, u32::MAX, arrangement),
                Err(LayoutError::TooLarge { .. })
            ));
        }
    }
}
