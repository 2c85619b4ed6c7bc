//! The engine: one planner, its hands, and the threads that call them.
//!
//! ```text
//!  caller threads ── acquire / commit ──┐                      ┌── hands' threads: complete
//!                                       ▼                      ▼
//!                         one lock: Planner ──► jobs, answers (collected under the lock)
//!                                       │
//!              after the lock is free:  ├──► hands.submit(jobs)
//!                                       └──► tickets, completion queues
//! ```
//!
//! The planner is the only shared state and its calls take microseconds, so one lock is enough. Nothing is
//! ever called with the lock held: a hand may report a job before `submit` has returned.

mod clock;
mod hand;
mod lease;
mod local;
mod remotes;
mod ticker;
mod ticket;

use crate::arena::Arena;
use crate::sync::{Condvar, Mutex, lock, wait_for};
use kv_core::Verified;
use kv_core::cost::{Balance, TokenRange};
use kv_core::ids::{JobId, RequestId};
use kv_core::index::NamespaceIndex;
use kv_core::job::{AnswerSink, Job, RemoteAnswer, RemoteJob, TransferError};
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::planner::{
    Event, Match, Outbox, Planner, PlannerError, PlannerStats, PrefixQuote, Ready, Removal,
};
use kv_core::tier::{PerTier, Tier};
use kv_core::units::{Epoch, Nanos};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};
use ticker::{Alarm, Ticker};
use ticket::Ticket;

pub use clock::Clock;
pub use hand::Hand;
pub use lease::{Lease, Refused};
pub use local::{EngineConfig, LocalHands, OpenError, Opened, RemoteConfig, SlowConfig};
pub use ticket::{Completion, CompletionQueue, Notify};

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The planner refused.
    #[error(transparent)]
    Planner(#[from] PlannerError),
    /// A block index outside the blocks that may be read or written.
    #[error("block {index} is not among the blocks {first}..{end} that may be {verb}")]
    NoSuchBlock {
        /// What was asked for.
        index: u32,
        /// First block allowed.
        first: u32,
        /// One past the last block allowed.
        end: u32,
        /// "read" or "written".
        verb: &'static str,
    },
    /// The top tier is HBM: its bytes are reached through the device.
    #[error("blocks are in HBM: use the device to read and write slots")]
    NotInHostMemory,
    /// Making data durable failed.
    #[error("the NVMe tier could not be made durable")]
    Sync(#[source] TransferError),
    /// Jobs were still in flight when the time was over; nothing durable is lost.
    #[error("{jobs} transfers had not ended after {waited:?}")]
    StillBusy {
        /// How many.
        jobs: usize,
        /// The limit given.
        waited: Duration,
    },
}

/// A request to be acquired.
#[derive(Clone, Debug)]
pub struct Acquire<'a> {
    /// Whose blocks.
    pub namespace: NamespaceIndex,
    /// The chain, first block first.
    pub keys: &'a [BlockKey],
    /// Loads that take longer than this count as misses; `None` waits for all of them.
    pub patience: Option<Duration>,
    /// Where to announce the answer, beside the lease itself.
    pub notify: Option<Notify>,
}

struct Core {
    planner: Planner,
    out: Outbox,
    /// Requests that have not been answered.
    tickets: HashMap<RequestId, Arc<Ticket>>,
    /// Changes of residency that nobody has collected; only kept once somebody has asked for them.
    events: Option<Vec<Event>>,
}

/// What came out of the planner in one call.
#[derive(Default)]
struct Work {
    jobs: Vec<Job>,
    calls: Vec<RemoteJob>,
    answers: Vec<(Arc<Ticket>, Ready)>,
    tick_by: Option<Nanos>,
}

impl Core {
    fn take_work(&mut self) -> Work {
        let Self { out, tickets, events, .. } = self;
        if let Some(events) = events {
            events.append(&mut out.events);
        }
        out.events.clear();
        let answers = out.replies.drain(..);
        let answers = answers.filter_map(|r| tickets.remove(&r.request).map(|ticket| (ticket, r))).collect();
        let tick_by = std::mem::replace(&mut out.tick_by, Nanos::NEVER);
        Work {
            jobs: std::mem::take(&mut out.jobs),
            calls: std::mem::take(&mut out.remote_jobs),
            answers,
            tick_by: Some(tick_by).filter(|by| *by != Nanos::NEVER),
        }
    }
}

