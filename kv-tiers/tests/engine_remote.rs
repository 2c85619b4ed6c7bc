//! Two engines, as on two nodes, that share a remote store: what one has computed the other loads, if it pays, and
//! whatever happens to the store nobody ever reads a wrong byte.
#![cfg(not(shuttle))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kv_core::cost::{TokenRange, priors};
use kv_core::index::NamespaceIndex;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::layout::{Arrangement, Attention, DType, HeadOrder, KvLayout, KvOrder, Placement};
use kv_core::planner::PlannerStats;
use kv_core::policy::PolicyKind;
use kv_core::units::{Epoch, Tokens};
use kv_cuda::{Device, DeviceChoice};
use kv_tiers::engine::{Acquire, Engine, EngineConfig, RemoteConfig, SlowConfig};
use kv_tiers::remote::{FsStore, Limits, RemoteStore};

const LAYERS: u32 = 4;
const BLOCK: usize = LAYERS as usize * 2 * 2 * 8 * 16;
const TOKENS: u32 = 512;
/// What recomputing one block is said to take: far more than any load in these tests.
const PER_BLOCK: Duration = Duration::from_millis(2000);
const LONG: Duration = Duration::from_secs(60);
const CHAINS: u64 = 6;
const LENGTH: u64 = 8;

fn pool(blocks: u32) -> Placement {
    let heads = Attention::Heads { kv_heads: 2, head_dim: 8, order: HeadOrder::Hnd, kv: KvOrder::Split };
    let layout = KvLayout::new(LAYERS, heads, DType::Fp8E4M3, Tokens(16)).unwrap();
    Placement::packed(layout, blocks, Arrangement::KvOuter).unwrap()
}

fn chain(id: u64) -> Vec<BlockKey> {
    let key = |block: u64| {
        let low = (id << 32 | block).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        BlockKey::from_bytes((u128::from(low) << 64 | u128::from(low ^ id)).to_le_bytes())
    };
    (0..LENGTH).map(key).collect()
}

fn bytes_of(key: BlockKey) -> Vec<u8> {
    (0..BLOCK as u64).map(|i| (key.low().wrapping_mul(i | 1) >> 56) as u8).collect()
}

/// One node.
struct Node {
    engine: Engine,
    device: Option<Arc<dyn Device>>,
    namespace: NamespaceIndex,
}

impl Node {
    fn open(store: Arc<dyn RemoteStore>, hbm: u32, learnt: Option<PathBuf>) -> Self {
        let remote = RemoteConfig {
            name: "shared".to_owned(),
            store,
            link: priors::NETWORK,
            writes: true,
            elements: None,
        };
        let opened = Engine::open(&EngineConfig {
            block_bytes: BLOCK,
            hbm: (hbm > 0).then(|| pool(hbm)),
            device: DeviceChoice::Host,
            host_slots: 12,
            nvme: None,
            policy: PolicyKind::Lru,
            nvme_budget: None,
            max_write_backs: 8,
            slow: Some(SlowConfig {
                tokens_per_block: TOKENS,
                fingerprint: Fingerprint([2; 16]),
                curve: priors::UNKNOWN,
                nvme: None,
                remotes: vec![remote],
                learnt,
            }),
        })
        .unwrap();
        let namespace =
            opened.engine.namespace(NamespaceId([1; 16]), Fingerprint([2; 16]), Epoch(0)).unwrap();
        Self { engine: opened.engine, device: opened.device, namespace }
    }

    /// Serves one conversation as a runtime would, and compares every byte that it is given.
    fn serve(&self, id: u64) {
        let keys = chain(id);
        let request = Acquire { namespace: self.namespace, keys: &keys, patience: None, notify: None };
        let mut lease = self.engine.acquire(&request).unwrap();
        let ready = lease.wait_for(LONG).expect("an answer, whatever the store does");
        for (index, key) in (0..ready.granted).zip(&keys) {
            let expected = bytes_of(*key);
            let slot = lease.slots()[index as usize];
            match (&self.device, index < ready.ready) {
                (Some(device), true) => {
                    let mut found = vec![0; BLOCK];
                    device.download(slot, &mut found).unwrap();
                    assert!(found == expected, "block {index} is not what was stored");
                }
                (None, true) => assert!(lease.host_block(index).unwrap() == expected, "block {index}"),
                (Some(device), false) => device.upload(slot, &expected).unwrap(),
                (None, false) => lease.host_block_mut(index).unwrap().copy_from_slice(&expected),
            }
        }
        lease.commit(ready.granted).unwrap();
        if ready.ready < ready.granted {
            let range = TokenRange::new(ready.ready * TOKENS, ready.granted * TOKENS);
            self.engine.observed_prefill(range, PER_BLOCK * (ready.granted - ready.ready));
        }
        self.engine.quiesce(LONG).unwrap();
        self.engine.audit().unwrap();
    }

