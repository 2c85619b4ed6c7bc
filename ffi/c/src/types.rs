//! The structs of the ABI, as the header has them.

use std::ffi::c_void;

use crate::structs::Versioned;

/// A store. A plain number: copying it does not copy the store. Zero is never a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct StoreHandle {
    /// Opaque.
    pub id: u64,
}

/// A pool: paged tensors of the runtime that were registered with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PoolHandle {
    /// Opaque.
    pub id: u64,
}

/// A queue of finished tickets, with a descriptor for an event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct QueueHandle {
    /// Opaque. Zero means that no queue is told.
    pub id: u64,
}

/// An operation under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TicketHandle {
    /// Opaque.
    pub id: u64,
}

/// What a store is opened with. Zero means the default, which is named at each field.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StoreConfigC {
    /// `sizeof`, set by `kvtier_init`.
    pub size: u32,
    /// Set by `kvtier_init`.
    pub version: u32,
    /// Bytes of one block. Needed.
    pub block_bytes: u64,
    /// Pinned host memory in bytes. Default: room for 1024 blocks.
    pub host_bytes: u64,
    /// Directory of the NVMe log, zero-terminated; made if its parent exists. Default: no NVMe.
    pub nvme_path: *const std::ffi::c_char,
    /// Bytes of disk that the log may fill. Needed with `nvme_path`; may change from one opening to the next.
    pub nvme_bytes: u64,
    /// Bytes that may be written to NVMe per day. Default: no limit.
    pub nvme_bytes_per_day: u64,
    /// Who owns the blocks, zero-terminated UTF-8. Default: empty.
    pub tenant: *const std::ffi::c_char,
    /// The model's name. Default: empty.
    pub model: *const std::ffi::c_char,
    /// Its weights: a revision or a digest. A weight update that changes it cannot serve stale blocks. Default: empty.
    pub revision: *const std::ffi::c_char,
    /// Whatever else decides what the bytes mean: dtype, memory order, rank, tokens per block. Default: empty.
    pub layout: *const std::ffi::c_char,
    /// 32 random bytes that belong to the tenant. Default: a secret that is made once and kept beside the NVMe log, or
    /// in this process alone.
    pub secret: *const u8,
    /// One of `KVTIER_DURABILITY_*`.
    pub durability: u32,
    /// Must be zero.
    pub reserved: u32,
}

/// A contiguous piece of the caller's memory.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RunC {
    /// First byte.
    pub start: *mut c_void,
    /// Number of bytes.
    pub len: u64,
}

/// Keys, and what is to be done with each. Keys are bytes of 1 to 4096: a hash, or a string. They are copied during
/// the call; runs are used until the ticket is done.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BatchC {
    /// `sizeof`, set by `kvtier_init`.
    pub size: u32,
    /// Set by `kvtier_init`.
    pub version: u32,
    /// All keys, one after the other.
    pub keys: *const u8,
    /// Number of keys; at most 2^20.
    pub num_keys: u64,
    /// Where each key ends in `keys`, if they have different lengths. Else null.
    pub key_ends: *const u64,
    /// Bytes of every key, if `key_ends` is null.
    pub key_bytes: u32,
    /// `KVTIER_BATCH_*`, or 0.
    pub flags: u32,
    /// For get and put: the memory of all keys, one key after the other. The runs of a key are one block together.
    pub runs: *const RunC,
    /// Number of runs.
    pub num_runs: u64,
    /// How many runs each key has. Null: `num_runs / num_keys` each.
    pub run_counts: *const u32,
    /// For offload and onboard: the pool's block of each key.
    pub blocks: *const u32,
    /// How long the operation may take, in nanoseconds; keys whose turn has not come then are not served. 0: 30 s.
    pub timeout_ns: u64,
    /// Told when the ticket is done; `{0}` for none.
    pub queue: QueueHandle,
    /// Comes back from the queue.
    pub tag: u64,
}

/// How an operation went.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ResultC {
    /// `sizeof`, set by `kvtier_init`.
    pub size: u32,
    /// Set by `kvtier_init`.
    pub version: u32,
    /// Statuses of the ticket: one per key, 1 for a flush.
    pub keys: u64,
    /// Keys that are `KVTIER_KEY_DONE` or `KVTIER_KEY_PRESENT`.
    pub done: u64,
    /// Of them, those before the first that is not: the usable prefix.
    pub prefix: u64,
}

