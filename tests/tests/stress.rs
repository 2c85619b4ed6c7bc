//! Everything at once, on all three tiers: threads that look up, store, load, cancel, wait with little or no
//! patience, poll, ask in batches through eventfd queues and flush, until the engine is shut down under them.
//! Every byte that is ready is compared, and in the end the books must balance.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kv_core::key::BlockKey;
use kv_core::layout::{Arrangement, Attention, DType, HeadOrder, KvLayout, KvOrder, Placement};
use kv_core::planner::PlannerError;
use kv_core::policy::PolicyKind;
use kv_core::tier::Tier;
use kv_core::units::Tokens;
use kv_cuda::DeviceChoice;
use kv_tiers::engine::{Acquire, CompletionQueue, Engine, EngineConfig, EngineError, Lease, Notify, Opened};
use kv_tiers::nvme::{Backend, LogConfig, NvmeConfig, OpenMode};
use kvtier_benches::SplitMix64;
use kvtier_tests::chains::chain;
use kvtier_tests::runtime::{LONG, Runtime};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const THREADS: u64 = 10;
const STEPS: u64 = 15_000;
/// Conversations 2n and 2n + 1 are one chain at different lengths, so that threads meet.
const CONVERSATIONS: u64 = 60;
const LONGEST: u64 = 12;

fn layout() -> KvLayout {
    let heads = Attention::Heads { kv_heads: 2, head_dim: 8, order: HeadOrder::Hnd, kv: KvOrder::Split };
    KvLayout::new(4, heads, DType::Fp8E4M3, Tokens(16)).unwrap()
}

fn config(dir: &std::path::Path, hbm: u32, policy: PolicyKind, backend: Backend) -> EngineConfig {
    // Half of what is asked for fits into all tiers together: everything moves all the time.
    let log = LogConfig { segments: 8, records_per_segment: 24, mode: OpenMode::Recover };
    let pool = (hbm > 0).then(|| Placement::packed(layout(), hbm, Arrangement::KvOuter).unwrap());
    EngineConfig {
        block_bytes: layout().bytes_per_block(),
        hbm: pool,
        device: DeviceChoice::Host,
        host_slots: 90,
        nvme: Some(NvmeConfig { queue_depth: Some(8), backend, ..NvmeConfig::new(dir, log) }),
        policy,
        nvme_budget: None,
        max_write_backs: 16,
        slow: None,
    }
}

/// One thread's work; its draws come from its number.
struct Worker<'a> {
    runtime: &'a Runtime,
    rng: SplitMix64,
    queue: Arc<CompletionQueue>,
    /// Batches are told apart by their tags.
    next_tag: u64,
    announced: &'a AtomicU64,
}

impl Worker<'_> {
    fn keys(&mut self) -> Vec<BlockKey> {
        chain(self.rng.below(CONVERSATIONS) / 2, self.rng.between(1, LONGEST))
    }

    fn patience(&mut self) -> Option<Duration> {
        match self.rng.below(4) {
            0 => Some(Duration::ZERO),
            1 => Some(Duration::from_micros(self.rng.below(500))),
            _ => None,
        }
    }

    fn step(&mut self) {
        let (keys, patience) = (self.keys(), self.patience());
        let runtime = self.runtime;
        match self.rng.below(20) {
            0 | 1 => runtime.acquire(&keys, patience).cancel(),
            2 => runtime.engine.flush().unwrap(),
            3 => assert!(runtime.engine.lookup(runtime.namespace(), &keys).blocks as usize <= keys.len()),
            4 => {
                runtime.read(&keys);
            }
            5 => {
                // Gives up if the answer is not there at once.
                let lease = runtime.acquire(&keys, patience);
                if lease.poll().is_some() {
                    runtime.finish(&keys, lease);
                }
            }
            6 => {
                // Two at a time, ended in the other order: slots stay pinned for long.
                let others = self.keys();
                let (first, second) =
                    (runtime.acquire(&keys, patience), runtime.acquire(&others, Some(LONG)));
                runtime.finish(&others, second);
                runtime.finish(&keys, first);
            }
            7 => runtime.engine.audit().unwrap(),
            8 | 9 => self.batch(),
            _ => {
                runtime.finish(&keys, runtime.acquire(&keys, patience));
            }
        }
    }

    /// Several requests at once, each ended when the descriptor says that its answer is there.
    fn batch(&mut self) {
        let wanted: Vec<_> = (0..self.rng.between(1, 5)).map(|_| (self.keys(), self.patience())).collect();
        let first = self.next_tag;
        self.next_tag += wanted.len() as u64;
        let requests: Vec<_> = (first..)
            .zip(&wanted)
            .map(|(tag, (keys, patience))| Acquire {
                namespace: self.runtime.namespace(),
                keys,
                patience: *patience,
                notify: Some(Notify { queue: self.queue.clone(), tag }),
            })
            .collect();
        let mut leases: Vec<Option<Lease>> = self
            .runtime
            .engine
            .acquire_all(&requests)
            .into_iter()
            .map(|lease| Some(lease.unwrap()))
            .collect();
        let mut answers = Vec::new();
        while leases.iter().any(Option::is_some) {
            let mut fds = [PollFd::new(&*self.queue, PollFlags::IN)];
            let limit = Timespec { tv_sec: LONG.as_secs() as i64, tv_nsec: 0 };
            assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "an answer within a minute");
            self.queue.drain(&mut answers);
            for answer in answers.drain(..) {
                let nth = (answer.tag - first) as usize;
                let lease = leases[nth].take().expect("each is announced once");
                assert_eq!(lease.poll(), Some(answer.ready));
                self.runtime.finish(&wanted[nth].0, lease);
                self.announced.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn on_threads(runtime: &Runtime, announced: &AtomicU64, seed: u64, work: impl Fn(Worker<'_>) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let work = &work;
            let worker = Worker {
                runtime,
                rng: SplitMix64::new(seed * 1000 + thread),
                queue: Arc::new(CompletionQueue::new().unwrap()),
                next_tag: 0,
                announced,
            };
            scope.spawn(move || work(worker));
        }
    });
}