pub(crate) struct Shared {
    /// Where requests read and compute; never changes.
    top: Tier,
    core: Mutex<Core>,
    /// Signalled when the planner becomes idle, when nothing is left to be written, and when the ticker should look again.
    changed: Condvar,
    hands: Arc<dyn Hand>,
    arena: Arc<Arena>,
    clock: Clock,
    alarm: Alarm,
}

impl Shared {
    /// Calls the planner under the lock, and then does what it asked for without the lock.
    fn call<R>(&self, act: impl FnOnce(&mut Planner, Nanos, &mut Outbox) -> R) -> R {
        let now = self.clock.now();
        let mut core = lock(&self.core);
        let Core { planner, out, .. } = &mut *core;
        let result = act(planner, now, out);
        let work = core.take_work();
        drop(core);
        self.carry_out(work);
        result
    }

    fn carry_out(&self, mut work: Work) {
        loop {
            for (ticket, ready) in work.answers {
                ticket.answer(ready);
            }
            if let Some(by) = work.tick_by {
                self.alarm.look_before(by);
            }
            let mut refused = Vec::new();
            if !work.jobs.is_empty() {
                refused = self.hands.submit(work.jobs);
            }
            if !work.calls.is_empty() {
                refused.extend(self.hands.call(work.calls));
            }
            if refused.is_empty() {
                return;
            }
            let now = self.clock.now();
            let mut core = lock(&self.core);
            let Core { planner, out, .. } = &mut *core;
            for (job, error) in refused {
                planner.complete(now, job, Err(error), out);
            }
            work = core.take_work();
            drop(core);
            self.changed.notify_all();
        }
    }

    fn cancel(&self, request: RequestId) {
        let known = self.call(|planner, now, _| planner.cancel(now, request));
        debug_assert!(known.is_ok(), "a lease ends its request once");
        lock(&self.core).tickets.remove(&request);
    }

    fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
        self.ended(|planner, now, out| planner.complete(now, job, result, out));
    }

    fn answered(&self, job: JobId, answer: RemoteAnswer) {
        self.ended(|planner, now, out| planner.remote_complete(now, job, answer, out));
    }

    fn ended(&self, tell: impl FnOnce(&mut Planner, Nanos, &mut Outbox)) {
        let heard = self.call(|planner, now, out| {
            let writing = planner.unwritten() > 0;
            tell(planner, now, out);
            planner.jobs_in_flight() == 0 || (writing && planner.unwritten() == 0)
        });
        if heard {
            self.changed.notify_all();
        }
    }
}

/// Where hands report; made before the engine that it reports to.
#[derive(Default)]
pub struct Inbox(OnceLock<Weak<Shared>>);

impl kv_core::job::CompletionSink for Inbox {
    fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
        // An engine that is gone has no reader left who could be misled.
        if let Some(engine) = self.0.get().and_then(Weak::upgrade) {
            engine.complete(job, result);
        }
    }
}

impl AnswerSink for Inbox {
    fn answered(&self, job: JobId, answer: RemoteAnswer) {
        if let Some(engine) = self.0.get().and_then(Weak::upgrade) {
            engine.answered(job, answer);
        }
    }
}

/// See the module's head. Dropping it is [`Engine::shutdown`] without the report.
pub struct Engine {
    shared: Arc<Shared>,
    ticker: Option<Ticker>,
    /// Where what the cost model has learnt is kept.
    learnt: Option<PathBuf>,
}

/// Keys for which the lock is held in one go: some tens of microseconds.
const LOOK_UP_GROUP: usize = 512;
/// How long an engine that shuts down waits for remote stores.
const CALL_PATIENCE: Duration = Duration::from_secs(2);
/// How long a dropped engine waits for transfers in flight.
const DROP_PATIENCE: Duration = Duration::from_secs(10);

