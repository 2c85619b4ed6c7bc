//! How the blocks of a runtime lie in its paged tensors.

use kv_core::layout::{
    Arrangement, Attention, DType, HeadOrder, KvLayout, KvOrder, Placement, Step, Strides,
};
use kv_core::units::Tokens;
use pyo3::prelude::*;

use crate::errors::Invalid;

/// The geometry of one block: ``tokens_per_block`` tokens over all layers.
///
/// ``kv_heads=0`` is a latent (MLA) of ``head_dim`` elements. ``dtype`` is one of ``bf16 f16 fp8_e4m3 fp8_e5m2 f32``,
/// ``order`` is ``NHD`` or ``HND``, and ``fused`` says that K and V of a head lie side by side.
///
/// >>> import kvtier
/// >>> kvtier.Layout(layers=32, kv_heads=8, head_dim=128, dtype="bf16", tokens_per_block=16).block_bytes
/// 2097152
#[pyclass(frozen, eq, module = "kvtier", name = "Layout")]
#[derive(PartialEq)]
pub(crate) struct Layout(pub(crate) KvLayout);

fn invalid(error: kv_core::layout::LayoutError) -> PyErr {
    Invalid::new_err(error.to_string())
}

/// The value that `name` has in `table`.
fn named<T: Copy>(what: &str, name: &str, table: &[(&str, T)]) -> PyResult<T> {
    let found = table.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<_> = table.iter().map(|(name, _)| *name).collect();
        Invalid::new_err(format!("{what} is {name:?}; it must be one of {}", names.join(", ")))
    })
}

#[pymethods]
impl Layout {
    #[new]
    #[pyo3(signature = (*, layers, kv_heads, head_dim, dtype, tokens_per_block, order = "NHD", fused = false))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn new(
        layers: u32,
        kv_heads: u32,
        head_dim: u32,
        dtype: &str,
        tokens_per_block: u32,
        order: &str,
        fused: bool,
    ) -> PyResult<Self> {
        let dtypes = [
            ("bf16", DType::Bf16),
            ("f16", DType::F16),
            ("fp8_e4m3", DType::Fp8E4M3),
            ("fp8_e5m2", DType::Fp8E5M2),
            ("f32", DType::F32),
        ];
        let dtype = named("dtype", dtype, &dtypes)?;
        let order = named("order", order, &[("NHD", HeadOrder::Nhd), ("HND", HeadOrder::Hnd)])?;
        let kv = if fused { KvOrder::Fused } else { KvOrder::Split };
        let attention = match kv_heads {
            0 => Attention::Latent { dim: head_dim },
            kv_heads => Attention::Heads { kv_heads, head_dim, order, kv },
        };
        KvLayout::new(layers, attention, dtype, Tokens(tokens_per_block)).map(Self).map_err(invalid)
    }

    /// Bytes of a block.
    #[getter]
    fn block_bytes(&self) -> usize {
        self.0.bytes_per_block()
    }

    /// Layers of a block.
    #[getter]
    fn layers(&self) -> u32 {
        self.0.layers()
    }

    /// Tokens of a block.
    #[getter]
    fn tokens_per_block(&self) -> u32 {
        self.0.tokens_per_block().0
    }

    fn __repr__(&self) -> String {
        let (layers, tokens) = (self.layers(), self.tokens_per_block());
        format!("<kvtier.Layout: {layers} layers, {tokens} tokens, {} bytes>", self.block_bytes())
    }
}

/// How a pool's tensors are cut: by the name of a usual arrangement, or by strides.
#[derive(FromPyObject)]
pub(crate) enum Arranged {
    /// Tensors without padding.
    #[pyo3(transparent)]
    Named(String),
    /// Bytes from layer to layer, K to V, block to block, token to token, head to head; `None` where each has a tensor
    /// of its own.
    #[pyo3(transparent)]
    Strides((Option<usize>, Option<usize>, usize, usize, usize)),
}

impl Arranged {
    pub(crate) fn place(&self, layout: KvLayout, num_blocks: u32) -> PyResult<Placement> {
        let names = [
            ("kv_outer", Arrangement::KvOuter),
            ("block_outer", Arrangement::BlockOuter),
            ("separate_kv", Arrangement::SeparateKv),
            ("block_outermost", Arrangement::BlockOutermost),
        ];
        match self {
            Self::Named(name) => Placement::packed(layout, num_blocks, named("arrangement", name, &names)?),
            Self::Strides((layer, plane, block, token, head)) => {
                let step = |bytes: &Option<usize>| bytes.map_or(Step::Buffer, Step::Bytes);
                let (layer, plane) = (step(layer), step(plane));
                Placement::strided(
                    layout,
                    num_blocks,
                    Strides { layer, plane, block: *block, token: *token, head: *head },
                )
            }
        }
        .map_err(invalid)
    }
}
