//! The whole engine on simulated time: the real planner, engine, log format and recovery; only the clock, the
//! disk, the GPU, the remote stores and the order of events come from a seed.
//!
//! After every step the books must balance; whatever a request is told to be ready must be, byte for byte,
//! what was stored under its key; and after a crash whatever was called durable must be there.

mod hands;
mod remotes;
mod store;

use std::collections::HashSet;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use kv_core::cost::TokenRange;
use kv_core::index::NamespaceIndex;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::planner::{Event, LogShape, Planner, PlannerConfig, Ready};
use kv_core::policy::PolicyKind;
use kv_core::tier::Tier;
use kv_core::units::{Bytes, Epoch, Nanos};
use kv_tiers::arena::{Arena, ArenaConfig};
use kv_tiers::engine::{Acquire, Clock, Engine, EngineError, Inbox, Lease};
use kv_tiers::nvme::{LogConfig, MemStore, OpenMode, Segments};
use kvtier_benches::SplitMix64;
use kvtier_benches::replay::Pattern;

use hands::SimHands;
use remotes::{BLOCK_TOKENS, PER_BLOCK, SimRemotes, Stores};
pub use store::{BadDisk, Misbehaviour, Mood};

/// Not a multiple of anything, so that padding is exercised.
const PAYLOAD: usize = 1000;
const FINGERPRINT: Fingerprint = Fingerprint([8; 16]);
const CONVERSATIONS: u64 = 8;
const LONGEST: u64 = 14;

/// What one simulation saw; for checking that simulations see enough.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Blocks compared.
    pub verified: u64,
    /// Of these, found in NVMe.
    pub from_nvme: u64,
    /// Loads that failed and became misses.
    pub lost: u64,
    /// Crashes survived.
    pub crashes: u64,
    /// Blocks that had to be there after a crash, and were.
    pub durable: u64,
    /// Records written again at reclaim.
    pub reinserted: u64,
    /// Blocks compared that came from remote stores.
    pub from_remote: u64,
    /// Loads that were given up at the rule's deadline.
    pub late: u64,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.verified += other.verified;
        self.from_nvme += other.from_nvme;
        self.lost += other.lost;
        self.crashes += other.crashes;
        self.durable += other.durable;
        self.reinserted += other.reinserted;
        self.from_remote += other.from_remote;
        self.late += other.late;
    }
}

/// One life of the machine: from opening to crash.
struct Life {
    engine: Engine,
    disk: Arc<BadDisk>,
    hands: Arc<SimHands>,
    remotes: Arc<SimRemotes>,
    namespace: NamespaceIndex,
    leases: Vec<(Vec<BlockKey>, Lease)>,
}

/// See the module's head.
pub struct Sim {
    rng: SplitMix64,
    pattern: Pattern,
    planner: PlannerConfig,
    misbehaviour: Misbehaviour,
    copy_errors: u64,
    disk: Arc<MemStore>,
    stores: Stores,
    remote_faults: u64,
    now: Nanos,
    /// In NVMe as far as events tell.
    stored: HashSet<BlockKey>,
    /// Called durable and not removed since.
    durable: HashSet<BlockKey>,
    /// Must be there when the log is opened next.
    expected: HashSet<BlockKey>,
    seen: Seen,
    log: bool,
}

