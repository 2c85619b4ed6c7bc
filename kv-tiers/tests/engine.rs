//! The engine on real hands: an HBM stand-in, the arena, and the NVMe log in a temporary directory.
#![cfg(not(shuttle))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kv_core::index::NamespaceIndex;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::layout::{Arrangement, Attention, DType, HeadOrder, KvLayout, KvOrder, Placement};
use kv_core::planner::PlannerError;
use kv_core::policy::PolicyKind;
use kv_core::tier::{PerTier, Tier};
use kv_core::units::{Epoch, Tokens};
use kv_cuda::Device;
use kv_cuda::DeviceChoice;
use kv_tiers::engine::{
    Acquire, CompletionQueue, Engine, EngineConfig, EngineError, Lease, Notify, OpenError, Opened,
};
use kv_tiers::nvme::{LogConfig, NvmeConfig, OpenMode};

const LAYERS: u32 = 4;
/// Two planes of 2 heads of 8 fp8 elements for 16 tokens, in each layer.
const BLOCK: usize = LAYERS as usize * 2 * 2 * 8 * 16;
const LONG: Duration = Duration::from_secs(60);

fn pool(blocks: u32) -> Placement {
    let heads = Attention::Heads { kv_heads: 2, head_dim: 8, order: HeadOrder::Hnd, kv: KvOrder::Split };
    let layout = KvLayout::new(LAYERS, heads, DType::Fp8E4M3, Tokens(16)).unwrap();
    Placement::packed(layout, blocks, Arrangement::KvOuter).unwrap()
}

fn config(hbm: u32, host: u32, nvme: Option<&Path>) -> EngineConfig {
    let log = LogConfig { segments: 8, records_per_segment: 32, mode: OpenMode::Recover };
    EngineConfig {
        block_bytes: BLOCK,
        hbm: (hbm > 0).then(|| pool(hbm)),
        device: DeviceChoice::Host,
        host_slots: host,
        nvme: nvme.map(|dir| NvmeConfig { queue_depth: Some(8), ..NvmeConfig::new(dir, log) }),
        policy: PolicyKind::Lru,
        nvme_budget: None,
        max_write_backs: 8,
        slow: None,
    }
}

fn namespace(engine: &Engine) -> NamespaceIndex {
    engine.namespace(NamespaceId([1; 16]), Fingerprint([2; 16]), Epoch(0)).unwrap()
}

fn key(chain: u64, block: u64) -> BlockKey {
    let low = (chain << 32 | block).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    BlockKey::from_bytes((u128::from(low) << 64 | u128::from(low ^ chain)).to_le_bytes())
}

fn chain(id: u64, len: u64) -> Vec<BlockKey> {
    (0..len).map(|block| key(id, block)).collect()
}

fn bytes_of(key: BlockKey) -> Vec<u8> {
    (0..BLOCK as u64).map(|i| (key.low().wrapping_mul(i | 1) >> 56) as u8).collect()
}

/// Plays a runtime: checks what is ready, computes what is not.
struct Runtime {
    engine: Engine,
    device: Option<Arc<dyn Device>>,
    namespace: NamespaceIndex,
    compared: AtomicU64,
}

impl Runtime {
    fn new(opened: Opened) -> Self {
        let namespace = namespace(&opened.engine);
        Self { engine: opened.engine, device: opened.device, namespace, compared: AtomicU64::new(0) }
    }

    fn acquire(&self, keys: &[BlockKey], patience: Option<Duration>) -> Lease {
        let request = Acquire { namespace: self.namespace, keys, patience, notify: None };
        self.engine.acquire(&request).unwrap()
    }

    fn request(&self, keys: &[BlockKey]) -> PerTier<u32> {
        self.finish(keys, self.acquire(keys, None))
    }

    fn finish(&self, keys: &[BlockKey], mut lease: Lease) -> PerTier<u32> {
        let ready = lease.wait_for(LONG).expect("an answer");
        for (index, key) in (0..ready.granted).zip(keys) {
            let expected = bytes_of(*key);
            let slot = lease.slots()[index as usize];
            if index < ready.ready {
                let mut found = vec![0; BLOCK];
                match &self.device {
                    Some(device) => device.download(slot, &mut found).unwrap(),
                    None => found.copy_from_slice(lease.host_block(index).unwrap()),
                }
                assert!(found == expected, "block {index} is not what was stored");
                self.compared.fetch_add(1, Ordering::Relaxed);
            } else {
                match &self.device {
                    Some(device) => device.upload(slot, &expected).unwrap(),
                    None => lease.host_block_mut(index).unwrap().copy_from_slice(&expected),
                }
            }
        }
        lease.commit(ready.granted).unwrap();
        ready.hits
    }
}