impl Engine {
    /// An engine on the given hands, which report to `inbox`. It has no thread of its own: with a
    /// simulated clock, or hands in another process, call [`Engine::tick`] yourself. [`Engine::open`] builds
    /// the usual engine with real hands.
    #[must_use]
    pub fn assemble(
        planner: Planner,
        arena: Arc<Arena>,
        hands: Arc<dyn Hand>,
        clock: Clock,
        inbox: &Inbox,
    ) -> Self {
        let top = planner.top();
        let core = Core { planner, out: Outbox::default(), tickets: HashMap::new(), events: None };
        let shared = Arc::new(Shared {
            top,
            core: Mutex::new(core),
            changed: Condvar::new(),
            hands,
            arena,
            clock,
            alarm: Alarm::default(),
        });
        let _first_engine_wins = inbox.0.set(Arc::downgrade(&shared));
        Self { shared, ticker: None, learnt: None }
    }

    /// A remote store has answered; as [`Engine::complete`].
    pub fn answered(&self, job: JobId, answer: RemoteAnswer) {
        self.shared.answered(job, answer);
    }

    /// A job has ended; for hands that are driven by whoever drives the engine. Others have an [`Inbox`].
    pub fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
        self.shared.complete(job, result);
    }

    /// The first write need not wait until a segment is open.
    fn prepare_write(&self) {
        self.shared.call(|planner, _, out| planner.prepare_write(out));
    }

    /// Starts the thread that watches deadlines.
    fn start_ticker(&mut self) -> std::io::Result<()> {
        self.ticker = Some(Ticker::start(self.shared.clone())?);
        Ok(())
    }

    /// Registers a namespace, or finds it again.
    ///
    /// # Errors
    /// [`PlannerError::TooManyNamespaces`].
    pub fn namespace(
        &self,
        id: NamespaceId,
        fingerprint: Fingerprint,
        epoch: Epoch,
    ) -> Result<NamespaceIndex, EngineError> {
        Ok(self.shared.call(|planner, _, _| planner.namespace(id, fingerprint, epoch))?)
    }

    /// How much of a chain could be read now, and from where. Pins and promises nothing.
    #[must_use]
    pub fn lookup(&self, namespace: NamespaceIndex, keys: &[BlockKey]) -> Match {
        self.shared.call(|planner, _, _| planner.lookup(namespace, keys))
    }

    /// The best tier of each block by itself, whatever precedes it in a chain; `None` where it cannot be read. For
    /// runtimes whose keys are not chains. Pins and promises nothing.
    pub fn lookup_each(&self, namespace: NamespaceIndex, keys: &[BlockKey]) -> Vec<Option<Tier>> {
        let mut tiers = Vec::with_capacity(keys.len());
        for group in keys.chunks(LOOK_UP_GROUP) {
            self.shared.call(|planner, _, _| {
                tiers.extend(group.iter().map(|key| {
                    let found = planner.lookup(namespace, std::slice::from_ref(key)).by_tier;
                    Tier::ALL.into_iter().find(|tier| found[*tier] > 0)
                }));
            });
        }
        tiers
    }

    /// Takes blocks out of every tier of this node, unless somebody uses them; see [`Planner::remove`].
    pub fn remove(&self, namespace: NamespaceIndex, keys: &[BlockKey]) -> Vec<Removal> {
        let mut removed = Vec::with_capacity(keys.len());
        for group in keys.chunks(LOOK_UP_GROUP) {
            removed.extend(self.shared.call(|planner, _, out| planner.remove(namespace, group, out)));
        }
        removed
    }

    /// Starts writing to NVMe what is in host RAM alone, as far as admission lets it. Ends when
    /// [`Engine::unwritten`] is 0, or later if more comes in.
    pub fn write_back_all(&self) {
        self.shared.call(|planner, now, out| planner.write_back_all(now, out));
    }

    /// True while writes to NVMe are suspended because they kept failing.
    #[must_use]
    pub fn nvme_writes_paused(&self) -> bool {
        let now = self.shared.clock.now();
        lock(&self.shared.core).planner.nvme_writes_paused(now)
    }

    /// Blocks that are on their way to NVMe or mean to be.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        lock(&self.shared.core).planner.unwritten()
    }

    /// Waits until [`Engine::unwritten`] is 0, or for `limit`; true if it is.
    #[must_use]
    pub fn wait_written(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut core = lock(&self.shared.core);
        while core.planner.unwritten() > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            core = wait_for(&self.shared.changed, core, left);
        }
        true
    }

    /// Starts a request: what is resident is pinned or starts loading, the rest gets slots to compute into.
    ///
    /// # Errors
    /// [`EngineError::Planner`] when the request makes no sense or the engine is shutting down.
    pub fn acquire(&self, request: &Acquire<'_>) -> Result<Lease, EngineError> {
        self.acquire_all(std::slice::from_ref(request)).pop().unwrap_or(Err(PlannerError::Closing.into()))
    }

    /// [`Engine::acquire`] for several requests at once, in order, one result for each.
    pub fn acquire_all(&self, requests: &[Acquire<'_>]) -> Vec<Result<Lease, EngineError>> {
        let now = self.shared.clock.now();
        let mut leases = Vec::with_capacity(requests.len());
        let mut core = lock(&self.shared.core);
        for request in requests {
            let deadline = request
                .patience
                .map_or(Nanos::NEVER, |p| now + Nanos(u64::try_from(p.as_nanos()).unwrap_or(u64::MAX)));
            let Core { planner, out, tickets, .. } = &mut *core;
            let begun = planner.acquire(now, request.namespace, request.keys, deadline, out);
            leases.push(begun.map_err(EngineError::from).map(|id| {
                let ticket = Arc::new(Ticket::new(request.notify.clone()));
                tickets.insert(id, ticket.clone());
                Lease::new(self.shared.clone(), ticket, id)
            }));
        }
        let work = core.take_work();
        drop(core);
        self.shared.carry_out(work);
        leases
    }

    /// A pass of prefill over `range` took `took`. The runtime owes this once for every pass that it has completed,
    /// also for those that follow a load; the cost model learns from nothing else what recomputing takes, and keeps its
    /// promise only then. Without slow sources it does nothing.
    pub fn observed_prefill(&self, range: TokenRange, took: Duration) {
        let took = Nanos(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        self.shared.call(|planner, now, _| planner.observed_prefill(now, range, took));
    }

    /// What would it cost to serve this chain here? For routers that compare places. Pins nothing and asks no remote
    /// store; `None` without slow sources.
    #[must_use]
    pub fn quote(&self, namespace: NamespaceIndex, keys: &[BlockKey]) -> Option<PrefixQuote> {
        self.shared.call(|planner, now, _| planner.quote(now, namespace, keys))
    }

    /// The account behind "never worse than recomputing"; `None` without slow sources.
    #[must_use]
    pub fn balance(&self) -> Option<Balance> {
        Some(lock(&self.shared.core).planner.cost()?.balance())
    }

    /// In which tiers the block can be read now.
    #[must_use]
    pub fn residency(&self, key: BlockKey) -> PerTier<bool> {
        let core = lock(&self.shared.core);
        let index = core.planner.index();
        let readable = |tier| index.get(key).is_some_and(|node| index.ready_slot(node, tier).is_some());
        PerTier(Tier::ALL.map(readable))
    }

    /// Changes of residency since the last call, oldest first. The first call starts the recording.
    pub fn take_events(&self) -> Vec<Event> {
        lock(&self.shared.core).events.replace(Vec::new()).unwrap_or_default()
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> PlannerStats {
        *lock(&self.shared.core).planner.stats()
    }

    /// Blocks that occupy a slot of each tier.
    #[must_use]
    pub fn occupied(&self) -> PerTier<u64> {
        let core = lock(&self.shared.core);
        PerTier(Tier::ALL.map(|tier| core.planner.occupied(tier)))
    }

    /// Checks that no slot, pin or record is lost or held twice.
    ///
    /// # Errors
    /// A sentence that names the first count that is off.
    pub fn audit(&self) -> Result<(), String> {
        lock(&self.shared.core).planner.audit()
    }

    /// Lets time-driven work happen: deadlines, retries, write-behind. The engine's own thread does this.
    pub fn tick(&self) {
        self.shared.call(|planner, now, out| planner.tick(now, out));
    }

    /// When [`Engine::tick`] should be called next, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        lock(&self.shared.core).planner.next_deadline()
    }

    /// The engine's clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// The pinned host memory.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.shared.arena
    }

    /// Blocks until no transfer is in flight, or until `limit` has passed.
    ///
    /// # Errors
    /// [`EngineError::StillBusy`].
    pub fn quiesce(&self, limit: Duration) -> Result<(), EngineError> {
        let end = Instant::now() + limit;
        let mut core = lock(&self.shared.core);
        loop {
            let jobs = core.planner.jobs_in_flight();
            let left = end.saturating_duration_since(Instant::now());
            if jobs == 0 {
                return Ok(());
            }
            if left == Duration::ZERO {
                return Err(EngineError::StillBusy { jobs, waited: limit });
            }
            core = wait_for(&self.shared.changed, core, left);
        }
    }

    /// Returns once every block that was readable from NVMe before this call will survive a power loss.
    /// (Such a block may still be dropped later, when its segment is reclaimed.)
    ///
    /// # Errors
    /// [`EngineError::Sync`].
    pub fn flush(&self) -> Result<(), EngineError> {
        self.shared.hands.sync().map_err(EngineError::Sync)
    }

    /// Refuses new requests and starts no more write-backs; [`Engine::shutdown`] does the rest.
    pub fn begin_shutdown(&self) {
        self.shared.call(|planner, _, out| planner.close(out));
    }

    /// Refuses new requests, waits for transfers in flight, seals and syncs the log and closes the hands.
    /// Leases that are still open can be committed or cancelled afterwards, to no effect on NVMe.
    ///
    /// # Errors
    /// [`EngineError::StillBusy`] when transfers had not ended after `limit`, [`EngineError::Sync`]. The
    /// engine is shut down all the same, and its log reopens.
    pub fn shutdown(mut self, limit: Duration) -> Result<(), EngineError> {
        self.close(limit)
    }

    fn close(&mut self, limit: Duration) -> Result<(), EngineError> {
        self.ticker = None;
        self.begin_shutdown();
        let mut quiet = self.quiesce(limit.min(CALL_PATIENCE));
        if quiet.is_err() {
            // It may be a remote store that hangs: what is not stored there by now never will be.
            self.shared.hands.leave_calls();
            quiet = self.quiesce(limit);
        }
        let synced = self.flush();
        self.shared.hands.close();
        self.save_learnt();
        quiet.and(synced)
    }
}

