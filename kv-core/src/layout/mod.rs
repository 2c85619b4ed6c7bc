//! Geometry of KV blocks: what the bytes of a block mean, and where they lie.
//!
//! ```text
//! KvLayout     what one block is: layers, heads or latent, dtype, tokens, order of its bytes
//!   Placement    where the blocks of a pool lie in device memory: buffers, strides, fragments
//! ModelLayout  several KV groups and this rank's share of them; the model's fingerprint
//! ```
//!
//! A block has one canonical form, *page-first*: all its layers, one after the other, in one contiguous
//! run. Host slots, NVMe records and remote values hold exactly that. Only a device scatters a block, into
//! the [`Fragment`]s that its [`Placement`] names.
//!
//! The order inside a layer is that of the runtime's tensor without its block axis, so that a block splits
//! into as few fragments as the runtime's tensor allows. It is part of the fingerprint: blocks of another
//! order are other blocks.

mod error;
mod fragments;
mod model;
mod nest;
mod placement;

pub use error::LayoutError;
pub use fragments::{Fragment, Fragments};
pub use model::{GroupIndex, KvGroup, ModelLayout, Rank, Reach, Shard};
pub use nest::{BlockView, Level, Nest, Stride};
pub use placement::{Arrangement, Placement, Step, Strides};

use crate::units::Tokens;
use error::{in_range, product};

/// Largest number of tokens in a block. Runtimes use 16 to 512; beyond, a block is too coarse to reuse.
pub const MAX_TOKENS_PER_BLOCK: Tokens = Tokens(1024);

/// Element type of the cache. To kvtier the bytes are opaque; the type gives their number and their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DType {
    /// bfloat16.
    Bf16 = 1,
    /// IEEE 754 binary16.
    F16 = 2,
    /// 8-bit float, 4 exponent and 3 mantissa bits.
    Fp8E4M3 = 3,
    /// 8-bit float, 5 exponent and 2 mantissa bits.
    Fp8E5M2 = 4,
    /// IEEE 754 binary32 (vLLM's CPU backend).
    F32 = 5,
}

impl DType {
    /// Bytes per element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Fp8E4M3 | Self::Fp8E5M2 => 1,
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Which of tokens (N) and heads (H) is the outer axis, in the names of vLLM and FlashInfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HeadOrder {
    /// Token, head, dim.
    Nhd = 1,
    /// Head, token, dim.
    Hnd = 2,
}

/// How K and V of one layer of one block lie to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KvOrder {
    /// All of K, then all of V.
    Split = 1,
    /// For each head of each token its K and, next to it, its V (the `C` axis of vLLM 0.33).
    Fused = 2,
}

/// What a layer remembers of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attention {
    /// One K and one V vector per key/value head: MHA, GQA and MQA.
    Heads {
        /// Key/value heads (not query heads).
        kv_heads: u32,
        /// Elements of one head's K, and of its V.
        head_dim: u32,
        /// Order of tokens and heads.
        order: HeadOrder,
        /// Order of K and V.
        kv: KvOrder,
    },
    /// One vector per token, without heads and without a separate V: MLA, indexer caches.
    Latent {
        /// Elements of the vector, positional part included.
        dim: u32,
    },
}

/// Axes of a pool. The innermost axis, the vector of one head (or the latent), is always contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    Layer,
    /// K or V.
    Plane,
    Block,
    Token,
    Head,
}

impl Axis {
    const fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Plane => "plane",
            Self::Block => "block",
            Self::Token => "token",
            Self::Head => "head",
        }
    }
}

/// One block of one KV group on one rank.
///
/// ```
/// use kv_core::layout::{Attention, DType, HeadOrder, KvLayout, KvOrder};
/// use kv_core::units::Tokens;
///
/// // Llama-3.1-8B: 32 layers, 8 key/value heads of 128, bf16.
/// let heads = Attention::Heads { kv_heads: 8, head_dim: 128, order: HeadOrder::Nhd, kv: KvOrder::Split };
/// let layout = KvLayout::new(32, heads, DType::Bf16, Tokens(16))?;
/// assert_eq!(layout.bytes_per_layer(), 64 << 10);
/// assert_eq!(layout.bytes_per_block(), 2 << 20);
/// # Ok::<(), kv_core::layout::LayoutError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvLayout {
    layers: u32,
    attention: Attention,
    dtype: DType,
    tokens_per_block: Tokens,
}

impl KvLayout {
    /// A layout whose sizes are known to fit an address space.
    ///
    /// # Errors
    /// A size of zero, more than [`MAX_TOKENS_PER_BLOCK`] tokens, or more bytes than can be addressed.
    pub fn new(
        layers: u32,
        attention: Attention,
        dtype: DType,
        tokens_per_block: Tokens,
    ) -> Result<Self, LayoutError> {
        in_range("layers", layers, 1, u32::MAX)?;
        match attention {
            Attention::Heads { kv_heads, head_dim, .. } => {
                in_range("kv_heads", kv_heads, 1, u32::MAX)?;
                in_range("head_dim", head_dim, 1, u32::MAX)?;
            }
            Attention::Latent { dim } => {
                in_range("latent dim", dim, 1, u32::MAX)?;
            }
        }
        in_range("tokens_per_block", tokens_per_block.0, 1, MAX_TOKENS_PER_BLOCK.0)?;
        let layout = Self { layers, attention, dtype, tokens_per_block };
        let axes = layout.layer_axes().map(|(_, count)| count as usize);
        product(
            "a block",
            &[layers as usize, axes[0], axes[1], axes[2], layout.vector_elements(), dtype.bytes()],
        )?;
        Ok(layout)
    }