impl Sim {
    /// A machine drawn from `seed`; `log` prints every step to standard error.
    #[must_use]
    pub fn new(seed: u64, log: bool) -> Self {
        let mut rng = SplitMix64::new(seed);
        let pick = |rng: &mut SplitMix64, n| if rng.once_in(2) { 0 } else { rng.between(n, n * 20) };
        let misbehaviour = if rng.once_in(3) {
            Misbehaviour::default()
        } else {
            Misbehaviour {
                errors: pick(&mut rng, 5),
                short: pick(&mut rng, 5),
                lying_reads: pick(&mut rng, 5),
                lying_writes: pick(&mut rng, 5),
            }
        };
        let copy_errors = pick(&mut rng, 5);
        let log_shape =
            LogShape { segments: rng.between(3, 6) as u32, records_per_segment: rng.between(1, 12) as u32 };
        let policies = PolicyKind::ALL;
        let planner = PlannerConfig {
            hbm_slots: if rng.once_in(3) { 0 } else { rng.between(1, 16) as u32 },
            host_slots: rng.between(2, 24) as u32,
            log: (!rng.once_in(8)).then_some(log_shape),
            record_bytes: Bytes(8192),
            policy: policies[rng.below(policies.len() as u64) as usize],
            nvme_budget: None,
            max_write_backs: rng.between(1, 8) as u32,
            slow: rng.once_in(2).then(|| remotes::sources(&mut rng, FINGERPRINT, PAYLOAD)),
        };
        Self {
            pattern: Pattern::new(seed),
            planner,
            misbehaviour,
            copy_errors,
            disk: Arc::new(MemStore::new()),
            stores: Stores::default(),
            remote_faults: pick(&mut rng, 5),
            now: Nanos(0),
            stored: HashSet::new(),
            durable: HashSet::new(),
            expected: HashSet::new(),
            seen: Seen::default(),
            log,
            rng,
        }
    }

    /// Lives `lives` times for up to `steps` steps, with a crash, a kill or a shutdown in between.
    ///
    /// # Panics
    /// When a promise is broken.
    pub fn run(mut self, lives: u32, steps: u32) -> Seen {
        self.say(format_args!("{:?} {:?}", self.planner, self.misbehaviour));
        for _ in 0..lives {
            let mut life = self.begin();
            for _ in 0..self.rng.between(1, u64::from(steps)) {
                self.step(&mut life);
                life.engine.audit().expect("the books balance");
            }
            self.end(life);
        }
        self.seen
    }

    fn say(&self, what: std::fmt::Arguments<'_>) {
        if self.log {
            eprintln!("{:>9} ms  {what}", self.now.0 / 1_000_000);
        }
    }

    fn begin(&mut self) -> Life {
        let arena = Arena::new(ArenaConfig::new(self.planner.host_slots, PAYLOAD)).expect("memory");
        let mut planner = Planner::new(self.planner.clone()).expect("sizes that work");
        let namespace =
            planner.namespace(NamespaceId([7; 16]), FINGERPRINT, Epoch(0)).expect("the first namespace");
        if let Some(sources) = &self.planner.slow {
            planner.restore_cost(self.now, &remotes::taught(sources)).expect("of the same model");
        }
        // The disk is good while the log is opened: opening on a bad one has its own tests.
        let disk = Arc::new(BadDisk::new(self.disk.clone(), self.misbehaviour, self.rng.next_u64()));
        let segments = self.planner.log.map(|shape| {
            let config = LogConfig {
                segments: shape.segments,
                records_per_segment: shape.records_per_segment,
                mode: OpenMode::Recover,
            };
            let (segments, recovery) = Segments::open(disk.clone(), arena.clone(), config).expect("opens");
            let served = planner.restore(&recovery.segments, &recovery.records);
            self.say(format_args!("opened: {served} records, {:?}", recovery.damaged));
            Arc::new(segments)
        });
        disk.set_mood(Mood::Bad);
        let stores = self.stores.clone();
        let remotes = SimRemotes::new(stores, arena.clone(), self.remote_faults, self.rng.next_u64());
        let remotes = Arc::new(remotes);
        let hands = SimHands::new(
            segments,
            arena.clone(),
            self.planner.hbm_slots,
            self.copy_errors,
            remotes.clone(),
            self.rng.next_u64(),
        );
        let hands = Arc::new(hands);
        let engine = Engine::assemble(planner, arena, hands.clone(), Clock::simulated(), &Inbox::default());
        engine.clock().advance_to(self.now);
        engine.take_events();
        let there = |key: &BlockKey| engine.residency(*key)[Tier::Nvme];
        for key in &self.expected {
            assert!(there(key), "{key:?} was called durable and is gone");
            self.seen.durable += 1;
        }
        self.stored = self.keys().filter(there).collect();
        Life { engine, disk, hands, remotes, namespace, leases: Vec::new() }
    }