impl Engine {
    /// Takes over what an earlier life has learnt, if it is there and whole: it is a help and no more.
    fn load_learnt(&mut self, path: PathBuf) {
        match std::fs::read(&path) {
            Ok(bytes) => {
                let restored = self.shared.call(|planner, now, _| planner.restore_cost(now, &bytes));
                if let Err(error) = restored {
                    tracing::warn!(%error, path = %path.display(), "what was learnt about sources is not used");
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot read what was learnt about sources")
            }
        }
        self.learnt = Some(path);
    }

    /// Whole or not at all, so that a crash leaves what was there before.
    fn save_learnt(&mut self) {
        let Some(path) = self.learnt.take() else { return };
        let now = self.shared.clock.now();
        let bytes = lock(&self.shared.core).planner.cost().map(|cost| cost.snapshot(now));
        let Some(bytes) = bytes else { return };
        let mut part = path.clone().into_os_string();
        part.push(".part");
        let written = std::fs::write(&part, &bytes).and_then(|()| std::fs::rename(&part, &path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "cannot keep what was learnt about sources");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let closed = lock(&self.shared.core).planner.is_closing();
        if !closed && let Err(error) = self.close(DROP_PATIENCE) {
            tracing::warn!(%error, "an engine was dropped and did not shut down cleanly");
        }
    }
}
