//! Remote stores: asking what they have, bringing it, and storing what was computed.
//!
//! ```text
//!   acquire ─► the rule ─► Exists ─► looked ─► the rule again, if there is less ─► Get ─► one Read per block
//!   commit  ─► to_put ─► Put, a few blocks at a time; what does not fit the queue is not stored
//! ```
//!
//! Until the store has answered, the request holds slots to compute into for all blocks in question. Whatever the store
//! does, the request goes on at the deadline that the rule has set when it was acquired.

use super::inflight::{GetOwner, InFlight, ReadFrom, Waiter, Waiters};
use super::pool::Filling;
use super::request::{Found, Held};
use super::stake::{End, Looking, Stake};
use super::{Outbox, Planner, job_id, job_key, request_id, request_key};
use crate::ids::{JobId, RemoteId, RequestId};
use crate::index::{NamespaceIndex, NodeId};
use crate::job::{HedgePlan, RemoteAnswer, RemoteJob, RemoteOp, RemoteRead, TransferError, Urgency};
use crate::key::BlockKey;
use crate::tier::Tier;
use crate::units::{Generation, Nanos};
use crate::verified::RecordIdentity;
use slotmap::DefaultKey;

impl Planner {
    /// A remote store has answered, or the hand has left the call. An answer of the wrong kind is none, and one for a job
    /// that does not exist changes nothing and is counted.
    pub fn remote_complete(&mut self, now: Nanos, job: JobId, answer: RemoteAnswer, out: &mut Outbox) {
        let Some(ended) = self.jobs.remove(job_key(job)) else {
            self.stats.stale_completions += 1;
            return;
        };
        match (ended, answer) {
            (InFlight::Lookup { request, remote }, RemoteAnswer::Exists(found)) => {
                self.looked(now, job, request, remote, found, out);
            }
            (InFlight::Get { owner, jobs }, RemoteAnswer::Get { blocks, wire, decode, by }) => {
                if let Some(slow) = &mut self.slow {
                    slow.saw_wire(by, wire, blocks.iter().filter(|(_, result)| result.is_ok()).count());
                }
                self.delivered(owner, decode, by);
                for (read, result) in blocks {
                    if jobs.contains(&read) {
                        self.complete(now, read, result, out);
                    }
                }
                self.unanswered(now, &jobs, TransferError::Down, out);
            }
            (InFlight::Put { remote, sources }, RemoteAnswer::Put(results)) => {
                let stored = results.iter().filter(|result| result.is_ok()).count().min(sources.len());
                self.stats.remote_writes += stored as u64;
                self.put_ended(now, remote, sources, stored, out);
            }
            (other, _) => self.remote_failed(now, job, other, TransferError::Down, out),
        }
    }

    /// A call to a remote store was refused, or failed as a whole.
    pub(super) fn remote_failed(
        &mut self,
        now: Nanos,
        job: JobId,
        ended: InFlight,
        error: TransferError,
        out: &mut Outbox,
    ) {
        match ended {
            InFlight::Lookup { request, remote } => self.looked(now, job, request, remote, Err(error), out),
            InFlight::Get { jobs, .. } => self.unanswered(now, &jobs, error, out),
            InFlight::Put { remote, sources } => self.put_ended(now, remote, sources, 0, out),
            // Not a call to a remote store: an answer of that kind says nothing about it.
            other => {
                self.stats.stale_completions += 1;
                self.copy_ended(now, other, Err(error), out);
            }
        }
    }

    fn unanswered(&mut self, now: Nanos, jobs: &[JobId], error: TransferError, out: &mut Outbox) {
        for job in jobs {
            if self.jobs.contains_key(job_key(*job)) {
                self.complete(now, *job, Err(error), out);
            }
        }
    }

    /// Notes how the time of a call was spent, before its blocks arrive.
    fn delivered(&mut self, owner: GetOwner, decode: Nanos, by: RemoteId) {
        match owner {
            GetOwner::Request(request) => {
                let request = self.requests.get_mut(request_key(request));
                let stake = request.and_then(|r| r.loads.as_mut()?.remote.as_mut());
                if let Some(stake) = stake {
                    stake.decode = decode;
                    stake.overtaken = stake.hedge.as_ref().is_some_and(|hedge| hedge.remote == by);
                }
            }
            GetOwner::Probe(probe) => {
                if let Some(run) = self.slow.as_mut().and_then(|slow| slow.probe(probe)) {
                    run.decode = decode;
                }
            }
        }
    }

