//! The planner: one deterministic state machine that decides what lives where.
//!
//! It opens no file, starts no thread, reads no clock and holds no KV bytes. Drivers (the engine, the
//! replay, the fault simulator) call it with typed inputs and carry out the jobs that it puts in the
//! [`Outbox`]:
//!
//! ```text
//!   acquire ─► Ready reply ─► the runtime computes the rest ─► commit        (or cancel at any time)
//!      │            ▲                                             │
//!      ▼            │                                             ▼
//!    load jobs ─► complete                              write-back jobs ─► complete
//! ```
//!
//! The *top tier* is where requests read and compute: HBM when kvtier manages HBM slots, else the host
//! arena. A block moves down by being copied (HBM to host on commit, host to NVMe by write-behind before it
//! would be evicted) and up by being loaded; eviction itself never waits for a copy.

mod acquire;
mod audit;
mod commit;
mod complete;
mod config;
mod inflight;
mod log_space;
mod outbox;
mod pool;
mod probe;
mod put_behind;
mod quote;
mod remote;
mod remove;
mod request;
mod restore;
mod slow;
mod stake;
mod stats;
mod write_behind;

use crate::ids::{JobId, RequestId, SlotId};
use crate::index::{NamespaceIndex, NodeId, PrefixIndex};
use crate::key::{BlockKey, Fingerprint, NamespaceId};
use crate::policy::{NvmeAdmission, Touch};
use crate::tier::{PerTier, Tier};
use crate::units::{Epoch, Nanos};
use crate::verified::RecordIdentity;
use inflight::InFlight;
use log_space::LogSpace;
use pool::{Pin, Private, SlotPool};
use request::{Held, Request, RequestBlock};
use slotmap::{DefaultKey, Key, KeyData, SlotMap};
use slow::Slow;
use stake::End;
use std::collections::VecDeque;

pub use config::{ConfigError, PlannerConfig, RemoteSource, SlowSources};
pub use log_space::LogShape;
pub use outbox::{Event, Outbox, Ready};
pub use quote::PrefixQuote;
pub use remove::Removal;
pub use slow::Reasons;
pub use stats::PlannerStats;

/// A call that makes no sense in the planner's present state. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlannerError {
    /// [`Planner::close`] was called.
    #[error("the cache is shutting down")]
    Closing,
    /// Not registered with [`Planner::namespace`].
    #[error("unknown namespace")]
    UnknownNamespace,
    /// 65,535 namespaces are registered already.
    #[error("too many namespaces")]
    TooManyNamespaces,
    /// [`BlockKey::ROOT`] names no block.
    #[error("key {0} of the chain is the root key, which names no block")]
    RootKey(usize),
    /// More blocks than a chain may have.
    #[error("a chain of {0} blocks is too long")]
    ChainTooLong(usize),
    /// Never acquired, or ended already.
    #[error("{0:?} does not exist or has ended")]
    UnknownRequest(RequestId),
    /// Its loads have not ended yet.
    #[error("{0:?} is still loading: wait for its reply, or cancel it")]
    NotReady(RequestId),
    /// `computed` is less than the blocks that were ready, or more than those that were granted.
    #[error("computed is {computed}; it must lie between ready ({ready}) and granted ({granted})")]
    BadComputed {
        /// What was passed.
        computed: u32,
        /// Lower bound.
        ready: u32,
        /// Upper bound.
        granted: u32,
    },
}

/// What a look-up found. Nothing is pinned or promised by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Length of the longest prefix that is readable somewhere.
    pub blocks: u32,
    /// How many of those blocks are best read from each tier.
    pub by_tier: PerTier<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Namespace {
    id: NamespaceId,
    fingerprint: Fingerprint,
    epoch: Epoch,
}

/// See the module's head.
pub struct Planner {
    config: PlannerConfig,
    top: Tier,
    index: PrefixIndex,
    hbm: SlotPool,
    host: SlotPool,
    log: Option<LogSpace>,
    admission: NvmeAdmission,
    slow: Option<Slow>,
    namespaces: Vec<Namespace>,
    requests: SlotMap<DefaultKey, Request>,
    jobs: SlotMap<DefaultKey, InFlight>,
    /// NVMe writes, reinsertions and rescues in flight.
    write_backs: u32,
    write_health: write_behind::WriteHealth,
    /// No new requests and no new write-backs.
    closing: bool,
    stats: PlannerStats,
    /// Reused by look-ups.
    matched: Vec<NodeId>,
    /// Reused by `commit`.
    steps: Vec<commit::Step>,
    /// Reused by `commit`.
    pins: Vec<Pin>,
    /// Host blocks that write-behind means to write, coldest first.
    to_write: VecDeque<(SlotId, NodeId)>,
    /// Emptied chains, for the next requests.
    spare_chains: Vec<Vec<RequestBlock>>,
}

