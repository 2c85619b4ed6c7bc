//! The second half of a request: what was computed becomes readable and is offered to the tiers below.

use super::inflight::InFlight;
use super::pool::Private;
use super::request::{Held, Request};
use super::{Outbox, Planner, PlannerError, job_id, request_key};
use crate::ids::RequestId;
use crate::index::NodeId;
use crate::job::{Job, Op, Urgency};
use crate::tier::Tier;
use crate::units::Nanos;

/// A block of a chain that `commit` is ranking.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    node: NodeId,
    /// It was bound to its slot in the top tier, or in host RAM, by this very commit.
    new_in_top: bool,
    new_in_host: bool,
}

impl Planner {
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
        self.put_behind(now, out);
        Ok(())
    }

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
                if top == Tier::Host {
                    self.offer_remote(node);
                }
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
}