    pub(super) fn remote_identity(&self, namespace: NamespaceIndex, key: BlockKey) -> RecordIdentity {
        let namespace = self.namespaces[usize::from(namespace.0)];
        RecordIdentity {
            namespace: namespace.id,
            epoch: namespace.epoch,
            fingerprint: namespace.fingerprint,
            key,
            generation: Generation(0),
        }
    }

    /// Asks a store for the blocks of a stake.
    pub(super) fn look_up(
        &mut self,
        id: DefaultKey,
        remote: RemoteId,
        stake: Stake,
        tried: u16,
        out: &mut Outbox,
    ) {
        let job = job_id(self.jobs.insert(InFlight::Lookup { request: request_id(id), remote }));
        let request = &self.requests[id];
        let (from, to) = (stake.blocks.start as usize, stake.blocks.end as usize);
        let identities =
            request.blocks[from..to].iter().map(|b| self.remote_identity(request.namespace, b.key));
        let op = RemoteOp::Exists(identities.collect());
        out.remote_jobs.push(RemoteJob {
            id: job,
            remote,
            op,
            deadline: stake.deadline,
            urgency: Urgency::Demand,
        });
        out.tick_by = out.tick_by.min(stake.deadline);
        self.stats.remote_lookups += 1;
        let looking = Looking { job, stake, tried: tried | 1 << remote.0 };
        self.requests[id].loads.get_or_insert_default().looking = Some(looking);
    }

    /// A store has said how much it has.
    fn looked(
        &mut self,
        now: Nanos,
        job: JobId,
        request: RequestId,
        remote: RemoteId,
        found: Result<u32, TransferError>,
        out: &mut Outbox,
    ) {
        if let (Ok(found), Some(slow)) = (found, &mut self.slow) {
            slow.saw_presence(remote, found > 0);
        }
        let id = request_key(request);
        let loads = self.requests.get_mut(id).and_then(|r| r.loads.as_mut());
        let Some(Looking { mut stake, tried, .. }) =
            loads.and_then(|loads| loads.looking.take_if(|looking| looking.job == job))
        else {
            return;
        };
        let (start, asked) = (stake.blocks.start, stake.blocks.end - stake.blocks.start);
        match found {
            Err(error) => self.end_taken(now, id, stake, error.into()),
            Ok(0) => {
                self.end_taken(now, id, stake, End::Cancelled);
                self.ask_remote(now, id, tried, out);
            }
            Ok(found) if found < asked => {
                self.end_taken(now, id, stake, End::Cancelled);
                match self.decide_again(now, id, remote, start..start + found) {
                    Some(stake) => self.get(now, id, remote, stake, out),
                    None => self.stats.loads_refused += 1,
                }
            }
            Ok(_) => {
                stake.lookup = now - stake.since;
                self.get(now, id, remote, stake, out);
            }
        }
        if self.requests.get(id).is_some_and(|request| request.is_done()) {
            self.answer(id, now, out);
        }
    }