    /// Layers in the block.
    #[must_use]
    pub const fn layers(&self) -> u32 {
        self.layers
    }

    /// What each layer remembers.
    #[must_use]
    pub const fn attention(&self) -> Attention {
        self.attention
    }

    /// Element type.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Tokens in the block.
    #[must_use]
    pub const fn tokens_per_block(&self) -> Tokens {
        self.tokens_per_block
    }

    /// Bytes of one layer of a block. In page-first order layer `l` starts at `l * bytes_per_layer`.
    #[must_use]
    pub fn bytes_per_layer(&self) -> usize {
        self.layer_axes().iter().map(|&(_, count)| count as usize).product::<usize>() * self.vector_bytes()
    }

    /// Bytes of a block: the size of a host slot and of a record's payload.
    #[must_use]
    pub fn bytes_per_block(&self) -> usize {
        self.layers as usize * self.bytes_per_layer()
    }

    /// Bytes of the innermost, always contiguous axis.
    fn vector_bytes(&self) -> usize {
        self.vector_elements() * self.dtype.bytes()
    }

    const fn vector_elements(&self) -> usize {
        match self.attention {
            Attention::Heads { head_dim, .. } => head_dim as usize,
            Attention::Latent { dim } => dim as usize,
        }
    }

    /// The axes of one layer of a block, outermost first, and their extents.
    const fn layer_axes(&self) -> [(Axis, u32); 3] {
        let token = (Axis::Token, self.tokens_per_block.0);
        match self.attention {
            Attention::Heads { kv_heads, order, kv, .. } => {
                let (plane, head) = ((Axis::Plane, 2), (Axis::Head, kv_heads));
                match (kv, order) {
                    (KvOrder::Split, HeadOrder::Nhd) => [plane, token, head],
                    (KvOrder::Split, HeadOrder::Hnd) => [plane, head, token],
                    (KvOrder::Fused, HeadOrder::Nhd) => [token, head, plane],
                    (KvOrder::Fused, HeadOrder::Hnd) => [head, token, plane],
                }
            }
            Attention::Latent { .. } => [(Axis::Plane, 1), token, (Axis::Head, 1)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(kv_heads: u32, head_dim: u32) -> Attention {
        Attention::Heads { kv_heads, head_dim, order: HeadOrder::Nhd, kv: KvOrder::Split }
    }

    #[test]
    fn sizes_of_known_models() {
        // DeepSeek-V3: 61 layers, latent 512 + 64 positional, bf16, 64 tokens.
        let mla = KvLayout::new(61, Attention::Latent { dim: 576 }, DType::Bf16, Tokens(64)).unwrap();
        assert_eq!(mla.bytes_per_layer(), 64 * 576 * 2);
        assert_eq!(mla.bytes_per_block(), 61 * 64 * 576 * 2);
        // Llama-3.1-70B in fp8: 80 layers, 8 heads of 128.
        let gqa = KvLayout::new(80, heads(8, 128), DType::Fp8E4M3, Tokens(16)).unwrap();
        assert_eq!(gqa.bytes_per_block(), 80 * 2 * 16 * 8 * 128);
    }

    #[test]
    fn every_wrong_number_is_named() {
        let field = |layout: Result<KvLayout, LayoutError>| match layout.unwrap_err() {
            LayoutError::OutOfRange { field, .. } => field,
            LayoutError::TooLarge { what } => what,
            other => panic!("{other}"),
        };
        let bf16 = DType::Bf16;
        assert_eq!(field(KvLayout::new(0, heads(8, 128), bf16, Tokens(16))), "layers");
        assert_eq!(field(KvLayout::new(1, heads(0, 128), bf16, Tokens(16))), "kv_heads");
        assert_eq!(field(KvLayout::new(1, heads(8, 0), bf16, Tokens(16))), "head_dim");
        assert_eq!(field(KvLayout::new(1, Attention::Latent { dim: 0 }, bf16, Tokens(16))), "latent dim");
        assert_eq!(field(KvLayout::new(1, heads(8, 128), bf16, Tokens(0))), "tokens_per_block");
        assert_eq!(field(KvLayout::new(1, heads(8, 128), bf16, Tokens(1025))), "tokens_per_block");
        assert_eq!(field(KvLayout::new(u32::MAX, heads(u32::MAX, 1), bf16, Tokens(1024))), "a block");
    }

    #[test]
    fn an_error_says_what_would_be_valid() {
        let error = KvLayout::new(1, heads(8, 128), DType::Bf16, Tokens(2000)).unwrap_err();
        assert_eq!(error.to_string(), "tokens_per_block is 2000; it must be between 1 and 1024");
    }
}