    fn keys(&self) -> impl Iterator<Item = BlockKey> + use<> {
        (0..CONVERSATIONS).flat_map(|c| chain(c, LONGEST))
    }

    /// Power failure, kill or shutdown.
    fn end(&mut self, mut life: Life) {
        self.follow_events(&life);
        match self.rng.below(3) {
            0 => {
                self.say(format_args!("power failure"));
                self.disk = Arc::new(self.disk.crash(self.rng.next_u64()));
                self.expected.clone_from(&self.durable);
            }
            1 => {
                self.say(format_args!("kill"));
                self.expected.clone_from(&self.stored);
            }
            _ => {
                self.say(format_args!("shutdown"));
                self.drain(&mut life);
                self.follow_events(&life);
                self.expected.clone_from(&self.stored);
                if life.engine.flush().is_ok() {
                    self.durable.clone_from(&self.stored);
                }
            }
        }
        if !self.misbehaviour.keeps_its_word() {
            self.durable.clear();
            self.expected.clear();
        }
        self.seen.reinserted += life.engine.stats().reinserted;
        self.seen.late += life.engine.stats().loads_late;
        // What is left of the old life touches nothing any more.
        life.disk.set_mood(Mood::Unplugged);
        self.drain(&mut life);
        let closed = life.engine.shutdown(Duration::ZERO);
        assert!(matches!(closed, Ok(()) | Err(EngineError::Sync(_))), "{closed:?}");
        self.seen.crashes += 1;
    }

    /// Lets everything end.
    fn drain(&mut self, life: &mut Life) {
        life.engine.begin_shutdown();
        life.leases.clear();
        while life.hands.outstanding() > 0 {
            let (job, outcome) = life.hands.end(0);
            life.engine.complete(job, outcome);
        }
        while life.remotes.outstanding() > 0 {
            let (job, answer) = life.remotes.end(0, false);
            life.engine.answered(job, answer);
            while life.hands.outstanding() > 0 {
                let (job, outcome) = life.hands.end(0);
                life.engine.complete(job, outcome);
            }
        }
        life.engine.audit().expect("the books balance");
    }

    fn step(&mut self, life: &mut Life) {
        let (outstanding, calls) = (life.hands.outstanding(), life.remotes.outstanding());
        match self.rng.below(20) {
            0..=4 => self.acquire(life),
            5..=8 if !life.leases.is_empty() => self.finish(life),
            9 => {
                let end = self.now + Nanos::from_millis(self.rng.below(100));
                self.pass(life, end);
            }
            11..=13 if calls > 0 => {
                let nth = self.rng.below(calls as u64) as usize;
                let (job, answer) = life.remotes.end(nth, false);
                self.say(format_args!("{job:?} {answer:?}"));
                life.engine.answered(job, answer);
            }
            10 if self.rng.once_in(4) => self.flush(life),
            _ if outstanding > 0 => {
                let nth = self.rng.below(outstanding as u64) as usize;
                let (job, outcome) = life.hands.end(nth);
                self.say(format_args!("{job:?} {outcome:?}"));
                life.engine.complete(job, outcome);
            }
            _ => {}
        }
        self.follow_events(life);
    }