#[test]
fn blocks_come_back_from_every_tier_and_after_a_restart() {
    for hbm in [0, 6] {
        let dir = tempfile::tempdir().unwrap();
        let config = config(hbm, 12, Some(dir.path()));
        let runtime = Runtime::new(Engine::open(&config).unwrap());
        let mut hits = PerTier::<u32>::default();
        for _round in 0..3 {
            for id in 0..12 {
                let found = runtime.request(&chain(id, 4));
                for tier in Tier::ALL {
                    hits[tier] += found[tier];
                }
                runtime.engine.quiesce(LONG).unwrap();
                // Again at once: now it is in the top tier.
                assert_eq!(runtime.request(&chain(id, 4)).0.iter().sum::<u32>(), 4);
            }
        }
        assert!(hits[Tier::Nvme] > 60, "{hits:?}");
        runtime.engine.quiesce(LONG).unwrap();
        runtime.engine.audit().unwrap();
        let on_disk = runtime.engine.occupied()[Tier::Nvme];
        runtime.engine.shutdown(LONG).unwrap();

        let opened = Engine::open(&config).unwrap();
        assert_eq!(opened.served, on_disk, "a clean shutdown loses nothing");
        let recovery = opened.recovery.as_ref().unwrap();
        assert!(recovery.damaged.is_empty(), "{:?}", recovery.damaged);
        let runtime = Runtime::new(opened);
        let found: u32 = (0..12).map(|id| runtime.request(&chain(id, 4))[Tier::Nvme]).sum();
        assert!(found >= 36, "{found} blocks came back from NVMe");
    }
}

#[test]
fn who_waits_for_writes_hears_of_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new(Engine::open(&config(0, 12, Some(dir.path()))).unwrap());
    assert!(runtime.engine.wait_written(Duration::ZERO), "there is nothing to write");
    runtime.request(&chain(1, 8));
    runtime.engine.write_back_all();
    assert!(runtime.engine.wait_written(LONG));
    assert_eq!((runtime.engine.unwritten(), runtime.engine.occupied()[Tier::Nvme]), (0, 8));
}

#[test]
fn hbm_alone_is_enough() {
    let runtime = Runtime::new(Engine::open(&config(4, 0, None)).unwrap());
    runtime.request(&chain(1, 3));
    assert_eq!(runtime.request(&chain(1, 3))[Tier::Hbm], 3);
    runtime.engine.audit().unwrap();
    runtime.engine.shutdown(LONG).unwrap();
}

#[test]
fn many_threads_store_load_cancel_and_flush() {
    for hbm in [0, 10] {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::new(Engine::open(&config(hbm, 40, Some(dir.path()))).unwrap());
        on_threads(8, |thread| {
            let mut random = thread.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut next = |n: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % n
            };
            for _ in 0..300 {
                let keys = chain(next(10), 1 + next(6));
                let patience = (next(4) == 0).then(|| Duration::from_micros(next(400)));
                match next(12) {
                    0 => runtime.acquire(&keys, patience).cancel(),
                    1 => runtime.engine.flush().unwrap(),
                    // Or the hands might not get a turn before the callers are through.
                    3 => runtime.engine.quiesce(LONG).unwrap(),
                    2 => {
                        assert!(runtime.engine.lookup(runtime.namespace, &keys).blocks as usize <= keys.len())
                    }
                    _ => {
                        runtime.finish(&keys, runtime.acquire(&keys, patience));
                    }
                }
            }
        });
        runtime.engine.quiesce(LONG).unwrap();
        runtime.engine.audit().unwrap();
        let stats = runtime.engine.stats();
        assert!(stats.hits[Tier::Nvme] > 0 && runtime.compared.load(Ordering::Relaxed) > 1000, "{stats:?}");
        assert_eq!(stats.stale_completions, 0);
        runtime.engine.shutdown(LONG).unwrap();
    }
}

fn on_threads(threads: u64, work: impl Fn(u64) + Sync) {
    std::thread::scope(|scope| {
        for thread in 1..=threads {
            let work = &work;
            scope.spawn(move || work(thread));
        }
    });
}

#[test]
fn a_batch_is_announced_through_one_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new(Engine::open(&config(4, 8, Some(dir.path()))).unwrap());
    for id in 0..6 {
        runtime.request(&chain(id, 2));
        runtime.engine.quiesce(LONG).unwrap();
    }
    let queue = Arc::new(CompletionQueue::new().unwrap());
    let chains: Vec<_> = (0..6).map(|id| chain(id, 2)).collect();
    let batch: Vec<_> = (0..)
        .zip(&chains)
        .map(|(tag, keys)| {
            let notify = Some(Notify { queue: queue.clone(), tag });
            Acquire { namespace: runtime.namespace, keys, patience: None, notify }
        })
        .collect();
    let leases: Vec<_> = runtime.engine.acquire_all(&batch).into_iter().map(Result::unwrap).collect();
    let (mut announced, end) = (Vec::new(), Instant::now() + LONG);
    while announced.len() < 6 && Instant::now() < end {
        queue.drain(&mut announced);
        std::thread::sleep(Duration::from_micros(100));
    }
    announced.sort_by_key(|c| c.tag);
    for (tag, lease) in leases.iter().enumerate() {
        assert_eq!(announced[tag].ready, lease.poll().unwrap());
        assert_eq!(announced[tag].tag, tag as u64);
    }
}

