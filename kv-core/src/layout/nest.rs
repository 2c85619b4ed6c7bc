//! The loops that copy a block between two places whose axes lie in different orders.
//!
//! ```text
//! KvLayout ── page-first ─► BlockView ┐
//! Placement ── in the pool ► BlockView ┴─► Nest: up to four loops around a contiguous run
//! ```
//!
//! One nest serves every copy that keeps whole vectors: a gather is pool to page-first, a scatter is the
//! same with the sides swapped, a permute is one order to another, and tensor-parallel resharding is a
//! range of heads of one side.

use std::ops::Range;

use super::{Attention, Axis, KvLayout, LayoutError, Placement, Step};

/// Axes of a block, in the order of the arrays below.
const AXES: [Axis; 4] = [Axis::Layer, Axis::Plane, Axis::Token, Axis::Head];

/// The way from one index of an axis to the next: so many bytes, or so many buffers, never both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stride {
    /// Bytes further in the same buffer.
    pub bytes: usize,
    /// Buffers further, at the same offset.
    pub buffers: u32,
}

/// Where the vectors of one block lie, from the block's own offset on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockView {
    counts: [u32; 4],
    strides: [Stride; 4],
    /// Of the first vector.
    start: usize,
    vector: usize,
}

impl BlockView {
    /// The contiguous form: what a host slot holds.
    ///
    /// ```
    /// use kv_core::layout::{Attention, BlockView, DType, HeadOrder, KvLayout, KvOrder, Nest};
    /// use kv_core::units::Tokens;
    ///
    /// let layout = |order| {
    ///     let heads = Attention::Heads { kv_heads: 8, head_dim: 128, order, kv: KvOrder::Split };
    ///     KvLayout::new(32, heads, DType::Bf16, Tokens(16))
    /// };
    /// let (nhd, hnd) = (layout(HeadOrder::Nhd)?, layout(HeadOrder::Hnd)?);
    /// // Tokens and heads change places: what stays together is one vector of 128 elements.
    /// let nest = Nest::between(&BlockView::page_first(&nhd), &BlockView::page_first(&hnd))?;
    /// assert_eq!(nest.run_bytes(), 256);
    /// // The same order on both sides: one run.
    /// let nest = Nest::between(&BlockView::page_first(&nhd), &BlockView::page_first(&nhd))?;
    /// assert_eq!(nest.run_bytes(), nhd.bytes_per_block());
    /// # Ok::<(), kv_core::layout::LayoutError>(())
    /// ```
    #[must_use]
    pub fn page_first(layout: &KvLayout) -> Self {
        let mut view =
            Self { counts: [1; 4], strides: [Stride::default(); 4], start: 0, vector: layout.vector_bytes() };
        let mut bytes = view.vector;
        let axes = layout.layer_axes();
        for &(axis, count) in [(Axis::Layer, layout.layers())].iter().chain(&axes).rev() {
            let at = position(axis);
            view.counts[at] = count;
            view.strides[at] = Stride { bytes, buffers: 0 };
            bytes *= count as usize;
        }
        view
    }

    /// A block of a pool, in the runtime's tensors. Its offset is [`Placement::block_offset`].
    #[must_use]
    pub fn in_pool(pool: &Placement) -> Self {
        let mut view = Self::page_first(pool.layout());
        let strides = pool.strides();
        // Buffers are numbered layer by layer, K before V.
        let mut buffers = 1;
        for (at, axis) in AXES.into_iter().enumerate().rev() {
            view.strides[at] = match strides.of(axis) {
                Step::Bytes(bytes) => Stride { bytes, buffers: 0 },
                Step::Buffer => {
                    let stride = Stride { bytes: 0, buffers };
                    buffers *= view.counts[at];
                    stride
                }
            };
        }
        view
    }

    /// Only these key/value heads: a tensor-parallel rank's share of a block that holds more.
    ///
    /// # Errors
    /// Heads that the block does not have, none at all, or a latent, which has no heads.
    pub fn heads(mut self, layout: &KvLayout, heads: Range<u32>) -> Result<Self, LayoutError> {
        let at = position(Axis::Head);
        let of = match layout.attention() {
            Attention::Heads { kv_heads, .. } => kv_heads,
            Attention::Latent { .. } => 0,
        };
        if heads.is_empty() || heads.end > of || self.counts[at] != of {
            return Err(LayoutError::NoSuchHeads { first: heads.start, end: heads.end, of });
        }
        self.start += heads.start as usize * self.strides[at].bytes;
        self.counts[at] = heads.end - heads.start;
        Ok(self)
    }
}

