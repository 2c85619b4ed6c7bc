//! The first half of a request: what is found is pinned or starts loading, the rest gets slots of its own.

use super::inflight::{InFlight, ReadFrom, Waiter, Waiters};
use super::log_space;
use super::pool::{self, Pin, Private};
use super::request::{Found, Held, Request, RequestBlock, Source};
use super::stake::{End, Which};
use super::{Outbox, Planner, PlannerError, Ready, job_id, job_key, request_id, request_key};
use crate::ids::{RequestId, SlotId};
use crate::index::{NamespaceIndex, NodeId};
use crate::job::{Job, Op, Urgency};
use crate::key::BlockKey;
use crate::tier::{PerTier, Tier};
use crate::units::Nanos;
use slotmap::DefaultKey;

impl Planner {
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
        let weighed = self.weigh_nvme(now, keys.len() as u32, &nodes);
        let (used, mut loads, probe) =
            weighed.map_or((nodes.len(), None, None), |w| (w.used, Some(w.loads), w.probe));
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
            loads: None,
        });

        // First pin all that was found, so that making room for one block cannot evict another.
        for (block, node) in blocks.iter_mut().zip(&nodes[..used]) {
            let Some((tier, source)) = self.pin_source(*node) else { break };
            block.found = Some(Found::Tier(tier));
            block.held = Held::Found(source);
        }
        self.make_room_for(&blocks, now, out);
        let (mut matched, mut pending) = (0, 0);
        for (block, node) in blocks.iter_mut().zip(&nodes[..used]) {
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
        if let Some(probe) = probe {
            self.probe_nvme(now, &nodes[used..], probe, out);
        }
        self.matched = nodes;
        let stake = loads.as_mut().and_then(|loads| loads.nvme.as_mut());
        let nvme_pending = stake.map(|stake| {
            stake.bring(&blocks, matched);
            out.tick_by = out.tick_by.min(stake.deadline);
            stake.pending
        });
        self.requests[id] = Request {
            namespace,
            deadline,
            blocks,
            matched,
            granted,
            limit: matched,
            pending,
            ready: None,
            loads,
        };
        if nvme_pending == Some(0) {
            self.end_stake(now, id, Which::Nvme, End::Cancelled);
        }
        self.ask_remote(now, id, 0, out);
        if self.requests[id].is_done() {
            self.answer(id, now, out);
        } else {
            out.tick_by = out.tick_by.min(deadline);
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

    /// The nodes of the longest readable prefix, in the buffer that `matched` lends. Keys are secret to
    /// their namespace; the check makes a caller who mixes them up a miss instead of a leak.
    pub(super) fn match_own(&mut self, namespace: NamespaceIndex, keys: &[BlockKey]) -> Vec<NodeId> {
        let mut nodes = std::mem::take(&mut self.matched);
        nodes.clear();
        self.index.match_prefix(keys, &mut nodes);
        let own = nodes.iter().take_while(|n| self.index.namespace(**n) == namespace).count();
        nodes.truncate(own);
        nodes
    }

    pub(super) fn pin_source(&mut self, node: NodeId) -> Option<(Tier, Source)> {
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

    pub(super) fn unpin_source(&mut self, source: Source) {
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
    pub(super) fn bring(
        &mut self,
        now: Nanos,
        node: NodeId,
        source: Source,
        waiter: Waiter,
        out: &mut Outbox,
    ) -> Option<Held> {
        match source {
            Source::Top(pin) => Some(Held::Pinned(pin, node)),
            Source::OnItsWay => self.await_arrival(node, waiter),
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

    /// Waits for a block that another load is bringing to the top tier.
    pub(super) fn await_arrival(&mut self, node: NodeId, waiter: Waiter) -> Option<Held> {
        let slot = self.index.slot(node, self.top)?;
        let job = self.pool(self.top).filling_job(slot)?;
        match self.jobs.get_mut(job_key(job))? {
            InFlight::Onboard { waiters, .. } | InFlight::Read { waiters, .. } => waiters.push(waiter),
            _ => return None,
        }
        Some(Held::Waiting)
    }

    /// Binds a slot to the block whose bytes are about to come.
    pub(super) fn expect(&mut self, tier: Tier, private: Private, node: NodeId, now: Nanos) -> pool::Filling {
        self.index.place(node, tier, private.slot());
        let touch = self.touch(node, now);
        let pool = self.pool_mut(tier);
        let filling = pool.bind_filling(private, node);
        pool.rank_new(filling.slot(), &touch);
        filling
    }

    pub(super) fn onboard(
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
        let read = InFlight::Read { node, source: ReadFrom::Log(source), target, onward, waiters };
        let id = job_id(self.jobs.insert(read));
        self.host.attach(host, id);
        if let Some(hbm) = hbm {
            self.hbm.attach(hbm, id);
        }
        out.jobs.push(Job { id, op: Op::Read { place, host, expect }, urgency: Urgency::Demand });
    }

    /// Answers a request: what is readable stays pinned, all the rest gets slots of its own.
    pub(super) fn answer(&mut self, id: DefaultKey, now: Nanos, out: &mut Outbox) {
        self.end_all_stakes(now, id, End::Cancelled);
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
        let (mut hits, mut remote_hits) = (PerTier::default(), 0);
        for found in blocks[..ready as usize].iter().filter_map(|b| b.found) {
            match found {
                Found::Tier(tier) => {
                    hits[tier] += 1;
                    self.stats.hits[tier] += 1;
                }
                Found::Remote => remote_hits += 1,
            }
        }
        self.stats.remote_hits += u64::from(remote_hits);
        self.stats.no_room += u64::from(blocks.len() as u32 - granted);
        let lost = matched - ready;
        self.stats.lost += u64::from(lost);
        out.replies.push(Ready { request: request_id(id), ready, granted, hits, remote_hits, lost });
        if let Some(request) = self.requests.get_mut(id) {
            request.blocks = blocks;
            request.granted = granted;
        }
    }
}