fn request_id(key: DefaultKey) -> RequestId {
    RequestId(key.data().as_ffi())
}
fn request_key(id: RequestId) -> DefaultKey {
    KeyData::from_ffi(id.0).into()
}
fn job_id(key: DefaultKey) -> JobId {
    JobId(key.data().as_ffi())
}
fn job_key(id: JobId) -> DefaultKey {
    KeyData::from_ffi(id.0).into()
}

impl Planner {
    /// A planner with empty tiers.
    ///
    /// # Errors
    /// When the configuration cannot work; see [`ConfigError`].
    pub fn new(config: PlannerConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let top = if config.hbm_slots > 0 { Tier::Hbm } else { Tier::Host };
        let blocks = config.hbm_slots.max(config.host_slots) as usize;
        let pool = |tier, slots: u32| {
            SlotPool::new(tier, slots, crate::policy::build(config.policy, slots as usize))
        };
        Ok(Self {
            top,
            index: PrefixIndex::with_capacity(blocks),
            hbm: pool(Tier::Hbm, config.hbm_slots),
            host: pool(Tier::Host, config.host_slots),
            log: config.log.map(LogSpace::new),
            admission: NvmeAdmission::new(config.nvme_budget),
            slow: config.slow.as_ref().map(Slow::new).transpose()?,
            namespaces: Vec::new(),
            requests: SlotMap::new(),
            jobs: SlotMap::new(),
            write_backs: 0,
            write_health: write_behind::WriteHealth::default(),
            closing: false,
            stats: PlannerStats::default(),
            matched: Vec::new(),
            steps: Vec::new(),
            pins: Vec::new(),
            to_write: VecDeque::new(),
            spare_chains: Vec::new(),
            config,
        })
    }

    /// Where requests read and compute.
    #[must_use]
    pub const fn top(&self) -> Tier {
        self.top
    }

    /// Counters so far.
    #[must_use]
    pub const fn stats(&self) -> &PlannerStats {
        &self.stats
    }

    /// The configuration it was built from.
    #[must_use]
    pub const fn config(&self) -> &PlannerConfig {
        &self.config
    }