/// A ticket that is done, as a queue reports it. Never grows.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CompletionC {
    /// As given.
    pub tag: u64,
    /// Keys that were served or stored.
    pub done: u32,
    /// Keys of the batch.
    pub keys: u32,
}

/// Counters of a store since it was opened, and what is in use now.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StatsC {
    /// `sizeof`, set by `kvtier_init`.
    pub size: u32,
    /// Set by `kvtier_init`.
    pub version: u32,
    /// Keys asked for by exists.
    pub exists_keys: u64,
    /// Of them, there.
    pub exists_found: u64,
    /// Keys of gets, onboards and pins.
    pub load_keys: u64,
    /// Of them, served.
    pub load_hits: u64,
    /// Of them, not served because reading failed or the bytes were refused.
    pub load_failed: u64,
    /// Of them, not served in time.
    pub load_timed_out: u64,
    /// Keys of puts and offloads.
    pub store_keys: u64,
    /// Of them, copied in.
    pub stored: u64,
    /// Of them, there already.
    pub present: u64,
    /// Of them, refused for lack of room.
    pub no_room: u64,
    /// Keys of cancelled operations.
    pub cancelled: u64,
    /// Submissions that were answered `KVTIER_BUSY`.
    pub busy: u64,
    /// Operations that wait or run now.
    pub under_way: u64,
    /// Blocks that host memory can hold.
    pub host_slots: u64,
    /// Of them, in use now.
    pub host_used: u64,
    /// Blocks on NVMe now.
    pub nvme_used: u64,
    /// Blocks read from NVMe.
    pub nvme_reads: u64,
    /// Blocks written to NVMe.
    pub nvme_writes: u64,
    /// Blocks whose bytes were refused by verification.
    pub refused_loads: u64,
    /// Reads that failed for another reason.
    pub failed_loads: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Blocks that left their last tier to make room.
    pub lost_to_eviction: u64,
    /// Bytes of one block.
    pub block_bytes: u64,
}

/// How a runtime's blocks lie in its tensors. Strides are in bytes; that of an axis of length 1 is not looked at.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PoolConfigC {
    /// `sizeof`, set by `kvtier_init`.
    pub size: u32,
    /// Set by `kvtier_init`.
    pub version: u32,
    /// Layers of a block.
    pub layers: u32,
    /// Tokens of a block: 1 to 1024.
    pub tokens_per_block: u32,
    /// Key/value heads of this rank; 0 for a latent (MLA).
    pub kv_heads: u32,
    /// Elements of one head's K, or of the latent.
    pub head_dim: u32,
    /// One of `KVTIER_DTYPE_*`.
    pub dtype: u32,
    /// One of `KVTIER_ORDER_*`: which of tokens and heads is the outer axis. Not looked at for a latent.
    pub order: u32,
    /// 1 if K and V of a head lie next to each other (the C axis of vLLM 0.33); 0 if all K come before all V.
    pub fused: u32,
    /// Blocks of the pool.
    pub num_blocks: u32,
    /// First byte of each buffer: by layer and, where K and V have buffers of their own, K before V. Pointers of the
    /// device for a GPU.
    pub buffers: *const *mut c_void,
    /// Number of buffers.
    pub num_buffers: u64,
    /// Layer to layer; `KVTIER_OWN_BUFFER` if each has a buffer of its own.
    pub layer_stride: u64,
    /// K to V; `KVTIER_OWN_BUFFER` likewise.
    pub plane_stride: u64,
    /// Block to block.
    pub block_stride: u64,
    /// Token to token.
    pub token_stride: u64,
    /// Head to head.
    pub head_stride: u64,
    /// Number of the GPU in this process, or `KVTIER_DEVICE_HOST`.
    pub device: i32,
    /// Number of streams.
    pub num_streams: u32,
    /// Streams on which the runtime uses the pool (`cudaStream_t` as numbers). Copies wait for what is queued there.
    pub streams: *const u64,
}

macro_rules! versioned {
    ($($name:ident: $smallest:literal),*) => { $(
        // SAFETY: repr(C), head first, no padding (the ABI test compares every offset), and numbers and raw pointers
        // have a value for every bit pattern.
        unsafe impl Versioned for $name {
            const SMALLEST: usize = $smallest;
        }
        const _: () = assert!(size_of::<$name>() >= $smallest);
    )* };
}
// Sizes of the first version. They stay when a struct grows.
versioned!(StoreConfigC: 96, BatchC: 96, ResultC: 32, StatsC: 192, PoolConfigC: 112);