/// Position of an axis in the arrays; the block axis is none of a block's own.
const fn position(axis: Axis) -> usize {
    match axis {
        Axis::Layer | Axis::Block => 0,
        Axis::Plane => 1,
        Axis::Token => 2,
        Axis::Head => 3,
    }
}

/// One loop of a [`Nest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Number of indices, at least 1.
    pub count: u32,
    /// Steps on the first side.
    pub from: Stride,
    /// Steps on the second side.
    pub to: Stride,
}

impl Level {
    const ONCE: Self =
        Self { count: 1, from: Stride { bytes: 0, buffers: 0 }, to: Stride { bytes: 0, buffers: 0 } };

    /// One loop instead of `self` around `inner`, if both sides allow it.
    fn merged(self, inner: Self) -> Option<Self> {
        let continues = |outer: Stride, inner_stride: Stride| {
            let times = |stride: usize| stride.checked_mul(inner.count as usize);
            outer.buffers == inner_stride.buffers * inner.count
                && times(inner_stride.bytes) == Some(outer.bytes)
        };
        let fits = continues(self.from, inner.from) && continues(self.to, inner.to);
        fits.then(|| self.count.checked_mul(inner.count).map(|count| Self { count, ..inner })).flatten()
    }
}

/// Loops around a run that is contiguous on both sides. All that a copy kernel needs to know of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nest {
    levels: [Level; 4],
    run: usize,
    from_start: usize,
    to_start: usize,
}

impl Nest {
    /// The loops from one view to the other, nested as `to` nests them, so that what is written is written
    /// in order. Levels that both sides allow to be one, are one.
    ///
    /// # Errors
    /// [`LayoutError::Shapes`] if the views are not of the same layers, planes, tokens and heads.
    pub fn between(from: &BlockView, to: &BlockView) -> Result<Self, LayoutError> {
        if from.counts != to.counts || from.vector != to.vector {
            return Err(LayoutError::Shapes);
        }
        let mut axes: Vec<usize> = (0..AXES.len()).filter(|&at| to.counts[at] > 1).collect();
        // Buffers are outermost; a stable sort keeps layers outside of planes.
        axes.sort_by_key(|&at| {
            let Stride { bytes, buffers } = to.strides[at];
            std::cmp::Reverse((buffers, bytes))
        });
        let mut run = to.vector;
        let mut levels: Vec<Level> = Vec::new();
        for at in axes.into_iter().rev() {
            let level = Level { count: to.counts[at], from: from.strides[at], to: to.strides[at] };
            let contiguous = Stride { bytes: run, buffers: 0 };
            if levels.is_empty() && level.from == contiguous && level.to == contiguous {
                run *= level.count as usize;
                continue;
            }
            match levels.last_mut() {
                Some(inner) => match level.merged(*inner) {
                    Some(one) => *inner = one,
                    None => levels.push(level),
                },
                None => levels.push(level),
            }
        }
        levels.resize(4, Level::ONCE);
        levels.reverse();
        let levels = levels.try_into().unwrap_or([Level::ONCE; 4]);
        Ok(Self { levels, run, from_start: from.start, to_start: to.start })
    }

    /// The same copy the other way round, in the same order.
    #[must_use]
    pub fn swapped(self) -> Self {
        let levels = self.levels.map(|Level { count, from, to }| Level { count, from: to, to: from });
        Self { levels, from_start: self.to_start, to_start: self.from_start, ..self }
    }

    /// The loops, outermost first; those not used count to 1.
    #[must_use]
    pub const fn levels(&self) -> &[Level; 4] {
        &self.levels
    }

    /// Bytes of a run.
    #[must_use]
    pub const fn run_bytes(&self) -> usize {
        self.run
    }