    fn serve_all(&self, rounds: u64) -> PlannerStats {
        for round in 0..rounds * CHAINS {
            self.serve(round % CHAINS);
        }
        self.engine.stats()
    }
}

fn store(dir: &Path) -> Arc<dyn RemoteStore> {
    Arc::new(FsStore::open(dir, Limits::default()).unwrap())
}

/// Every record in the store.
fn records(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false if entry.metadata().unwrap().len() > BLOCK as u64 => found.push(entry.path()),
                false => {}
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_one_node_has_computed_another_loads() {
    for hbm in [0, 16] {
        let dir = tempfile::tempdir().unwrap();
        let first = Node::open(store(dir.path()), hbm, None);
        let stats = first.serve_all(2);
        assert!(stats.remote_writes >= CHAINS * LENGTH, "{stats:?}");
        assert_eq!(stats.remote_writes_lost, 0);
        first.engine.shutdown(LONG).unwrap();
        assert_eq!(records(dir.path()).len() as u64, CHAINS * LENGTH);

        let second = Node::open(store(dir.path()), hbm, None);
        let stats = second.serve_all(6);
        assert!(stats.remote_hits >= LENGTH, "{stats:?}");
        let balance = second.engine.balance().unwrap();
        assert!(balance.actual < balance.recompute_only, "{balance:?}");
        let quote = second.engine.quote(second.namespace, &chain(0)).unwrap();
        let with_remote = quote.with_remote.expect("a measured store");
        assert!(with_remote.expected < quote.here.expected || quote.here.expected == 0.0, "{quote:?}");
        second.engine.shutdown(LONG).unwrap();
    }
}

#[test]
fn what_was_learnt_is_there_in_the_next_life() {
    let dir = tempfile::tempdir().unwrap();
    let learnt = dir.path().join("learnt");
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let node = Node::open(store(&shared), 0, Some(learnt.clone()));
    assert!(node.serve_all(6).remote_hits > 0);
    let before = node.engine.balance().unwrap();
    node.engine.shutdown(LONG).unwrap();

    let node = Node::open(store(&shared), 0, Some(learnt.clone()));
    assert_eq!(node.engine.balance().unwrap().recompute_only, before.recompute_only);
    node.serve(0);
    assert_eq!(node.engine.stats().remote_hits, LENGTH, "the very first request may load");
    node.engine.shutdown(LONG).unwrap();

    fs::write(&learnt, b"not what it was").unwrap();
    let node = Node::open(store(&shared), 0, Some(learnt));
    assert_eq!(node.engine.balance().unwrap().recompute_only.0, 0, "a damaged file is not used");
}

/// Records are cut, damaged and exchanged all the time. Every byte is compared in `serve`.
#[test]
fn a_store_that_is_tampered_with_costs_time_and_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let shared = store(dir.path());
    let node = Node::open(shared.clone(), 0, None);
    node.serve_all(6);
    let mut damaged = 0;
    for round in 0..40_u64 {
        let files = records(dir.path());
        let pick = |n: u64| {
            &files[(round.wrapping_mul(0x9E37_79B9).wrapping_add(n * 7) % files.len() as u64) as usize]
        };
        match round % 3 {
            0 => {
                let mut bytes = fs::read(pick(0)).unwrap();
                let at = (round as usize * 131) % bytes.len();
                bytes[at] ^= 1 << (round % 8);
                fs::write(pick(0), bytes).unwrap();
            }
            1 => {
                let len = fs::metadata(pick(0)).unwrap().len();
                fs::OpenOptions::new()
                    .write(true)
                    .open(pick(0))
                    .unwrap()
                    .set_len(len - 1 - round % len)
                    .unwrap();
            }
            _ => {
                let (a, b) = (fs::read(pick(0)).unwrap(), fs::read(pick(1)).unwrap());
                fs::write(pick(0), b).unwrap();
                fs::write(pick(1), a).unwrap();
            }
        }
        node.serve_all(1);
        damaged = shared.counters().refused();
    }
    assert!(damaged > 5, "{:?}", shared.counters());
    let stats = node.engine.stats();
    assert!(stats.remote_hits > 100, "{stats:?}");
    assert!(stats.refused_loads > 0 && stats.lost > 0, "{stats:?}");
}