    /// Time passes. The engine is there at every deadline, and so it never spends more than it may.
    fn pass(&mut self, life: &Life, end: Nanos) {
        while let Some(due) = life.engine.next_deadline().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            life.engine.clock().advance_to(self.now);
            life.engine.tick();
            while let Some(nth) = life.remotes.late(self.now) {
                let (job, answer) = life.remotes.end(nth, true);
                life.engine.answered(job, answer);
            }
        }
        self.now = end;
        life.engine.clock().advance_to(self.now);
        life.engine.tick();
        if let Some(balance) = life.engine.balance() {
            assert!(balance.actual + balance.reserved <= balance.limit(), "{balance:?}");
        }
    }

    fn follow_events(&mut self, life: &Life) {
        if life.disk.take_sync_failure() {
            self.durable.clear();
        }
        for event in life.engine.take_events() {
            match event {
                Event::Stored { tier: Tier::Nvme, key, .. } => {
                    self.stored.insert(key);
                }
                Event::Removed { tier: Tier::Nvme, key } => {
                    self.stored.remove(&key);
                    self.durable.remove(&key);
                }
                _ => {}
            }
        }
    }

    fn acquire(&mut self, life: &mut Life) {
        let keys = chain(self.rng.below(CONVERSATIONS), self.rng.between(1, LONGEST));
        let patience = (!self.rng.once_in(3)).then(|| Duration::from_millis(self.rng.below(300)));
        self.say(format_args!("acquire {:?}.. ({}) {patience:?}", keys[0], keys.len()));
        let request = Acquire { namespace: life.namespace, keys: &keys, patience, notify: None };
        let lease = life.engine.acquire(&request).expect("a sane request");
        life.leases.push((keys, lease));
    }

    /// Ends some request: commits it if it was answered, or cancels it.
    fn finish(&mut self, life: &mut Life) {
        let nth = self.rng.below(life.leases.len() as u64) as usize;
        let Some(ready) = life.leases[nth].1.poll() else {
            if self.rng.once_in(8) {
                life.leases.swap_remove(nth).1.cancel();
            }
            return;
        };
        let (keys, mut lease) = life.leases.swap_remove(nth);
        self.check(life, &keys, &lease, ready);
        let computed = if self.rng.once_in(4) {
            self.rng.between(u64::from(ready.ready), u64::from(ready.granted)) as u32
        } else {
            ready.granted
        };
        for index in ready.ready..computed {
            let key = keys[index as usize];
            if self.planner.hbm_slots > 0 {
                let slot = lease.slots()[index as usize];
                life.hands.with_hbm(slot, |block| self.pattern.fill(key, block));
            } else {
                self.pattern.fill(key, lease.host_block_mut(index).expect("granted"));
            }
        }
        self.say(format_args!("commit {ready:?} computed {computed}"));
        lease.commit(computed).expect("computed lies between ready and granted");
        if computed > ready.ready {
            let range = TokenRange::new(ready.ready * BLOCK_TOKENS, computed * BLOCK_TOKENS);
            let took = Duration::from_nanos(PER_BLOCK.0) * (computed - ready.ready);
            life.engine.observed_prefill(range, took);
        }
    }

    fn check(&mut self, life: &Life, keys: &[BlockKey], lease: &Lease, ready: Ready) {
        for index in 0..ready.ready {
            let key = keys[index as usize];
            let same = if self.planner.hbm_slots > 0 {
                life.hands.with_hbm(lease.slots()[index as usize], |block| self.pattern.matches(key, block))
            } else {
                self.pattern.matches(key, lease.host_block(index).expect("ready"))
            };
            assert!(same, "block {index} of {ready:?} is not what was stored");
        }
        self.seen.verified += u64::from(ready.ready);
        self.seen.from_nvme += u64::from(ready.hits[Tier::Nvme]);
        self.seen.from_remote += u64::from(ready.remote_hits);
        self.seen.lost += u64::from(ready.lost);
    }

    fn flush(&mut self, life: &Life) {
        let before = self.stored.clone();
        let flushed = life.engine.flush();
        self.say(format_args!("flush {flushed:?}, {} stored", before.len()));
        if flushed.is_ok() && self.misbehaviour.keeps_its_word() {
            self.durable = before;
        }
    }
}

/// Conversations 2n and 2n + 1 share their first blocks.
fn chain(conversation: u64, len: u64) -> Vec<BlockKey> {
    let shared = 5;
    (0..len)
        .map(|i| {
            let owner = if i < shared { 1000 + conversation / 2 } else { conversation };
            let mut rng = SplitMix64::new(owner * 100 + i);
            let (low, high) = (rng.next_u64(), rng.next_u64());
            BlockKey::from_bytes((u128::from(high) << 64 | u128::from(low)).to_le_bytes())
        })
        .collect()
}
