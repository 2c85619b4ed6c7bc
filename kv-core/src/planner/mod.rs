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

mod audit;
mod complete;
mod config;
mod inflight;
mod log_space;
mod outbox;
mod pool;
mod request;
mod restore;
mod stats;
mod write_behind;

use crate::ids::{JobId, RequestId, SlotId};
use crate::index::{NamespaceIndex, NodeId, PrefixIndex};
use crate::job::{Job, Op, Urgency};
use crate::key::{BlockKey, Fingerprint, NamespaceId};
use crate::policy::{NvmeAdmission, Touch};
use crate::tier::{PerTier, Tier};
use crate::units::{Epoch, Nanos};
use crate::verified::RecordIdentity;
use inflight::{InFlight, Waiter, Waiters};
use log_space::LogSpace;
use pool::{Pin, Private, SlotPool};
use request::{Held, Request, RequestBlock, Source};
use slotmap::{DefaultKey, Key, KeyData, SlotMap};
use std::collections::VecDeque;

pub use config::{ConfigError, PlannerConfig};
pub use log_space::LogShape;
pub use outbox::{Event, Outbox, Ready};
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

/// A block of a chain that `commit` is ranking.
#[derive(Clone, Copy, Debug)]
struct Step {
    node: NodeId,
    /// It was bound to its slot in the top tier, or in host RAM, by this very commit.
    new_in_top: bool,
    new_in_host: bool,
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
    steps: Vec<Step>,
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

    /// Starts a request for a chain of blocks: pins what is in the top tier, starts loading what is below,
    /// and sets slots aside for the rest. The answer is a [`Ready`] in the outbox, at once or after the
    /// loads have ended or `deadline` has come.
    ///
    /// # Errors
    /// [`PlannerError::Closing`], [`PlannerError::UnknownNamespace`], [`PlannerError::RootKey`],
    /// [`PlannerError::ChainTooLong`].
    pub fn acquire(
        &mut self,
        now: Nanos,
        namespace: NamespaceIndex,
        keys: &[BlockKey],
        deadline: Nanos,
        out: &mut Outbox,
    ) -> Result<RequestId, PlannerError> {
        if self.closing {
            return Err(PlannerError::Closing);
        }
        if usize::from(namespace.0) >= self.namespaces.len() {
            return Err(PlannerError::UnknownNamespace);
        }
        if keys.len() >= u32::MAX as usize {
            return Err(PlannerError::ChainTooLong(keys.len()));
        }
        if let Some(at) = keys.iter().position(|k| *k == BlockKey::ROOT) {
            return Err(PlannerError::RootKey(at));
        }
        self.stats.requests += 1;
        self.stats.block_refs += keys.len() as u64;

        let nodes = self.match_own(namespace, keys);
        let mut blocks = self.spare_chains.pop().unwrap_or_default();
        blocks.extend(keys.iter().map(|key| RequestBlock { key: *key, held: Held::Nothing, found: None }));
        let id = self.requests.insert(Request {
            namespace,
            deadline,
            blocks: Vec::new(),
            matched: 0,
            granted: 0,
            limit: 0,
            pending: 0,
            ready: None,
        });

        // First pin all that was found, so that making room for one block cannot evict another.
        for (block, node) in blocks.iter_mut().zip(&nodes) {
            let Some((tier, source)) = self.pin_source(*node) else { break };
            block.found = Some(tier);
            block.held = Held::Found(source);
        }
        self.make_room_for(&blocks, now, out);
        let (mut matched, mut pending) = (0, 0);
        for (block, node) in blocks.iter_mut().zip(&nodes) {
            let Held::Found(source) = block.held.take() else { break };
            let waiter = Waiter { request: request_id(id), block: matched };
            let Some(held) = self.bring(now, *node, source, waiter, out) else { break };
            pending += u32::from(matches!(held, Held::Waiting));
            block.held = held;
            matched += 1;
        }
        let mut granted = matched;
        for block in &mut blocks[matched as usize..] {
            block.found = None;
            if let Held::Found(source) = block.held.take() {
                self.unpin_source(source);
            }
        }
        for block in &mut blocks[matched as usize..] {
            let Some(private) = self.allocate(self.top, now, out) else { break };
            block.held = Held::Private(private);
            granted += 1;
        }
        self.matched = nodes;
        self.requests[id] =
            Request { namespace, deadline, blocks, matched, granted, limit: matched, pending, ready: None };
        if pending == 0 {
            self.answer(id, now, out);
        }
        Ok(request_id(id))
    }