fn stress(hbm: u32, policy: PolicyKind, backend: Backend) {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), hbm, policy, backend);
    let Opened { engine, device, .. } = Engine::open(&config).unwrap();
    let runtime = Runtime::new(engine, device);
    let announced = AtomicU64::new(0);
    on_threads(&runtime, &announced, 1, |mut worker| (0..STEPS).for_each(|_| worker.step()));
    runtime.engine.quiesce(LONG).unwrap();
    runtime.engine.audit().unwrap();
    let stats = runtime.engine.stats();
    let enough = [
        runtime.verified() > 5 * STEPS,
        stats.hits[Tier::Hbm] > STEPS || hbm == 0,
        stats.hits[Tier::Host] > STEPS,
        stats.hits[Tier::Nvme] > STEPS,
        stats.lost > 0,
        stats.evictions[Tier::Nvme] > 100,
        announced.load(Ordering::Relaxed) > STEPS,
    ];
    println!(
        "{} on {backend:?}, {hbm} HBM blocks: {} blocks verified, {stats:?}",
        policy.name(),
        runtime.verified()
    );
    assert!(enough.iter().all(|e| *e), "{enough:?}");
    let never = [stats.stale_completions, stats.refused_loads, stats.failed_loads, stats.failed_writes];
    assert_eq!(never, [0; 4], "a good disk fails nothing");

    shut_down_under_load(&runtime);
    runtime.engine.audit().unwrap();
    let found = runtime.engine.occupied()[Tier::Nvme];
    runtime.engine.shutdown(LONG).unwrap();
    let opened = Engine::open(&config).unwrap();
    // Evicted blocks whose segment was not opened anew are there again.
    assert!(opened.served >= found, "{} of {found}", opened.served);
    let damaged = opened.recovery.unwrap().damaged;
    assert!(damaged.is_empty(), "{damaged:?}");
    let runtime = Runtime::new(opened.engine, opened.device);
    for conversation in 0..CONVERSATIONS / 2 {
        runtime.read(&chain(conversation, LONGEST));
    }
    assert!(runtime.verified() > 0);
}

/// One thread closes the door while the others go in and out. Who is in may finish; who comes later is
/// told so.
fn shut_down_under_load(runtime: &Runtime) {
    let turned_away = AtomicU64::new(0);
    on_threads(runtime, &AtomicU64::new(0), 2, |mut worker| {
        let closes = worker.rng.once_in(3);
        for step in 0..200 {
            if closes && step == 100 {
                runtime.engine.begin_shutdown();
            }
            let (keys, patience) = (worker.keys(), worker.patience());
            let request = Acquire { namespace: runtime.namespace(), keys: &keys, patience, notify: None };
            match runtime.engine.acquire(&request) {
                Ok(lease) if worker.rng.once_in(4) => lease.cancel(),
                Ok(lease) => {
                    runtime.finish(&keys, lease);
                }
                Err(EngineError::Planner(PlannerError::Closing)) => {
                    turned_away.fetch_add(1, Ordering::Relaxed);
                }
                Err(other) => panic!("{other}"),
            }
            if worker.rng.once_in(20) {
                runtime.engine.flush().unwrap();
            }
        }
    });
    assert!(turned_away.load(Ordering::Relaxed) > 0, "it was closed while they were at it");
    runtime.engine.quiesce(LONG).unwrap();
}

#[test]
fn three_tiers_with_the_default_policy() {
    stress(80, PolicyKind::default(), Backend::Auto);
}

#[test]
fn three_tiers_on_a_pool_of_threads() {
    stress(80, PolicyKind::S3Fifo, Backend::Pool);
}

#[test]
fn host_memory_on_top() {
    stress(0, PolicyKind::Lru, Backend::Auto);
}
