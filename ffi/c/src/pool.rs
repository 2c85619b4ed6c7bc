//! Paged tensors of a runtime.

use std::ptr::NonNull;
use std::sync::Arc;

use kv_core::layout::{
    Attention, DType, HeadOrder, KvLayout, KvOrder, LayoutError, Placement, Step, Strides,
};
use kv_core::units::Tokens;
use kv_cuda::driver::RuntimeStream;
use kvtier_ffi::pool::{PoolConfig, PoolDevice};

use crate::batch::{blocks, submit};
use crate::constants::{
    DEVICE_HOST, DTYPE_BF16, DTYPE_F16, DTYPE_F32, DTYPE_FP8_E4M3, DTYPE_FP8_E5M2, ORDER_HND, ORDER_NHD,
    OWN_BUFFER,
};
use crate::entry::entry;
use crate::handle::{self, Entry};
use crate::status::{Failure, Status};
use crate::structs::{array, give, out, read};
use crate::types::{BatchC, PoolConfigC, PoolHandle, StoreHandle, TicketHandle};

fn placement(raw: &PoolConfigC) -> Result<Placement, Failure> {
    let dtype = match raw.dtype {
        DTYPE_BF16 => DType::Bf16,
        DTYPE_F16 => DType::F16,
        DTYPE_FP8_E4M3 => DType::Fp8E4M3,
        DTYPE_FP8_E5M2 => DType::Fp8E5M2,
        DTYPE_F32 => DType::F32,
        other => return Err(Failure::argument(format!("dtype is {other}; use a KVTIER_DTYPE_*"))),
    };
    let kv = match raw.fused {
        0 => KvOrder::Split,
        1 => KvOrder::Fused,
        other => return Err(Failure::argument(format!("fused is {other}; it must be 0 or 1"))),
    };
    let attention = match (raw.kv_heads, raw.order) {
        (0, _) => Attention::Latent { dim: raw.head_dim },
        (kv_heads, order @ (ORDER_NHD | ORDER_HND)) => {
            let order = if order == ORDER_NHD { HeadOrder::Nhd } else { HeadOrder::Hnd };
            Attention::Heads { kv_heads, head_dim: raw.head_dim, order, kv }
        }
        (_, other) => return Err(Failure::argument(format!("order is {other}; use a KVTIER_ORDER_*"))),
    };
    let bytes = |stride| usize::try_from(stride).unwrap_or(usize::MAX);
    let step = |stride| if stride == OWN_BUFFER { Step::Buffer } else { Step::Bytes(bytes(stride)) };
    let wrong = |error: LayoutError| Failure::argument(error.to_string());
    let layout = KvLayout::new(raw.layers, attention, dtype, Tokens(raw.tokens_per_block)).map_err(wrong)?;
    let strides = Strides {
        layer: step(raw.layer_stride),
        plane: step(raw.plane_stride),
        block: bytes(raw.block_stride),
        token: bytes(raw.token_stride),
        head: bytes(raw.head_stride),
    };
    Placement::strided(layout, raw.num_blocks, strides).map_err(wrong)
}

/// Registers paged tensors with a store, so that blocks go straight between them and pinned host memory. A store has
/// one pool at a time: `KVTIER_BUSY`. For a GPU it measures the device, about 50 ms. A block of the pool has as many
/// bytes as one of the store.
///
/// # Safety
/// `config` is null or a configuration that `kvtier_init` has seen, with pointers as it says. The buffers stay where
/// they are until the pool or its store is closed, and streams exist as long. From the start of an operation until its
/// ticket is done, its blocks are written by nobody but work that is queued in the streams before it, and blocks being
/// loaded are read by nobody. `pool` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_pool_register(
    store: StoreHandle,
    config: *const PoolConfigC,
    pool: *mut PoolHandle,
) -> Status {
    /// Buffers of a pool: a K and a V for each layer of models far larger than any.
    const MOST_BUFFERS: usize = 1 << 16;
    const MOST_STREAMS: usize = 1 << 10;
    entry(|| {
        out(pool, "pool")?;
        let store = handle::store(store.id)?;
        // SAFETY: the caller's word.
        let raw = unsafe { read(config, "config") }?;
        let placement = placement(&raw)?;
        // SAFETY: the caller's word.
        let buffers = unsafe { array(raw.buffers, raw.num_buffers, MOST_BUFFERS, "buffers") }?;
        let buffers: Option<Vec<_>> = buffers.iter().map(|start| NonNull::new(start.cast::<u8>())).collect();
        let buffers = buffers.ok_or_else(|| Failure::argument("a buffer is null"))?;
        // SAFETY: the caller's word.
        let streams = unsafe { array(raw.streams, raw.num_streams.into(), MOST_STREAMS, "streams") }?;
        let device = match (raw.device, u32::try_from(raw.device)) {
            (_, Ok(ordinal)) => {
                PoolDevice::Cuda { ordinal, streams: streams.iter().copied().map(RuntimeStream).collect() }
            }
            (DEVICE_HOST, _) => PoolDevice::Host,
            (other, _) => {
                return Err(Failure::argument(format!("device is {other}; use KVTIER_DEVICE_HOST or 0..")));
            }
        };
        // The tensors are the caller's, who keeps them.
        let config = PoolConfig { placement, buffers, device, owner: Arc::new(()) };
        // SAFETY: the caller's word.
        let registered = unsafe { store.register(config) }?;
        let id = handle::insert(Entry::Pool(registered, store))?;
        // SAFETY: checked above.
        unsafe { give(pool, PoolHandle { id }) }
    })
}

/// Starts copying blocks of a pool into its store, `blocks[i]` under key `i`.
///
/// # Safety
/// `batch` is null or a batch that `kvtier_init` has seen, with keys and blocks as it says; `ticket` is null or
/// writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_pool_offload(
    pool: PoolHandle,
    batch: *const BatchC,
    ticket: *mut TicketHandle,
) -> Status {
    // SAFETY: the caller's word.
    unsafe {
        submit(
            || Ok(handle::pool(pool.id)?.1),
            batch,
            ticket,
            |store, raw, what| Ok(store.offload(what, &handle::pool(pool.id)?.0, blocks(raw)?)?),
        )
    }
}

/// Starts copying blocks of the store into a pool, key `i` to `blocks[i]`, by way of host memory. They arrive layer by
/// layer (`kvtier_ticket_wait_layer`) if they are at most 256 and at most a sixteenth of host memory. A block whose key
/// is not `KVTIER_KEY_DONE` may hold anything.
///
/// # Safety
/// As for `kvtier_pool_offload`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_pool_onboard(
    pool: PoolHandle,
    batch: *const BatchC,
    ticket: *mut TicketHandle,
) -> Status {
    // SAFETY: the caller's word.
    unsafe {
        submit(
            || Ok(handle::pool(pool.id)?.1),
            batch,
            ticket,
            |store, raw, what| Ok(store.onboard(what, &handle::pool(pool.id)?.0, blocks(raw)?)?),
        )
    }
}

/// Closes a pool: when this returns, its tensors are not touched any more. Operations on it that have not begun fail.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_pool_close(pool: PoolHandle) -> Status {
    entry(|| {
        let (pool, _store) = handle::take_pool(pool.id)?;
        pool.close();
        Ok(())
    })
}