    /// The slot of each granted block in the top tier; a block that is still loading has none yet.
    ///
    /// # Errors
    /// [`PlannerError::UnknownRequest`].
    pub fn slots(
        &self,
        request: RequestId,
    ) -> Result<impl Iterator<Item = Option<SlotId>> + '_, PlannerError> {
        let found = self.requests.get(request_key(request)).ok_or(PlannerError::UnknownRequest(request))?;
        Ok(found.blocks[..found.granted as usize].iter().map(|b| match &b.held {
            Held::Private(private) => Some(private.slot()),
            Held::Pinned(pin, _) => Some(pin.slot()),
            _ => None,
        }))
    }

    /// Ends a request whose blocks `0..computed` hold valid KV: the computed ones become readable and are
    /// offered to the tiers below; the others give their slots back.
    ///
    /// # Errors
    /// [`PlannerError::UnknownRequest`], [`PlannerError::NotReady`], [`PlannerError::BadComputed`].
    pub fn commit(
        &mut self,
        now: Nanos,
        request: RequestId,
        computed: u32,
        out: &mut Outbox,
    ) -> Result<(), PlannerError> {
        let key = request_key(request);
        let unknown = PlannerError::UnknownRequest(request);
        let found = self.requests.get(key).ok_or(unknown)?;
        let ready = found.ready.ok_or(PlannerError::NotReady(request))?;
        let granted = found.granted;
        if computed < ready || computed > granted {
            return Err(PlannerError::BadComputed { computed, ready, granted });
        }
        let Request { namespace, mut blocks, .. } = self.requests.remove(key).ok_or(unknown)?;

        let mut steps = std::mem::take(&mut self.steps);
        steps.clear();
        let mut parent = None;
        for (depth, block) in blocks[..computed as usize].iter_mut().enumerate() {
            let (node, new_in_top) = match block.held.take() {
                Held::Pinned(pin, node) => {
                    block.held = Held::Pinned(pin, node);
                    (node, false)
                }
                Held::Private(private) => {
                    let Some(node) = self.index.ensure(block.key, parent, depth as u32, namespace) else {
                        block.held = Held::Private(private);
                        break;
                    };
                    let (held, new) = self.publish(private, node, out);
                    block.held = held;
                    (node, new)
                }
                // Cannot happen between a reply and its commit; ending the chain here is always safe.
                _ => break,
            };
            steps.push(Step { node, new_in_top, new_in_host: false });
            parent = Some(node);
        }
        if self.top == Tier::Hbm && self.host.capacity() > 0 {
            self.offload(now, &mut steps, out);
        }
        // Tail first: an ancestor must end up at least as recent as its descendants.
        for (i, step) in steps.iter().enumerate().rev() {
            self.rank(*step, now);
            if i < ready as usize {
                let heat = self.index.heat(step.node);
                self.admission.reused(heat);
                self.index.set_heat(step.node, heat.saturating_add(1));
            }
        }
        self.steps = steps;
        self.let_go(blocks);
        self.write_behind(now, out);
        Ok(())
    }

    /// Ends a request without using it. Loads in flight go on and fill the cache.
    ///
    /// # Errors
    /// [`PlannerError::UnknownRequest`].
    pub fn cancel(&mut self, request: RequestId) -> Result<(), PlannerError> {
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

    /// Time has passed: answers requests whose deadline has come and goes on with write-behind.
    pub fn tick(&mut self, now: Nanos, out: &mut Outbox) {
        let late = |r: &Request| r.ready.is_none() && r.deadline <= now;
        while let Some((id, _)) = self.requests.iter().find(|(_, r)| late(r)) {
            if let Some(request) = self.requests.get_mut(id)
                && let Some(first) = request.first_waiting()
            {
                request.cut(first.min(request.limit));
            }
            self.answer(id, now, out);
        }
        self.write_behind(now, out);
    }

    /// When [`Planner::tick`] should be called next, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let waiting = self.requests.values().filter(|r| r.ready.is_none()).map(|r| r.deadline);
        let resume = self.write_health.resume_at().filter(|_| !self.closing);
        waiting.chain(resume).min().filter(|d| *d != Nanos::NEVER)
    }

    /// The nodes of the longest readable prefix, in the buffer that `matched` lends. Keys are secret to
    /// their namespace; the check makes a caller who mixes them up a miss instead of a leak.
    fn match_own(&mut self, namespace: NamespaceIndex, keys: &[BlockKey]) -> Vec<NodeId> {
        let mut nodes = std::mem::take(&mut self.matched);
        nodes.clear();
        self.index.match_prefix(keys, &mut nodes);
        let own = nodes.iter().take_while(|n| self.index.namespace(**n) == namespace).count();
        nodes.truncate(own);
        nodes
    }

    // ---- steps of acquire --------------------------------------------------------------------------

    fn pin_source(&mut self, node: NodeId) -> Option<(Tier, Source)> {
        let best = self.index.best_tier(node)?;
        if best == self.top {
            let slot = self.index.ready_slot(node, best)?;
            return Some((best, Source::Top(self.pool_mut(best).pin(slot)?)));
        }
        if self.index.slot(node, self.top).is_some() {
            return Some((best, Source::OnItsWay));
        }
        let slot = self.index.ready_slot(node, best)?;
        match best {
            Tier::Hbm => None,
            Tier::Host => Some((best, Source::Host(self.host.pin(slot)?))),
            // A host slot that is being filled without a way up to the top tier: let it arrive.
            Tier::Nvme if self.index.slot(node, Tier::Host).is_some() => None,
            Tier::Nvme => Some((best, Source::Nvme(self.log.as_mut()?.read(slot)))),
        }
    }

    fn unpin_source(&mut self, source: Source) {
        match source {
            Source::Top(pin) => self.pool_mut(self.top).unpin(pin),
            Source::Host(pin) => self.host.unpin(pin),
            Source::OnItsWay => {}
            Source::Nvme(reading) => self.end_reading(reading),
        }
    }

    /// Makes room for all that the blocks of a request will need, once those that were found are pinned.
    fn make_room_for(&mut self, blocks: &[RequestBlock], now: Nanos, out: &mut Outbox) {
        let (mut there, mut reads) = (0, 0);
        for block in blocks {
            match block.held {
                Held::Found(Source::Top(_) | Source::OnItsWay) => there += 1,
                Held::Found(Source::Nvme(_)) => reads += 1,
                _ => {}
            }
        }
        self.make_room(self.top, blocks.len() - there, now, out);
        if self.top == Tier::Hbm {
            self.make_room(Tier::Host, reads.min(self.hbm.free_slots() as usize), now, out);
        }
    }

    /// Starts what is needed to have the block in the top tier. `None` when there is no room for it.
    fn bring(
        &mut self,
        now: Nanos,
        node: NodeId,
        source: Source,
        waiter: Waiter,
        out: &mut Outbox,
    ) -> Option<Held> {
        match source {
            Source::Top(pin) => Some(Held::Pinned(pin, node)),
            Source::OnItsWay => {
                let slot = self.index.slot(node, self.top)?;
                let job = self.pool(self.top).filling_job(slot)?;
                match self.jobs.get_mut(job_key(job))? {
                    InFlight::Onboard { waiters, .. } | InFlight::Read { waiters, .. } => {
                        waiters.push(waiter)
                    }
                    _ => return None,
                }
                Some(Held::Waiting)
            }
            Source::Host(pin) => {
                let Some(target) = self.allocate(Tier::Hbm, now, out) else {
                    self.host.unpin(pin);
                    return None;
                };
                let target = self.expect(Tier::Hbm, target, node, now);
                self.onboard(node, pin, target, Waiters::one(waiter), Urgency::Demand, out);
                Some(Held::Waiting)
            }
            Source::Nvme(reading) => {
                let Some(staging) = self.allocate(Tier::Host, now, out) else {
                    self.end_reading(reading);
                    return None;
                };
                let onward = if self.top == Tier::Hbm {
                    let Some(hbm) = self.allocate(Tier::Hbm, now, out) else {
                        self.host.give_back(staging);
                        self.end_reading(reading);
                        return None;
                    };
                    Some(self.expect(Tier::Hbm, hbm, node, now))
                } else {
                    None
                };
                let target = self.expect(Tier::Host, staging, node, now);
                self.read(node, reading, target, onward, Waiters::one(waiter), out);
                Some(Held::Waiting)
            }
        }
    }

    /// Binds a slot to the block whose bytes are about to come.
    fn expect(&mut self, tier: Tier, private: Private, node: NodeId, now: Nanos) -> pool::Filling {
        self.index.place(node, tier, private.slot());
        let touch = self.touch(node, now);
        let pool = self.pool_mut(tier);
        let filling = pool.bind_filling(private, node);
        pool.rank_new(filling.slot(), &touch);
        filling
    }

    fn onboard(
        &mut self,
        node: NodeId,
        source: Pin,
        target: pool::Filling,
        waiters: Waiters,
        urgency: Urgency,
        out: &mut Outbox,
    ) {
        let (host, hbm) = (source.slot(), target.slot());
        let id = job_id(self.jobs.insert(InFlight::Onboard { node, source, target, waiters }));
        self.hbm.attach(hbm, id);
        out.jobs.push(Job { id, op: Op::Onboard { host, hbm }, urgency });
    }

    fn read(
        &mut self,
        node: NodeId,
        source: log_space::Reading,
        target: pool::Filling,
        onward: Option<pool::Filling>,
        waiters: Waiters,
        out: &mut Outbox,
    ) {
        let Some(log) = &self.log else { return };
        let place = log.place(source.slot());
        let expect = self.identity(node, place.generation);
        let (host, hbm) = (target.slot(), onward.as_ref().map(pool::Filling::slot));
        let id = job_id(self.jobs.insert(InFlight::Read { node, source, target, onward, waiters }));
        self.host.attach(host, id);
        if let Some(hbm) = hbm {
            self.hbm.attach(hbm, id);
        }
        out.jobs.push(Job { id, op: Op::Read { place, host, expect }, urgency: Urgency::Demand });
    }

    /// Answers a request: what is readable stays pinned, all the rest gets slots of its own.
    fn answer(&mut self, id: DefaultKey, now: Nanos, out: &mut Outbox) {
        let Some(request) = self.requests.get_mut(id) else { return };
        let (ready, matched) = (request.limit, request.matched);
        request.ready = Some(ready);
        let mut blocks = std::mem::take(&mut request.blocks);
        let mut granted = request.granted;
        // Blocks behind the first failure cannot be used, and must not be written over: others may read them.
        for block in &mut blocks[ready as usize..matched as usize] {
            block.found = None;
            if let Held::Pinned(pin, _) = block.held.take() {
                self.pool_mut(self.top).unpin(pin);
            }
        }
        for i in ready..matched {
            match self.allocate(self.top, now, out) {
                Some(private) => blocks[i as usize].held = Held::Private(private),
                None => {
                    granted = i;
                    break;
                }
            }
        }
        for block in &mut blocks[granted as usize..] {
            if let Held::Private(private) = block.held.take() {
                self.pool_mut(self.top).give_back(private);
            }
        }
        let mut hits = PerTier::default();
        for tier in blocks[..ready as usize].iter().filter_map(|b| b.found) {
            hits[tier] += 1;
            self.stats.hits[tier] += 1;
        }
        self.stats.no_room += u64::from(blocks.len() as u32 - granted);
        let lost = matched - ready;
        self.stats.lost += u64::from(lost);
        out.replies.push(Ready { request: request_id(id), ready, granted, hits, lost });
        if let Some(request) = self.requests.get_mut(id) {
            request.blocks = blocks;
            request.granted = granted;
        }
    }

    // ---- steps of commit ---------------------------------------------------------------------------

    /// Makes a computed block readable. If somebody else was faster, his copy stays and ours is freed.
    fn publish(&mut self, private: Private, node: NodeId, out: &mut Outbox) -> (Held, bool) {
        let top = self.top;
        match self.index.slot(node, top) {
            Some(theirs) => {
                let pool = self.pool_mut(top);
                pool.give_back(private);
                (pool.pin(theirs).map_or(Held::Nothing, |pin| Held::Pinned(pin, node)), false)
            }
            None => {
                self.index.place(node, top, private.slot());
                let pin = self.pool_mut(top).bind_ready(private, node);
                self.became_readable(node, top, out);
                (Held::Pinned(pin, node), true)
            }
        }
    }

    /// Starts copying to host RAM what is in HBM only, head first as far as there is room.
    fn offload(&mut self, now: Nanos, steps: &mut [Step], out: &mut Outbox) {
        let mut pins = std::mem::take(&mut self.pins);
        for step in steps.iter() {
            if let Some(slot) = self.index.ready_slot(step.node, Tier::Host) {
                pins.extend(self.host.pin(slot));
            }
        }
        let absent = steps.iter().filter(|step| self.index.slot(step.node, Tier::Host).is_none()).count();
        self.make_room(Tier::Host, absent, now, out);
        for step in steps.iter_mut() {
            let node = step.node;
            if self.index.slot(node, Tier::Host).is_some() {
                continue;
            }
            let Some(hbm) = self.index.ready_slot(node, Tier::Hbm) else { continue };
            let Some(private) = self.allocate(Tier::Host, now, out) else { break };
            self.index.place(node, Tier::Host, private.slot());
            let target = self.host.bind_filling(private, node);
            step.new_in_host = true;
            let Some(source) = self.hbm.pin(hbm) else { continue };
            let host = target.slot();
            let id = job_id(self.jobs.insert(InFlight::Offload { node, source, target }));
            self.host.attach(host, id);
            out.jobs.push(Job { id, op: Op::Offload { hbm, host }, urgency: Urgency::WriteBack });
        }
        for pin in pins.drain(..) {
            self.host.unpin(pin);
        }
        self.pins = pins;
    }

    /// Tells the policies of HBM and host that the block was used. A use in HBM counts in host RAM too, so
    /// that the lower tier keeps what the upper one will lose next.
    fn rank(&mut self, step: Step, now: Nanos) {
        let touch = self.touch(step.node, now);
        for tier in [Tier::Hbm, Tier::Host] {
            let Some(slot) = self.index.slot(step.node, tier) else { continue };
            let new = if tier == self.top { step.new_in_top } else { step.new_in_host };
            let pool = self.pool_mut(tier);
            if new {
                pool.rank_new(slot, &touch);
            } else {
                pool.rank_hit(slot, &touch);
            }
        }
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

    // ---- shared ------------------------------------------------------------------------------------

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
        let namespace = self.namespaces[usize::from(self.index.namespace(node).0)];
        RecordIdentity {
            namespace: namespace.id,
            epoch: namespace.epoch,
            fingerprint: namespace.fingerprint,
            key: self.index.key(node),
            generation,
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
