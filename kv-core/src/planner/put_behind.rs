//! Storing computed blocks in remote stores, a few at a time; what does not fit the queue is not stored.

use super::inflight::InFlight;
use super::pool::Pin;
use super::{Outbox, Planner, job_id};
use crate::ids::RemoteId;
use crate::index::NodeId;
use crate::job::{RecordMeta, RemoteJob, RemoteOp, RemoteWrite, Urgency};
use crate::key::BlockKey;
use crate::tier::Tier;
use crate::units::Nanos;

/// How long a store may take to store something. Nobody waits for it, but it keeps host slots pinned.
const PUT_PATIENCE: Nanos = Nanos::from_millis(30_000);
/// Blocks that may be waiting to be stored...
const MOST_QUEUED: usize = 4096;
/// ...and pinned because they are being stored, over all stores; with a small host tier, this share of it (one part
/// in...), because a slow store must not take the room from requests.
const MOST_PUTS: u32 = 64;
const PUT_SHARE: u32 = 8;
/// Blocks of one call.
const PUT_BATCH: u32 = 16;
/// Calls that store something, over all stores: far fewer than a store takes at once, so that loads always find room.
/// Blocks that come one by one wait behind them, and go on together.
const MOST_PUT_CALLS: u32 = 8;

impl Planner {
    /// A computed block is in host RAM: it will be stored where that is wanted.
    pub(super) fn offer_remote(&mut self, node: NodeId) {
        let key = self.index.key(node);
        let Some(slow) = self.slow.as_mut().filter(|slow| slow.remotes.iter().any(|r| r.writes)) else {
            return;
        };
        if slow.to_put.len() < MOST_QUEUED {
            slow.to_put.push_back((node, key));
        } else {
            self.stats.remote_writes_lost += 1;
        }
    }

    /// Goes on storing what was computed, as far as there is room.
    pub(super) fn put_behind(&mut self, now: Nanos, out: &mut Outbox) {
        if self.closing {
            return;
        }
        let most = MOST_PUTS.min(self.host.capacity() / PUT_SHARE).max(1);
        while let Some(slow) = &mut self.slow
            && !slow.to_put.is_empty()
            && slow.puts_in_flight < most
            && slow.put_calls_in_flight < MOST_PUT_CALLS
        {
            let room = PUT_BATCH.min(most - slow.puts_in_flight) as usize;
            let batch: Vec<_> = slow.to_put.drain(..room.min(slow.to_put.len())).collect();
            let remotes = slow.remotes.iter().enumerate();
            let open =
                remotes.filter(|(_, r)| r.writes && !r.health.paused(now)).map(|(i, _)| RemoteId(i as u8));
            let open: Vec<RemoteId> = open.collect();
            if open.is_empty() {
                self.stats.remote_writes_lost += batch.len() as u64;
                continue;
            }
            for remote in open {
                self.put(now, remote, &batch, out);
            }
        }
    }

    fn put(&mut self, now: Nanos, remote: RemoteId, batch: &[(NodeId, BlockKey)], out: &mut Outbox) {
        let (mut sources, mut writes) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for (node, key) in batch {
            // It may have left in the meantime, and its handle may name another block.
            let slot = Some(node).filter(|node| self.index.key(**node) == *key);
            let slot = slot.and_then(|node| self.index.ready_slot(*node, Tier::Host));
            let Some((slot, pin)) = slot.and_then(|slot| Some((slot, self.host.pin(slot)?))) else {
                self.stats.remote_writes_lost += 1;
                continue;
            };
            let record = RecordMeta {
                identity: self.remote_identity(self.index.namespace(*node), *key),
                parent: self.index.parent_key(*node),
                depth: self.index.depth(*node),
            };
            writes.push(RemoteWrite { host: slot, record });
            sources.push((pin, *node));
        }
        if writes.is_empty() {
            return;
        }
        if let Some(slow) = &mut self.slow {
            slow.puts_in_flight += writes.len() as u32;
            slow.put_calls_in_flight += 1;
        }
        let id = job_id(self.jobs.insert(InFlight::Put { remote, sources }));
        let op = RemoteOp::Put(writes);
        let deadline = now + PUT_PATIENCE;
        out.remote_jobs.push(RemoteJob { id, remote, op, deadline, urgency: Urgency::WriteBack });
    }

    pub(super) fn put_ended(
        &mut self,
        now: Nanos,
        remote: RemoteId,
        sources: Vec<(Pin, NodeId)>,
        stored: usize,
        out: &mut Outbox,
    ) {
        self.stats.remote_writes_lost += (sources.len() - stored) as u64;
        if let Some(slow) = &mut self.slow {
            slow.puts_in_flight -= sources.len() as u32;
            slow.put_calls_in_flight -= 1;
            if let Some(remote) = slow.remote(remote) {
                remote.health.note(now, stored > 0);
            }
        }
        for (pin, _) in sources {
            self.host.unpin(pin);
        }
        self.put_behind(now, out);
    }
}
