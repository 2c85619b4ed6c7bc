//! A whole model: its KV groups, what this rank holds of them, and the fingerprint.

use std::ops::Range;

use super::{Attention, KvLayout, LayoutError};
use crate::key::Fingerprint;
use crate::units::Tokens;

/// Which KV group of a model. Groups have their own block pools and their own keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupIndex(pub u16);

/// How far back a layer looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Every earlier token.
    Full,
    /// So many tokens, the current one included, as `sliding_window` in a model's `config.json`.
    Window(Tokens),
}

/// Layers that share one layout and one reach, and so one block table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvGroup {
    /// Geometry of a block.
    pub layout: KvLayout,
    /// How far back the layers look.
    pub reach: Reach,
}

impl KvGroup {
    /// Which blocks must be loaded so that a request can go on after `prefix` tokens: indices into the
    /// chain of the prefix's full blocks. Empty if the next token sees none of them.
    ///
    /// ```
    /// # use kv_core::layout::{Attention, DType, KvGroup, KvLayout, Reach};
    /// # use kv_core::units::Tokens;
    /// let layout = KvLayout::new(1, Attention::Latent { dim: 8 }, DType::Bf16, Tokens(16))?;
    /// let full = KvGroup { layout, reach: Reach::Full };
    /// assert_eq!(full.needed_blocks(Tokens(160)), 0..10);
    /// // The token at 160 sees itself and 128 to 159.
    /// let window = KvGroup { layout, reach: Reach::Window(Tokens(33)) };
    /// assert_eq!(window.needed_blocks(Tokens(160)), 8..10);
    /// # Ok::<(), kv_core::layout::LayoutError>(())
    /// ```
    #[must_use]
    pub fn needed_blocks(&self, prefix: Tokens) -> Range<u32> {
        let per_block = self.layout.tokens_per_block.0;
        let end = prefix.0 / per_block;
        match self.reach {
            Reach::Full => 0..end,
            Reach::Window(window) => {
                let first_seen = prefix.0.saturating_sub(window.0.saturating_sub(1));
                (first_seen / per_block).min(end)..end
            }
        }
    }
}

/// One of several equal parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shard {
    index: u32,
    of: u32,
}

impl Shard {
    /// The only part.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// Part `index`, counted from 0, `of` so many.
    ///
    /// # Errors
    /// No parts, or an index that is not among them.
    pub fn new(index: u32, of: u32) -> Result<Self, LayoutError> {
        super::in_range("number of ranks", of, 1, u32::MAX)?;
        super::in_range("rank", index, 0, of - 1)?;
        Ok(Self { index, of })
    }

    /// Which of `kv_heads` heads this tensor-parallel rank holds: its equal part, or one head that
    /// `of / kv_heads` ranks hold alike.
    ///
    /// # Errors
    /// Neither number is a multiple of the other.
    pub fn heads(self, kv_heads: u32) -> Result<Range<u32>, LayoutError> {
        let uneven = LayoutError::UnevenHeads { kv_heads, tp_size: self.of };
        if kv_heads == 0 || !(kv_heads.is_multiple_of(self.of) || self.of.is_multiple_of(kv_heads)) {
            return Err(uneven);
        }
        let each = (kv_heads / self.of).max(1);
        let replicas = (self.of / kv_heads).max(1);
        let first = self.index / replicas * each;
        Ok(first..first + each)
    }
}

/// A rank's place in the parallel topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rank {
    /// Tensor parallelism: heads are dealt to the ranks, a latent is held by each.
    pub tensor: Shard,
    /// Pipeline parallelism: each rank has its own layers. It gives its own in its layouts; here the
    /// stage only keeps equal layouts of different layers apart.
    pub pipeline: Shard,
}

impl Rank {
    /// One GPU holds everything.
    pub const SINGLE: Self = Self { tensor: Shard::WHOLE, pipeline: Shard::WHOLE };
}