    /// Number of runs.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.levels.iter().map(|level| level.count as usize).product()
    }

    /// Offset of the first run from the block's own, on each side.
    #[must_use]
    pub const fn starts(&self) -> (usize, usize) {
        (self.from_start, self.to_start)
    }

    /// Largest power of two, at most 16, that divides the run and every step of both sides: the widest
    /// access that the layout allows where the blocks' own addresses do.
    #[must_use]
    pub fn alignment(&self) -> usize {
        let mut bits = self.run | self.from_start | self.to_start | 16;
        for level in &self.levels {
            bits |= level.from.bytes | level.to.bytes;
        }
        1 << bits.trailing_zeros()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Arrangement, DType, HeadOrder, KvOrder, Shard};
    use super::*;
    use crate::ids::SlotId;
    use crate::units::Tokens;
    use proptest::prelude::*;

    /// Every byte that a nest moves, as (buffer, offset) on both sides.
    fn moves(nest: &Nest) -> Vec<[(u32, usize); 2]> {
        let (from, to) = nest.starts();
        let mut at = vec![[(0u32, from), (0u32, to)]];
        for level in nest.levels() {
            at = at
                .into_iter()
                .flat_map(|[from, to]| {
                    (0..level.count).map(move |index| {
                        let step = |(buffer, offset), stride: Stride| {
                            (buffer + index * stride.buffers, offset + index as usize * stride.bytes)
                        };
                        [step(from, level.from), step(to, level.to)]
                    })
                })
                .collect();
        }
        let bytes = |[from, to]: [(u32, usize); 2]| {
            (0..nest.run_bytes()).map(move |byte| [(from.0, from.1 + byte), (to.0, to.1 + byte)])
        };
        at.into_iter().flat_map(bytes).collect()
    }

    fn layout(order: HeadOrder, kv: KvOrder, heads: u32, dims: (u32, u32, u32)) -> KvLayout {
        let (layers, tokens, dim) = dims;
        let attention = Attention::Heads { kv_heads: heads, head_dim: dim, order, kv };
        KvLayout::new(layers, attention, DType::Bf16, Tokens(tokens)).unwrap()
    }

    /// Offset of each vector of the whole model's block, by (layer, plane, token, head), page-first.
    fn offset(layout: &KvLayout, [l, p, t, h]: [u32; 4]) -> usize {
        let Attention::Heads { kv_heads, head_dim, order, kv } = layout.attention() else { unreachable!() };
        let tokens = layout.tokens_per_block().0;
        let within = match (kv, order) {
            (KvOrder::Split, HeadOrder::Nhd) => (p * tokens + t) * kv_heads + h,
            (KvOrder::Split, HeadOrder::Hnd) => (p * kv_heads + h) * tokens + t,
            (KvOrder::Fused, HeadOrder::Nhd) => (t * kv_heads + h) * 2 + p,
            (KvOrder::Fused, HeadOrder::Hnd) => (h * tokens + t) * 2 + p,
        };
        let vectors = l * 2 * tokens * kv_heads + within;
        vectors as usize * head_dim as usize * layout.dtype().bytes()
    }

    fn order() -> impl Strategy<Value = HeadOrder> {
        prop_oneof![Just(HeadOrder::Nhd), Just(HeadOrder::Hnd)]
    }

    fn kv() -> impl Strategy<Value = KvOrder> {
        prop_oneof![Just(KvOrder::Split), Just(KvOrder::Fused)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// A permute puts each vector where the other order wants it, and writes in order.
        #[test]
        fn a_permute_moves_every_vector(
            orders in [order(), order()], kvs in [kv(), kv()], heads in 1u32..5,
            dims in (1u32..4, 1u32..5, 1u32..4),
        ) {
            let [a, b] = [0, 1].map(|at| layout(orders[at], kvs[at], heads, dims));
            let nest = Nest::between(&BlockView::page_first(&a), &BlockView::page_first(&b)).unwrap();
            let moved = moves(&nest);
            prop_assert!(moved.iter().map(|[_, to]| to.1).eq(0..b.bytes_per_block()), "not in order");
            let mut expected = vec![usize::MAX; b.bytes_per_block()];
            for l in 0..dims.0 { for p in 0..2 { for t in 0..dims.1 { for h in 0..heads {
                for byte in 0..a.vector_bytes() {
                    expected[offset(&b, [l, p, t, h]) + byte] = offset(&a, [l, p, t, h]) + byte;
                }
            }}}}
            prop_assert_eq!(moved.into_iter().map(|[from, _]| from.1).collect::<Vec<_>>(), expected);
        }

        /// A nest between a pool and its page-first form visits the pool's fragments, in order.
        #[test]
        fn a_gather_visits_the_fragments(
            order in order(), kv in kv(), heads in 1u32..5, dims in (1u32..4, 1u32..5, 1u32..4),
            arrangement in proptest::sample::select(Arrangement::ALL.as_slice()), block in 0u32..3,
        ) {
            let layout = layout(order, kv, heads, dims);
            let Ok(pool) = Placement::packed(layout, 3, arrangement) else { return Ok(()) };
            let nest = Nest::between(&BlockView::in_pool(&pool), &BlockView::page_first(&layout)).unwrap();
            prop_assert_eq!(nest.run_bytes(), pool.fragment_bytes());
            prop_assert_eq!(nest.runs(), pool.fragments_per_block());
            let at = pool.block_offset(SlotId(block)).unwrap();
            let gathered = moves(&nest).into_iter().map(|[from, to]| (from.0, from.1 + at, to.1));
            let fragments = pool.fragments(SlotId(block)).unwrap();
            let bytes = fragments.flat_map(|f| (f.offset..f.offset + f.len).map(move |byte| (f.buffer, byte)));
            prop_assert!(gathered.eq(bytes.zip(0..).map(|((buffer, byte), to)| (buffer, byte, to))));
            prop_assert!(moves(&nest.swapped()).into_iter().map(|[a, b]| [b, a]).eq(moves(&nest)));
            prop_assert_eq!(nest.run_bytes() % nest.alignment(), 0);
        }

        /// Ranks of one size put their heads into the block of another size: nothing is lost or doubled.
        #[test]
        fn resharding_covers_the_block_once(
            orders in [order(), order()], kv in kv(), dims in (1u32..3, 1u32..4, 1u32..3), ranks in 1u32..5,
            per_rank in 1u32..3,
        ) {
            let whole = layout(orders[0], kv, ranks * per_rank, dims);
            let mut written = vec![0; whole.bytes_per_block()];
            for rank in 0..ranks {
                let shard = Shard::new(rank, ranks).unwrap();
                let heads = shard.heads(ranks * per_rank).unwrap();
                let part = layout(orders[1], kv, per_rank, dims);
                let to = BlockView::page_first(&whole).heads(&whole, heads.clone()).unwrap();
                let nest = Nest::between(&BlockView::page_first(&part), &to).unwrap();
                for [from, to] in moves(&nest) {
                    written[to.1] += 1;
                    let vector = part.vector_bytes();
                    let head = |layout: &KvLayout, byte: usize| {
                        let Attention::Heads { kv_heads, .. } = layout.attention() else { unreachable!() };
                        (0..kv_heads).find(|&h| (0..dims.0).any(|l| (0..2).any(|p| (0..dims.1).any(|t| {
                            let start = offset(layout, [l, p, t, h]);
                            (start..start + vector).contains(&byte)
                        }))))
                    };
                    prop_assert_eq!(head(&whole, to.1), head(&part, from.1).map(|h| h + heads.start));
                }
            }
            prop_assert!(written.iter().all(|&times| times == 1));
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        let of = |heads, dims| layout(HeadOrder::Nhd, KvOrder::Split, heads, dims);
        let view = |layout: &KvLayout| BlockView::page_first(layout);
        let (a, b) = (of(4, (2, 16, 8)), of(2, (2, 16, 8)));
        assert_eq!(Nest::between(&view(&a), &view(&b)), Err(LayoutError::Shapes));
        assert_eq!(view(&a).heads(&a, 3..5), Err(LayoutError::NoSuchHeads { first: 3, end: 5, of: 4 }));
        let latent = KvLayout::new(2, Attention::Latent { dim: 8 }, DType::Bf16, Tokens(16)).unwrap();
        assert!(view(&latent).heads(&latent, 0..1).is_err());
    }
}
