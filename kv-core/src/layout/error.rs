//! Why a geometry was refused.

/// A geometry that cannot be. Names the field, its value and what would be valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A number outside its range.
    #[error("{field} is {value}; it must be between {min} and {max}")]
    OutOfRange {
        /// What was wrong.
        field: &'static str,
        /// What was given.
        value: u64,
        /// Smallest valid value.
        min: u64,
        /// Largest valid value.
        max: u64,
    },
    /// Key/value heads cannot be dealt evenly to the tensor-parallel ranks.
    #[error(
        "kv_heads {kv_heads} cannot be dealt to {tp_size} tensor-parallel ranks; one must be a multiple of the other"
    )]
    UnevenHeads {
        /// Heads of the whole model.
        kv_heads: u32,
        /// Tensor-parallel ranks.
        tp_size: u32,
    },
    /// One step along an axis would land inside what the inner axes already occupy.
    #[error("stride of {axis} is {stride} bytes; what it steps over takes at least {at_least} bytes")]
    Overlap {
        /// The axis.
        axis: &'static str,
        /// The stride given, in bytes.
        stride: usize,
        /// The smallest stride that does not overlap, in bytes.
        at_least: usize,
    },
    /// The strides nest two axes the other way round than the layout says.
    #[error(
        "{outer} is outside {inner} in the layout but not in the strides; give the layout the order of the tensor (NHD or HND, split or fused K and V)"
    )]
    Order {
        /// The axis that the layout has outside.
        outer: &'static str,
        /// The axis that the layout has inside.
        inner: &'static str,
    },
    /// An arrangement with K and V in different places, for a layout that keeps them together.
    #[error(
        "arrangement {arrangement} keeps K and V apart, but in this layout they lie together; use BlockOuter or BlockOutermost"
    )]
    KvTogether {
        /// The arrangement asked for.
        arrangement: &'static str,
    },
    /// Two views of a block that do not have the same layers, planes, tokens, heads and vectors.
    #[error("the two sides of a copy differ in layers, K/V planes, tokens, heads, or head_dim and dtype")]
    Shapes,
    /// A range of heads that a block does not have.
    #[error("heads {first}..{end} of a block with {of} key/value heads; a latent has none")]
    NoSuchHeads {
        /// First head asked for.
        first: u32,
        /// The head behind the last.
        end: u32,
        /// Heads of the block.
        of: u32,
    },
    /// More bytes than an address space holds.
    #[error("{what} takes more than {max} bytes; check the sizes", max = isize::MAX)]
    TooLarge {
        /// What is too large.
        what: &'static str,
    },
}

/// `value` if it lies in `min..=max`.
pub(super) fn in_range(field: &'static str, value: u32, min: u32, max: u32) -> Result<u32, LayoutError> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(LayoutError::OutOfRange { field, value: value.into(), min: min.into(), max: max.into() })
    }
}

/// Product of sizes in bytes, refused when no allocation could be that large.
pub(super) fn product(what: &'static str, factors: &[usize]) -> Result<usize, LayoutError> {
    factors
        .iter()
        .try_fold(1usize, |product, &factor| product.checked_mul(factor))
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or(LayoutError::TooLarge { what })
}
