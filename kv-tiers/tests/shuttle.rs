//! The engine's locks under a model checker: thousands of schedules of callers and hands.
//!
//! Run with `RUSTFLAGS="--cfg shuttle" cargo test -p kv-tiers --test shuttle` (`make test` does). Jobs run on
//! threads of the model, so a report can come at any point, even before `submit` has returned. A lost
//! wake-up shows as a deadlock, which shuttle reports with the schedule that led there.
#![cfg(shuttle)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use kv_core::ids::JobId;
use kv_core::index::NamespaceIndex;
use kv_core::job::{CompletionSink, Job, Op, TransferError};
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::planner::{LogShape, Planner, PlannerConfig};
use kv_core::policy::PolicyKind;
use kv_core::units::{Bytes, Epoch};
use kv_tiers::arena::{Arena, ArenaConfig};
use kv_tiers::engine::{Acquire, Clock, Completion, CompletionQueue, Engine, Hand, Inbox, Lease, Notify};
use kv_tiers::nvme::{LogConfig, MemStore, OpenMode, Segments};
use shuttle::thread;

const PAYLOAD: usize = 64;
const SLOTS: u32 = 3;

/// Carries out every job on a thread of its own.
struct Threads {
    segments: Arc<Segments>,
    inbox: Arc<Inbox>,
}

impl Hand for Threads {
    fn submit(&self, jobs: Vec<Job>) -> Vec<(JobId, TransferError)> {
        for job in jobs {
            let (segments, inbox) = (self.segments.clone(), self.inbox.clone());
            thread::spawn(move || {
                let result = match job.op {
                    Op::Offload { .. } | Op::Onboard { .. } => Err(TransferError::Down),
                    _ => segments.execute(&job),
                };
                inbox.complete(job.id, result);
            });
        }
        Vec::new()
    }
    fn sync(&self) -> Result<(), TransferError> {
        self.segments.sync()
    }
    fn close(&self) {}
}

/// Takes nothing on: every job comes back from `submit`.
struct Refuses;

impl Hand for Refuses {
    fn submit(&self, jobs: Vec<Job>) -> Vec<(JobId, TransferError)> {
        jobs.iter().map(|job| (job.id, TransferError::Down)).collect()
    }
    fn sync(&self) -> Result<(), TransferError> {
        Err(TransferError::Down)
    }
    fn close(&self) {}
}

/// One for all schedules of a test: mapping memory takes longer than a schedule, and what an earlier one left
/// in it does not matter.
fn arena() -> Arc<Arena> {
    Arena::new(ArenaConfig::new(SLOTS, PAYLOAD)).unwrap()
}

fn planner() -> (Planner, NamespaceIndex) {
    let config = PlannerConfig {
        hbm_slots: 0,
        host_slots: SLOTS,
        log: Some(LogShape { segments: 3, records_per_segment: 4 }),
        record_bytes: Bytes(8192),
        policy: PolicyKind::Lru,
        nvme_budget: None,
        max_write_backs: 2,
        slow: None,
    };
    let mut planner = Planner::new(config).unwrap();
    let namespace = planner.namespace(NamespaceId([1; 16]), Fingerprint([2; 16]), Epoch(0)).unwrap();
    (planner, namespace)
}

fn engine(arena: &Arc<Arena>) -> (Arc<Engine>, NamespaceIndex) {
    let (planner, namespace) = planner();
    let config = LogConfig { segments: 3, records_per_segment: 4, mode: OpenMode::Recover };
    let (segments, _) = Segments::open(Arc::new(MemStore::new()), arena.clone(), config).unwrap();
    let inbox = Arc::new(Inbox::default());
    let hands = Arc::new(Threads { segments: Arc::new(segments), inbox: inbox.clone() });
    (Arc::new(Engine::assemble(planner, arena.clone(), hands, Clock::simulated(), &inbox)), namespace)
}

fn chain(id: u8) -> Vec<BlockKey> {
    (0..2)
        .map(|block| BlockKey::from_bytes([id + 1, block, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]))
        .collect()
}

fn byte_of(key: BlockKey) -> u8 {
    key.to_bytes()[0].wrapping_mul(31) ^ key.to_bytes()[1]
}

/// Checks what is ready and fills the rest.
fn finish(mut lease: Lease, keys: &[BlockKey]) {
    let ready = lease.wait();
    for (index, key) in (0..ready.granted).zip(keys) {
        if index < ready.ready {
            assert!(lease.host_block(index).unwrap().iter().all(|b| *b == byte_of(*key)));
        } else {
            lease.host_block_mut(index).unwrap().fill(byte_of(*key));
        }
    }
    lease.commit(ready.granted).unwrap();
}

fn acquire(engine: &Engine, namespace: NamespaceIndex, keys: &[BlockKey], notify: Option<Notify>) -> Lease {
    engine.acquire(&Acquire { namespace, keys, patience: None, notify }).unwrap()
}

/// Three chains of two blocks in three slots: callers evict, load and wait for each other's blocks.
fn callers_and_hands(arena: &Arc<Arena>) {
    let (engine, namespace) = engine(arena);
    for id in 0..3 {
        finish(acquire(&engine, namespace, &chain(id), None), &chain(id));
    }
    let callers: Vec<_> = (0..3)
        .map(|caller: u8| {
            let engine = engine.clone();
            thread::spawn(move || {
                let keys = chain(caller % 2);
                if caller == 0 {
                    finish(acquire(&engine, namespace, &keys, None), &keys);
                } else {
                    let queue = Arc::new(CompletionQueue::new().unwrap());
                    let notify = Some(Notify { queue: queue.clone(), tag: 7 });
                    let lease = acquire(&engine, namespace, &keys, notify);
                    let mut announced: Vec<Completion> = Vec::new();
                    while announced.is_empty() {
                        thread::yield_now();
                        queue.drain(&mut announced);
                    }
                    assert_eq!((announced.len(), announced[0].tag), (1, 7));
                    assert_eq!(lease.poll(), Some(announced[0].ready), "whoever hears of it can go on");
                    finish(lease, &keys);
                }
                acquire(&engine, namespace, &chain(2), None).cancel();
                engine.flush().unwrap();
            })
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    // Also waits, in the model, for every job's thread.
    Arc::into_inner(engine).unwrap().shutdown(std::time::Duration::MAX / 4).unwrap();
}

#[test]
fn no_schedule_loses_an_answer_or_a_slot() {
    let arena = arena();
    let again = arena.clone();
    shuttle::check_random(move || callers_and_hands(&again), 3_000);
    shuttle::check_pct(move || callers_and_hands(&arena), 3_000, 3);
}

#[test]
fn refused_jobs_are_answered_and_nobody_waits_for_ever() {
    let arena = arena();
    let scenario = move || {
        let (planner, namespace) = planner();
        let engine = Arc::new(Engine::assemble(
            planner,
            arena.clone(),
            Arc::new(Refuses),
            Clock::simulated(),
            &Inbox::default(),
        ));
        let callers: Vec<_> = (0..3)
            .map(|id| {
                let engine = engine.clone();
                thread::spawn(move || finish(acquire(&engine, namespace, &chain(id), None), &chain(id)))
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        engine.audit().unwrap();
        assert_eq!(engine.stats().nvme_writes, 0);
    };
    shuttle::check_random(scenario, 1_000);
}