impl KvLayout {
    /// What one tensor-parallel rank holds of this layout.
    ///
    /// # Errors
    /// The heads cannot be dealt evenly.
    pub fn shard(&self, tensor: Shard) -> Result<Self, LayoutError> {
        let attention = match self.attention {
            Attention::Heads { kv_heads, head_dim, order, kv } => {
                Attention::Heads { kv_heads: tensor.heads(kv_heads)?.len() as u32, head_dim, order, kv }
            }
            latent @ Attention::Latent { .. } => latent,
        };
        Ok(Self { attention, ..*self })
    }
}

/// The KV groups of a model as one rank sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelLayout {
    whole: Vec<KvGroup>,
    held: Vec<KvGroup>,
    rank: Rank,
}

impl ModelLayout {
    /// `groups` with the heads of the whole model; `rank` says which part is here.
    ///
    /// # Errors
    /// No groups or more than [`GroupIndex`] can name, a window of no tokens, or heads that cannot be dealt
    /// evenly.
    pub fn new(groups: Vec<KvGroup>, rank: Rank) -> Result<Self, LayoutError> {
        let count = u32::try_from(groups.len()).unwrap_or(u32::MAX);
        super::in_range("number of KV groups", count, 1, u32::from(u16::MAX) + 1)?;
        let held = groups
            .iter()
            .map(|group| {
                if let Reach::Window(window) = group.reach {
                    super::in_range("sliding window", window.0, 1, u32::MAX)?;
                }
                Ok(KvGroup { layout: group.layout.shard(rank.tensor)?, ..*group })
            })
            .collect::<Result<_, LayoutError>>()?;
        Ok(Self { whole: groups, held, rank })
    }

    /// What this rank holds, in the order of [`GroupIndex`].
    #[must_use]
    pub fn groups(&self) -> &[KvGroup] {
        &self.held
    }

    /// This rank.
    #[must_use]
    pub const fn rank(&self) -> Rank {
        self.rank
    }

