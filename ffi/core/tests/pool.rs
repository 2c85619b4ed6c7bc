//! Paged tensors in ordinary memory, offloaded and onboarded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use kv_core::ids::SlotId;
use kv_core::job::TransferError;
use kv_core::layout::{Arrangement, Attention, DType, HeadOrder, KvLayout, KvOrder, Placement};
use kv_core::units::Tokens;
use kvtier_ffi::pool::{Pool, PoolConfig, PoolDevice, PoolError};
use kvtier_ffi::task::LayerError;
use kvtier_ffi::{Identity, KeyStatus, Store, StoreConfig, Submission, SubmitError};

const LAYERS: u32 = 4;
const BLOCKS: u32 = 40;
const LONG: Duration = Duration::from_secs(60);

fn placement() -> Placement {
    let heads = Attention::Heads { kv_heads: 2, head_dim: 16, order: HeadOrder::Nhd, kv: KvOrder::Split };
    let layout = KvLayout::new(LAYERS, heads, DType::Bf16, Tokens(8)).unwrap();
    Placement::packed(layout, BLOCKS, Arrangement::KvOuter).unwrap()
}

fn store(blocks: u64) -> Store {
    let block = placement().layout().bytes_per_block();
    Store::open(&StoreConfig::new(block, blocks * (block as u64 + 4096), Identity::default())).unwrap()
}

/// The runtime's tensors. Only raw pointers to them are kept, as a runtime does.
struct Tensors(Vec<NonNull<[u8]>>);

impl Tensors {
    fn new() -> Self {
        let buffer = |n| {
            let bytes: Vec<u8> =
                (0..placement().buffer_bytes()).map(|i| (i * 31 + n * 7 + i / 251) as u8).collect();
            NonNull::from(Box::leak(bytes.into_boxed_slice()))
        };
        Self((0..placement().buffers() as usize).map(buffer).collect())
    }

    fn pool(&self, store: &Store) -> Result<Arc<Pool>, PoolError> {
        let buffers = self.0.iter().map(|buffer| buffer.cast()).collect();
        let config =
            PoolConfig { placement: placement(), buffers, device: PoolDevice::Host, owner: Arc::new(()) };
        // SAFETY: the tensors live until the pool is closed, and the tests touch no block of an operation under way.
        unsafe { store.register(config) }
    }

    /// A block, fragment by fragment.
    fn block(&self, block: u32) -> Vec<u8> {
        let fragments = placement().fragments(SlotId(block)).unwrap();
        // SAFETY: no operation is under way.
        let piece = |f: kv_core::layout::Fragment| unsafe {
            self.0[f.buffer as usize].as_ref()[f.offset..f.offset + f.len].to_vec()
        };
        fragments.flat_map(piece).collect()
    }

    fn clear(&mut self) {
        // SAFETY: no operation is under way.
        self.0.iter_mut().for_each(|buffer| unsafe { buffer.as_mut() }.fill(0));
    }
}

impl Drop for Tensors {
    fn drop(&mut self) {
        for buffer in &self.0 {
            // SAFETY: leaked in `new`; the pool is closed by now.
            drop(unsafe { Box::from_raw(buffer.as_ptr()) });
        }
    }
}

fn keys(store: &Store, ids: impl Iterator<Item = u32>) -> Submission {
    let keys: Vec<_> = ids.map(|id| id.to_le_bytes()).collect();
    Submission::of(store.keys(keys.iter().map(<[u8; 4]>::as_slice)).unwrap())
}

#[test]
fn blocks_go_out_and_come_back_to_other_places() {
    // Once in one turn of the worker (a sixteenth of 1000), once in many.
    for slots in [1000, 64] {
        let store = store(slots);
        let mut tensors = Tensors::new();
        let pool = tensors.pool(&store).unwrap();
        assert!(matches!(tensors.pool(&store), Err(PoolError::Taken)));
        let before: Vec<_> = (0..BLOCKS).map(|block| tensors.block(block)).collect();
        let offload = store.offload(keys(&store, 0..30), &pool, (0..30).collect()).unwrap();
        assert_eq!(offload.wait(LONG).unwrap().done, 30);
        assert_eq!(offload.wait_layer(0, LONG), Err(LayerError::NotALoad));
        tensors.clear();
        let to: Vec<u32> = (0..31).map(|id| BLOCKS - 1 - id).collect();
        let onboard = store.onboard(keys(&store, 0..31), &pool, to.clone()).unwrap();
        for layer in 0..LAYERS {
            onboard.wait_layer(layer, LONG).unwrap();
        }
        assert_eq!(onboard.wait(LONG).unwrap().prefix, 30);
        assert_eq!(onboard.statuses()[30], KeyStatus::Missing);
        for (id, block) in to.iter().enumerate().take(30) {
            assert!(tensors.block(*block) == before[id], "{id}");
        }
        assert!(tensors.block(BLOCKS - 31).iter().all(|byte| *byte == 0), "a miss touches nothing");
        let nothing = store.onboard(keys(&store, 90..91), &pool, vec![0]).unwrap();
        assert_eq!(nothing.wait_layer(0, LONG), Err(LayerError::Failed(TransferError::Down)));
        pool.close();
        let refused = store.offload(keys(&store, 0..1), &pool, vec![0]);
        assert!(matches!(refused, Err(SubmitError::Closed)));
        let again = tensors.pool(&store).unwrap();
        assert!(matches!(store.offload(keys(&store, 0..1), &pool, vec![0]), Err(SubmitError::OtherPool)));
        let outside = store.onboard(keys(&store, 0..1), &again, vec![BLOCKS]);
        assert!(matches!(outside, Err(SubmitError::NoSuchBlock { block: BLOCKS, .. })));
        store.close(LONG).unwrap();
        assert!(again.is_closed());
    }
}

#[test]
fn a_pool_of_other_blocks_is_refused() {
    let store = Store::open(&StoreConfig::new(8192, 1 << 20, Identity::default())).unwrap();
    let tensors = Tensors::new();
    assert!(matches!(tensors.pool(&store), Err(PoolError::BlockBytes { store: 8192, .. })));
    let store = self::store(64);
    let config = PoolConfig {
        placement: placement(),
        buffers: vec![tensors.0[0].cast()],
        device: PoolDevice::Host,
        owner: Arc::new(()),
    };
    // SAFETY: refused for want of buffers.
    assert!(matches!(unsafe { store.register(config) }, Err(PoolError::Host(_))));
    drop(tensors.pool(&store).unwrap());
}