    /// Name of the eviction policy in force.
    #[must_use]
    pub fn policy_name(&self) -> &'static str {
        self.pool(self.top).policy_name()
    }

    /// Blocks that occupy a slot of `tier`, readable or on their way.
    #[must_use]
    pub fn occupied(&self, tier: Tier) -> u64 {
        match tier {
            Tier::Nvme => self.log.as_ref().map_or(0, LogSpace::live),
            _ => u64::from(self.pool(tier).capacity() - self.pool(tier).free_slots()),
        }
    }

    /// The prefix index, for inspection.
    #[must_use]
    pub fn index(&self) -> &PrefixIndex {
        &self.index
    }

    /// True when no job is in flight and no request is open.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.requests.is_empty()
    }

    /// True once [`Planner::close`] was called.
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        self.closing
    }

    /// Jobs in flight.
    #[must_use]
    pub fn jobs_in_flight(&self) -> usize {
        self.jobs.len()
    }

    /// Registers a namespace, or finds it again. Another epoch is another namespace: nothing that was
    /// stored in an earlier one is served in a later one.
    ///
    /// # Errors
    /// [`PlannerError::TooManyNamespaces`].
    pub fn namespace(
        &mut self,
        id: NamespaceId,
        fingerprint: Fingerprint,
        epoch: Epoch,
    ) -> Result<NamespaceIndex, PlannerError> {
        let same = |n: &Namespace| n.id == id && n.fingerprint == fingerprint && n.epoch == epoch;
        if let Some(found) = self.namespaces.iter().position(same) {
            return Ok(NamespaceIndex(found as u16));
        }
        if self.namespaces.len() >= usize::from(u16::MAX) {
            return Err(PlannerError::TooManyNamespaces);
        }
        self.namespaces.push(Namespace { id, fingerprint, epoch });
        Ok(NamespaceIndex((self.namespaces.len() - 1) as u16))
    }

    /// How much of a chain could be read, and from where. Changes nothing.
    pub fn lookup(&mut self, namespace: NamespaceIndex, keys: &[BlockKey]) -> Match {
        let nodes = self.match_own(namespace, keys);
        let mut found = Match { blocks: nodes.len() as u32, by_tier: PerTier::default() };
        for tier in nodes.iter().filter_map(|n| self.index.best_tier(*n)) {
            found.by_tier[tier] += 1;
        }
        self.matched = nodes;
        found
    }

    /// Ends a request without using it. Loads in flight go on and fill the cache.
    ///
    /// # Errors
    /// [`PlannerError::UnknownRequest`].
    pub fn cancel(&mut self, now: Nanos, request: RequestId) -> Result<(), PlannerError> {
        self.end_all_stakes(now, request_key(request), End::Cancelled);
        let ended =
            self.requests.remove(request_key(request)).ok_or(PlannerError::UnknownRequest(request))?;
        self.let_go(ended.blocks);
        Ok(())
    }

    /// Begins the end: no more requests, no more write-backs, and the open segment is sealed as soon as the
    /// writes to it have ended. The planner is done when it [is idle](Planner::is_idle).
    pub fn close(&mut self, out: &mut Outbox) {
        self.closing = true;
        if let Some((segment, generation)) = self.log.as_mut().and_then(LogSpace::close) {
            self.seal(segment, generation, out);
        }
    }

    /// Time has passed: answers requests whose deadline has come, gives up slow loads at theirs, and goes on with
    /// write-behind.
    pub fn tick(&mut self, now: Nanos, out: &mut Outbox) {
        let due = |r: &Request| r.ready.is_none() && r.next_deadline() <= now;
        while let Some((id, request)) = self.requests.iter().find(|(_, r)| due(r)) {
            if request.deadline <= now {
                self.end_all_stakes(now, id, End::Late);
                if let Some(request) = self.requests.get_mut(id)
                    && let Some(first) = request.first_waiting(0..request.matched)
                {
                    request.cut(first.min(request.limit));
                }
                self.answer(id, now, out);
                continue;
            }
            self.give_up_late(now, id);
            if self.requests.get(id).is_some_and(Request::is_done) {
                self.answer(id, now, out);
            }
        }
        self.write_behind(now, out);
        self.put_behind(now, out);
    }

    /// When [`Planner::tick`] should be called next, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let waiting = self.requests.values().filter(|r| r.ready.is_none()).map(Request::next_deadline);
        let resume = self.write_health.resume_at().filter(|_| !self.closing);
        waiting.chain(resume).min().filter(|d| *d != Nanos::NEVER)
    }

    fn let_go(&mut self, mut blocks: Vec<RequestBlock>) {
        let top = self.top;
        for block in blocks.drain(..) {
            match block.held {
                Held::Pinned(pin, _) => self.pool_mut(top).unpin(pin),
                Held::Private(private) => self.pool_mut(top).give_back(private),
                Held::Found(source) => self.unpin_source(source),
                Held::Nothing | Held::Waiting | Held::Failed => {}
            }
        }
        self.spare_chains.push(blocks);
    }

    fn pool(&self, tier: Tier) -> &SlotPool {
        if tier == Tier::Hbm { &self.hbm } else { &self.host }
    }

    fn pool_mut(&mut self, tier: Tier) -> &mut SlotPool {
        if tier == Tier::Hbm { &mut self.hbm } else { &mut self.host }
    }

    fn touch(&self, node: NodeId, now: Nanos) -> Touch {
        Touch {
            key: self.index.key(node),
            parent: self.index.parent_key(node),
            depth: self.index.depth(node),
            now,
        }
    }

    fn identity(&self, node: NodeId, generation: crate::units::Generation) -> RecordIdentity {
        RecordIdentity {
            generation,
            ..self.remote_identity(self.index.namespace(node), self.index.key(node))
        }
    }

    /// A free slot of HBM or host RAM, after evicting a block if need be.
    fn allocate(&mut self, tier: Tier, now: Nanos, out: &mut Outbox) -> Option<Private> {
        self.make_room(tier, 1, now, out);
        self.pool_mut(tier).take_free()
    }

    /// Evicts until `slots` slots of HBM or host RAM are free, or nothing may leave any more. Whoever needs many
    /// asks for all at once.
    fn make_room(&mut self, tier: Tier, slots: usize, now: Nanos, out: &mut Outbox) {
        let Self { hbm, host, index, stats, admission, .. } = self;
        let pool = if tier == Tier::Hbm { hbm } else { host };
        let missing = slots.saturating_sub(pool.free_slots() as usize);
        if missing == 0 {
            return;
        }
        pool.evict(now, missing, index, &mut |index, node| {
            out.events.push(Event::Removed { tier, key: index.key(node) });
            index.displace(node, tier);
            stats.evictions[tier] += 1;
            if index.best_tier(node).is_none() {
                stats.lost_to_eviction += 1;
                admission.died(index.heat(node));
            }
            index.release(node);
        });
    }

    fn became_readable(&mut self, node: NodeId, tier: Tier, out: &mut Outbox) {
        self.index.set_ready(node, tier);
        let (key, parent) = (self.index.key(node), self.index.parent_key(node));
        out.events.push(Event::Stored { tier, key, parent });
    }

    /// Takes the block out of `tier` in the index. The node itself stays until it is released.
    fn gone(&mut self, node: NodeId, tier: Tier, out: &mut Outbox) {
        if self.index.ready_slot(node, tier).is_some() {
            out.events.push(Event::Removed { tier, key: self.index.key(node) });
        }
        self.index.displace(node, tier);
    }

    fn end_reading(&mut self, reading: log_space::Reading) {
        if let Some(log) = &mut self.log {
            log.read_done(reading);
        }
    }
}