    /// Brings what a store has. Blocks that came here in the meantime, or are coming, are not brought again.
    fn get(&mut self, now: Nanos, id: DefaultKey, remote: RemoteId, mut stake: Stake, out: &mut Outbox) {
        let wanted = stake.blocks.clone();
        let Some(request) = self.requests.get_mut(id) else { return };
        let namespace = request.namespace;
        let mut blocks = std::mem::take(&mut request.blocks);
        let mut parent = match wanted.start {
            0 => None,
            first => self.own_node(namespace, blocks[first as usize - 1].key),
        };
        let mut reads = Vec::with_capacity(wanted.len());
        let mut end = wanted.start;
        for depth in wanted.clone() {
            if depth > 0 && parent.is_none() {
                break;
            }
            let block = &mut blocks[depth as usize];
            let waiter = Waiter { request: request_id(id), block: depth };
            let Held::Private(own) = block.held.take() else { break };
            // Room first: making it could take away a block that was only just made known.
            let staging = if self.top == Tier::Hbm { self.allocate(Tier::Host, now, out) } else { None };
            let node = self.index.ensure(block.key, parent, depth, namespace);
            let Some(node) = node.filter(|_| self.top == Tier::Host || staging.is_some()) else {
                staging.into_iter().for_each(|s| self.host.give_back(s));
                node.into_iter().for_each(|n| self.index.release(n));
                block.held = Held::Private(own);
                break;
            };
            if self.index.slot(node, Tier::Host).is_some() || self.index.slot(node, self.top).is_some() {
                staging.into_iter().for_each(|s| self.host.give_back(s));
                match self.join(now, node, waiter, out) {
                    Some(held) => {
                        self.pool_mut(self.top).give_back(own);
                        block.held = held;
                    }
                    None => {
                        block.held = Held::Private(own);
                        break;
                    }
                }
            } else {
                let (target, onward) = match staging {
                    None => (self.expect(Tier::Host, own, node, now), None),
                    Some(staging) => {
                        let onward = self.expect(Tier::Hbm, own, node, now);
                        (self.expect(Tier::Host, staging, node, now), Some(onward))
                    }
                };
                reads.push(self.remote_read(namespace, node, target, onward, Waiters::one(waiter)));
                block.held = Held::Waiting;
            }
            block.found = Some(Found::Remote);
            parent = Some(node);
            end = depth + 1;
        }
        stake.bring(&blocks, end);
        let (pending, deadline) = (stake.pending, stake.deadline);
        let hedge = stake.hedge.as_ref().map(|h| HedgePlan { remote: h.remote, after: h.after });
        if let Some(request) = self.requests.get_mut(id) {
            request.blocks = blocks;
            request.matched = end;
            request.limit = end;
            request.pending += pending;
            if pending > 0 {
                self.stats.loads_admitted += 1;
                request.loads.get_or_insert_default().remote = Some(stake);
            } else {
                self.end_taken(now, id, stake, End::Cancelled);
            }
        }
        out.tick_by = out.tick_by.min(deadline);
        self.call_get(
            remote,
            reads,
            hedge,
            GetOwner::Request(request_id(id)),
            deadline,
            Urgency::Demand,
            out,
        );
    }

    fn own_node(&self, namespace: NamespaceIndex, key: BlockKey) -> Option<NodeId> {
        self.index.get(key).filter(|node| self.index.namespace(*node) == namespace)
    }

    /// Waits for, or uses, a block that is here or on its way for somebody else.
    fn join(&mut self, now: Nanos, node: NodeId, waiter: Waiter, out: &mut Outbox) -> Option<Held> {
        if self.index.slot(node, self.top).is_some() && self.index.ready_slot(node, self.top).is_none() {
            return self.await_arrival(node, waiter);
        }
        let (_, source) = self.pin_source(node)?;
        self.bring(now, node, source, waiter, out)
    }

    fn remote_read(
        &mut self,
        namespace: NamespaceIndex,
        node: NodeId,
        target: Filling,
        onward: Option<Filling>,
        waiters: Waiters,
    ) -> RemoteRead {
        let expect = self.remote_identity(namespace, self.index.key(node));
        let (host, hbm) = (target.slot(), onward.as_ref().map(Filling::slot));
        let read = InFlight::Read { node, source: ReadFrom::Remote, target, onward, waiters };
        let job = job_id(self.jobs.insert(read));
        self.host.attach(host, job);
        if let Some(hbm) = hbm {
            self.hbm.attach(hbm, job);
        }
        RemoteRead { job, expect, host }
    }

    #[allow(clippy::too_many_arguments)] // one call, all of whose parts are of different types
    pub(super) fn call_get(
        &mut self,
        remote: RemoteId,
        reads: Vec<RemoteRead>,
        hedge: Option<HedgePlan>,
        owner: GetOwner,
        deadline: Nanos,
        urgency: Urgency,
        out: &mut Outbox,
    ) {
        if reads.is_empty() {
            return;
        }
        let jobs = reads.iter().map(|read| read.job).collect();
        let id = job_id(self.jobs.insert(InFlight::Get { owner, jobs }));
        out.remote_jobs.push(RemoteJob { id, remote, op: RemoteOp::Get { reads, hedge }, deadline, urgency });
    }
}