#[test]
fn misuse_is_refused_and_changes_nothing() {
    let runtime = Runtime::new(Engine::open(&config(0, 4, None)).unwrap());
    let keys = chain(1, 3);
    let mut lease = runtime.acquire(&keys, None);
    assert_eq!(lease.wait().granted, 3);
    assert!(matches!(lease.host_block(0), Err(EngineError::NoSuchBlock { index: 0, first: 0, end: 0, .. })));
    assert!(matches!(lease.host_block_mut(3), Err(EngineError::NoSuchBlock { index: 3, .. })));
    lease.host_block_mut(2).unwrap().fill(1);
    let refused = lease.commit(4).unwrap_err();
    assert!(matches!(refused.reason, EngineError::Planner(PlannerError::BadComputed { computed: 4, .. })));
    refused.lease.commit(3).unwrap();
    let lease = runtime.acquire(&keys, None);
    assert_eq!(lease.wait().ready, 3);
    assert_eq!(lease.host_block(2).unwrap()[5], 1);
    // The root key names no block.
    let bad = [BlockKey::ROOT];
    let request = Acquire { namespace: runtime.namespace, keys: &bad, patience: None, notify: None };
    assert!(matches!(runtime.engine.acquire(&request), Err(EngineError::Planner(PlannerError::RootKey(0)))));
    runtime.engine.audit().unwrap();

    let hbm = Runtime::new(Engine::open(&config(4, 4, None)).unwrap());
    let lease = hbm.acquire(&keys, None);
    assert_eq!(lease.wait().ready, 0);
    assert!(matches!(lease.host_block(0), Err(EngineError::NotInHostMemory)));
}

#[test]
fn a_lease_outlives_its_engine_harmlessly() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new(Engine::open(&config(0, 8, Some(dir.path()))).unwrap());
    let keys = chain(1, 3);
    runtime.request(&keys);
    let (reader, mut writer) = (runtime.acquire(&keys, None), runtime.acquire(&chain(2, 3), None));
    assert_eq!((reader.wait().ready, writer.wait().ready), (3, 0));
    runtime.engine.shutdown(LONG).unwrap();
    assert!(reader.host_block(1).unwrap() == bytes_of(keys[1]));
    writer.host_block_mut(0).unwrap().fill(7);
    writer.commit(1).unwrap();
    // The log is closed: another engine may have it, although leases of the first are still about.
    let again = Engine::open(&config(0, 8, Some(dir.path()))).unwrap();
    drop(reader);
    again.engine.shutdown(LONG).unwrap();
}

#[test]
fn what_cannot_be_opened_says_why() {
    let missing = tempfile::tempdir().unwrap().path().join("gone");
    assert!(matches!(Engine::open(&config(0, 4, Some(&missing))), Err(OpenError::Nvme(_))));
    assert!(matches!(Engine::open(&config(0, 0, None)), Err(OpenError::Config(_))));
    let wrong = EngineConfig { block_bytes: BLOCK + 1, ..config(2, 4, None) };
    let Err(OpenError::BlockBytes { block_bytes, layout_bytes }) = Engine::open(&wrong) else { panic!() };
    assert_eq!((block_bytes, layout_bytes), (BLOCK + 1, BLOCK));

    let dir = tempfile::tempdir().unwrap();
    let first = Engine::open(&config(0, 4, Some(dir.path()))).unwrap();
    assert!(matches!(Engine::open(&config(0, 4, Some(dir.path()))), Err(OpenError::Nvme(_))), "one writer");
    drop(first);
    Engine::open(&config(0, 4, Some(dir.path()))).unwrap();
}

/// The directory disappears under a running engine.
#[test]
fn a_vanished_directory_does_not_stop_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new(Engine::open(&config(0, 8, Some(dir.path()))).unwrap());
    for id in 0..20 {
        runtime.request(&chain(id, 3));
    }
    std::fs::remove_dir_all(dir.path()).unwrap();
    for id in 0..40 {
        runtime.request(&chain(id, 3));
    }
    runtime.engine.quiesce(LONG).unwrap();
    runtime.engine.audit().unwrap();
}