    /// Digest of everything that decides what this rank's bytes mean. Blocks of another fingerprint are
    /// never served. `weights_revision` names the exact weights: repository and commit, or their digest;
    /// it changes whenever they do.
    ///
    /// Where the blocks lie on a device is not part of it: a pool of another size holds the same blocks.
    #[must_use]
    pub fn fingerprint(&self, weights_revision: &str) -> Fingerprint {
        let mut hash = blake3::Hasher::new_derive_key("kvtier model fingerprint v1");
        let mut numbers = |numbers: &[u32]| {
            for number in numbers {
                hash.update(&number.to_le_bytes());
            }
        };
        let Rank { tensor, pipeline } = self.rank;
        numbers(&[tensor.index, tensor.of, pipeline.index, pipeline.of]);
        numbers(&[self.whole.len() as u32]);
        for KvGroup { layout, reach } in &self.whole {
            match *reach {
                Reach::Full => numbers(&[1, 0]),
                Reach::Window(window) => numbers(&[2, window.0]),
            }
            // Destructured, so that a new field cannot be forgotten.
            let KvLayout { layers, attention, dtype, tokens_per_block } = *layout;
            numbers(&[layers, dtype as u32, tokens_per_block.0]);
            match attention {
                Attention::Heads { kv_heads, head_dim, order, kv } => {
                    numbers(&[1, kv_heads, head_dim, order as u32, kv as u32]);
                }
                Attention::Latent { dim } => numbers(&[2, dim, 0, 0, 0]),
            }
        }
        // Last, so that its length needs no prefix: everything before it has a length that it tells.
        hash.update(weights_revision.as_bytes());
        let mut fingerprint = [0; 16];
        hash.finalize_xof().fill(&mut fingerprint);
        Fingerprint(fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::layout::{DType, HeadOrder, KvOrder};

    fn heads(kv_heads: u32) -> Attention {
        Attention::Heads { kv_heads, head_dim: 64, order: HeadOrder::Nhd, kv: KvOrder::Split }
    }

    fn layout(attention: Attention) -> KvLayout {
        KvLayout::new(4, attention, DType::Bf16, Tokens(16)).unwrap()
    }

    fn full(attention: Attention) -> KvGroup {
        KvGroup { layout: layout(attention), reach: Reach::Full }
    }

    fn tensor(index: u32, of: u32) -> Rank {
        Rank { tensor: Shard::new(index, of).unwrap(), pipeline: Shard::WHOLE }
    }

    #[test]
    fn any_change_changes_the_fingerprint() {
        let base = KvGroup { layout: layout(heads(8)), reach: Reach::Window(Tokens(128)) };
        let geometry = |layers, attention, dtype, tokens| KvGroup {
            layout: KvLayout::new(layers, attention, dtype, Tokens(tokens)).unwrap(),
            ..base
        };
        let gqa = |kv_heads, head_dim, order, kv| {
            geometry(4, Attention::Heads { kv_heads, head_dim, order, kv }, DType::Bf16, 16)
        };
        let (nhd, hnd, split, fused) = (HeadOrder::Nhd, HeadOrder::Hnd, KvOrder::Split, KvOrder::Fused);
        let pipeline = |index, of| Rank { tensor: Shard::WHOLE, pipeline: Shard::new(index, of).unwrap() };
        let cases: Vec<(&str, Vec<KvGroup>, Rank, &str)> = vec![
            ("base", vec![base], Rank::SINGLE, "rev"),
            ("weights", vec![base], Rank::SINGLE, "rew"),
            ("no weights", vec![base], Rank::SINGLE, ""),
            ("layers", vec![geometry(5, heads(8), DType::Bf16, 16)], Rank::SINGLE, "rev"),
            ("tokens", vec![geometry(4, heads(8), DType::Bf16, 32)], Rank::SINGLE, "rev"),
            ("f16", vec![geometry(4, heads(8), DType::F16, 16)], Rank::SINGLE, "rev"),
            ("e4m3", vec![geometry(4, heads(8), DType::Fp8E4M3, 16)], Rank::SINGLE, "rev"),
            ("e5m2", vec![geometry(4, heads(8), DType::Fp8E5M2, 16)], Rank::SINGLE, "rev"),
            ("f32", vec![geometry(4, heads(8), DType::F32, 16)], Rank::SINGLE, "rev"),
            ("heads", vec![gqa(16, 64, nhd, split)], Rank::SINGLE, "rev"),
            ("head dim", vec![gqa(8, 128, nhd, split)], Rank::SINGLE, "rev"),
            ("order", vec![gqa(8, 64, hnd, split)], Rank::SINGLE, "rev"),
            ("kv order", vec![gqa(8, 64, nhd, fused)], Rank::SINGLE, "rev"),
            ("latent", vec![full(Attention::Latent { dim: 1024 })], Rank::SINGLE, "rev"),
            ("latent dim", vec![full(Attention::Latent { dim: 1025 })], Rank::SINGLE, "rev"),
            ("full", vec![full(heads(8))], Rank::SINGLE, "rev"),
            ("window", vec![KvGroup { reach: Reach::Window(Tokens(129)), ..base }], Rank::SINGLE, "rev"),
            ("two groups", vec![base, full(heads(8))], Rank::SINGLE, "rev"),
            ("groups swapped", vec![full(heads(8)), base], Rank::SINGLE, "rev"),
            ("tp 2, rank 0", vec![base], tensor(0, 2), "rev"),
            ("tp 2, rank 1", vec![base], tensor(1, 2), "rev"),
            ("tp 2, same share", vec![gqa(16, 64, nhd, split)], tensor(0, 2), "rev"),
            ("pp 2, rank 0", vec![base], pipeline(0, 2), "rev"),
            ("pp 2, rank 1", vec![base], pipeline(1, 2), "rev"),
        ];
        let mut seen = HashMap::new();
        for (name, groups, rank, weights) in cases {
            let model = ModelLayout::new(groups, rank).unwrap();
            let fingerprint = model.fingerprint(weights);
            assert_eq!(fingerprint, model.fingerprint(weights));
            if let Some(other) = seen.insert(fingerprint, name) {
                panic!("{name} has the fingerprint of {other}");
            }
        }
    }

    /// Stored records carry it, so another value would orphan every record in the field. The value is that
    /// of another BLAKE3 (Python's `blake3`) over the numbers written out by hand.
    #[test]
    fn the_fingerprint_is_stable() {
        let model = ModelLayout::new(vec![full(heads(8))], Rank::SINGLE).unwrap();
        assert_eq!(model.fingerprint("rev").to_string(), "d294594d8714d7a6d5ae986f10f46e21");
    }

    #[test]
    fn wrong_models_are_refused() {
        assert!(matches!(
            ModelLayout::new(Vec::new(), Rank::SINGLE),
            Err(LayoutError::OutOfRange { field: "number of KV groups", value: 0, .. })
        ));
        let blind = KvGroup { reach: Reach::Window(Tokens(0)), ..full(heads(8)) };
        assert!(matches!(
            ModelLayout::new(vec![blind], Rank::SINGLE),
            Err(LayoutError::OutOfRange { field: "sliding window", .. })
        ));
        let uneven = ModelLayout::new(vec![full(heads(6))], tensor(0, 4));
        assert_eq!(uneven, Err(LayoutError::UnevenHeads { kv_heads: 6, tp_size: 4 }));
        assert!(matches!(Shard::new(2, 2), Err(LayoutError::OutOfRange { field: "rank", max: 1, .. })));
        assert!(matches!(Shard::new(0, 0), Err(LayoutError::OutOfRange { field: "number of ranks", .. })));
        assert!(Shard::WHOLE.heads(0).is_err());
    }

    #[test]
    fn a_latent_is_held_by_every_rank() {
        let group = full(Attention::Latent { dim: 576 });
        for index in 0..8 {
            let model = ModelLayout::new(vec![group], tensor(index, 8)).unwrap();
            assert_eq!(model.groups(), [group]);
        }
    }

    proptest! {
        /// Dealing heads to ranks: every head is held, by equally many ranks, and the bytes add up.
        #[test]
        fn shards_add_up(per in 1u32..9, ranks in 1u32..9, replicated: bool) {
            let (kv_heads, of) = if replicated { (ranks, ranks * per) } else { (ranks * per, ranks) };
            let whole = layout(heads(kv_heads));
            let mut holders = vec![0; kv_heads as usize];
            let mut bytes = 0;
            for index in 0..of {
                let shard = Shard::new(index, of).unwrap();
                for head in shard.heads(kv_heads).unwrap() {
                    holders[head as usize] += 1;
                }
                bytes += whole.shard(shard).unwrap().bytes_per_block();
            }
            let replicas = (of / kv_heads).max(1);
            prop_assert!(holders.iter().all(|&held| held == replicas), "{holders:?}");
            prop_assert_eq!(bytes, whole.bytes_per_block() * replicas as usize);
        }

        /// Block by block: is there a token in it that the token at `prefix` sees?
        #[test]
        fn needed_blocks_are_those_that_are_seen(prefix in 0u32..300, window in 1u32..100, per_block in 1u32..40) {
            let layout = KvLayout::new(1, heads(1), DType::Bf16, Tokens(per_block)).unwrap();
            let group = KvGroup { layout, reach: Reach::Window(Tokens(window)) };
            let seen = |token: u32| prefix - token < window;
            let naive: Vec<u32> = (0..prefix / per_block)
                .filter(|block| (block * per_block..(block + 1) * per_block).any(seen))
                .collect();
            prop_assert_eq!(group.needed_blocks(Tokens(prefix)).collect::<Vec<_>>(), naive);
        }
    }
}
