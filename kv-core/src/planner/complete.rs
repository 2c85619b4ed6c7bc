//! What happens when a hand reports that a job has ended.

use super::inflight::{InFlight, ReadFrom, RescueSource, Waiter, Waiters};
use super::log_space::Writing;
use super::pool::Filling;
use super::request::Held;
use super::{Outbox, Planner, job_key, request_key};
use crate::ids::{JobId, SegmentId, SlotId};
use crate::index::NodeId;
use crate::job::{TransferError, Urgency};
use crate::key::BlockKey;
use crate::tier::Tier;
use crate::units::Nanos;
use crate::verified::Verified;

impl Planner {
    /// A job has ended. Its block becomes readable at its destination only if `result` carries the
    /// [`Verified`] token of this very job; otherwise the block is a miss there.
    ///
    /// A completion for a job that does not exist (reported twice, say) changes nothing and is counted.
    pub fn complete(
        &mut self,
        now: Nanos,
        job: JobId,
        result: Result<Verified, TransferError>,
        out: &mut Outbox,
    ) {
        let Some(ended) = self.jobs.remove(job_key(job)) else {
            self.stats.stale_completions += 1;
            return;
        };
        let result = match result {
            Ok(token) if token.job() == job => Ok(()),
            Ok(_) => Err(TransferError::Down),
            Err(error) => Err(error),
        };
        match ended {
            InFlight::Lookup { .. } | InFlight::Get { .. } | InFlight::Put { .. } => {
                self.remote_failed(now, job, ended, result.err().unwrap_or(TransferError::Down), out);
            }
            ended => self.copy_ended(now, ended, result, out),
        }
    }

    /// A copy, a read or a write has ended.
    pub(super) fn copy_ended(
        &mut self,
        now: Nanos,
        ended: InFlight,
        result: Result<(), TransferError>,
        out: &mut Outbox,
    ) {
        match ended {
            InFlight::Onboard { node, source, target, waiters } => {
                self.host.unpin(source);
                self.stats.onboards += u64::from(result.is_ok());
                self.count_load_failure(result);
                self.arrived(now, Tier::Hbm, node, target, waiters, result, out);
            }
            InFlight::Read { node, source, target, onward, waiters } => {
                self.read_ended(now, node, source, target, onward, waiters, result, out);
            }
            InFlight::Offload { node, source, target } => {
                self.hbm.unpin(source);
                self.stats.offloads += u64::from(result.is_ok());
                self.stats.failed_writes += u64::from(result.is_err());
                self.arrived(now, Tier::Host, node, target, Waiters::default(), result, out);
                if result.is_ok() {
                    self.offer_remote(node);
                    self.put_behind(now, out);
                }
            }
            InFlight::Write { node, source, target } => {
                if result.is_ok() {
                    self.host.settle(source.slot());
                }
                self.host.unpin(source);
                self.write_ended(now, node, target, result, out);
            }
            InFlight::Rescue { node, key, source, target } => {
                let from = source.slot();
                self.end_reading(source);
                match result {
                    Ok(()) => self.reinsert(node, key, from, RescueSource::Staged(target), out),
                    Err(error) => {
                        self.stats.given_up_slots += u64::from(error == TransferError::InDoubt);
                        self.host.failed(target, error);
                        self.count_load_failure(result);
                        self.drop_if_there(node, key, from, out);
                    }
                }
                self.emptied(from, out);
            }
            InFlight::Reinsert { node, key, source, target, from } => {
                match source {
                    RescueSource::Staged(private) => self.host.give_back(private),
                    RescueSource::Resident(pin) => self.host.unpin(pin),
                }
                self.reinsert_ended(now, node, key, target, from, result, out);
            }
            InFlight::Probe { probe, source, target } => {
                match result {
                    Ok(()) => self.host.give_back(target),
                    Err(error) => {
                        self.stats.given_up_slots += u64::from(error == TransferError::InDoubt);
                        self.host.failed(target, error);
                    }
                }
                let record = self.read_from(source, result);
                self.probe_part_ended(now, probe, result);
                record.into_iter().for_each(|record| self.emptied(record, out));
            }
            InFlight::OpenSegment { segment } => {
                self.write_health.note(now, result.is_ok());
                if let Some(log) = &mut self.log {
                    log.prepared(segment, result.is_ok());
                }
                self.write_behind(now, out);
            }
            InFlight::SealSegment { segment } => {
                self.write_health.note(now, result.is_ok());
                if let Some(log) = &mut self.log {
                    log.sealed(segment);
                }
            }
            // Ended in `remote_failed`.
            InFlight::Lookup { .. } | InFlight::Get { .. } | InFlight::Put { .. } => {}
        }
    }

    fn count_load_failure(&mut self, result: Result<(), TransferError>) {
        match result {
            Ok(()) => {}
            Err(TransferError::Refused(_)) => self.stats.refused_loads += 1,
            Err(_) => self.stats.failed_loads += 1,
        }
    }

    /// A block has come, or failed to come, to the slot that was bound to it.
    #[allow(clippy::too_many_arguments)] // one transition, all of whose parts are tokens
    fn arrived(
        &mut self,
        now: Nanos,
        tier: Tier,
        node: NodeId,
        target: Filling,
        waiters: Waiters,
        result: Result<(), TransferError>,
        out: &mut Outbox,
    ) {
        if let Err(error) = result {
            self.stats.given_up_slots += u64::from(error == TransferError::InDoubt);
            self.pool_mut(tier).abandon(target, error);
            self.gone(node, tier, out);
            self.notify(now, node, Err(error), waiters, out);
            self.index.release(node);
            return;
        }
        let slot = target.slot();
        let pin = self.pool_mut(tier).fill(target);
        self.became_readable(node, tier, out);
        self.notify(now, node, Ok(slot), waiters, out);
        self.pool_mut(tier).unpin(pin);
    }

    /// Tells every request that still waits for the block, and answers those that can go on.
    fn notify(
        &mut self,
        now: Nanos,
        node: NodeId,
        slot: Result<SlotId, TransferError>,
        waiters: Waiters,
        out: &mut Outbox,
    ) {
        for waiter in waiters.drain() {
            let Waiter { request, block } = waiter;
            let id = request_key(request);
            let top = self.top;
            let Some(request) = self.requests.get(id) else { continue };
            let waits = request.blocks.get(block as usize);
            if !waits.is_some_and(|b| matches!(b.held, Held::Waiting)) {
                continue;
            }
            let held = slot.and_then(|slot| match self.pool_mut(top).pin(slot) {
                Some(pin) => Ok(Held::Pinned(pin, node)),
                None => Err(TransferError::Down),
            });
            if self.load_ended(now, id, block, held) {
                self.answer(id, now, out);
            }
        }
    }

    /// Lets go of the source of a read, and counts it; the record, if it was one of the log.
    fn read_from(&mut self, source: ReadFrom, result: Result<(), TransferError>) -> Option<SlotId> {
        match source {
            ReadFrom::Log(reading) => {
                let record = reading.slot();
                self.end_reading(reading);
                self.stats.nvme_reads += u64::from(result.is_ok());
                Some(record)
            }
            ReadFrom::Remote => {
                self.stats.remote_reads += u64::from(result.is_ok());
                None
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // one transition, all of whose parts are tokens
    fn read_ended(
        &mut self,
        now: Nanos,
        node: NodeId,
        source: ReadFrom,
        target: Filling,
        onward: Option<Filling>,
        waiters: Waiters,
        result: Result<(), TransferError>,
        out: &mut Outbox,
    ) {
        let record = self.read_from(source, result);
        self.count_load_failure(result);
        match (result, onward) {
            (Ok(()), Some(hbm)) => {
                let pin = self.host.fill(target);
                self.became_readable(node, Tier::Host, out);
                self.onboard(node, pin, hbm, waiters, Urgency::Demand, out);
            }
            (Ok(()), None) => self.arrived(now, Tier::Host, node, target, waiters, result, out),
            (Err(error), onward) => {
                // A record that cannot be read once is not worth a second surprise.
                if let Some(record) = record
                    && !matches!(error, TransferError::Down | TransferError::InDoubt)
                {
                    let key = self.index.key(node);
                    self.drop_if_there(node, key, record, out);
                }
                match onward {
                    // Host first: the HBM slot keeps the node alive meanwhile.
                    Some(hbm) => {
                        self.arrived(now, Tier::Host, node, target, Waiters::default(), result, out);
                        // Nothing was on its way to HBM yet, so there nothing is in doubt.
                        let why = if error == TransferError::InDoubt { TransferError::Down } else { error };
                        self.arrived(now, Tier::Hbm, node, hbm, waiters, Err(why), out);
                    }
                    None => self.arrived(now, Tier::Host, node, target, waiters, result, out),
                }
            }
        }
        if let Some(record) = record {
            self.emptied(record, out);
        }
    }

    fn write_ended(
        &mut self,
        now: Nanos,
        node: NodeId,
        target: Writing,
        result: Result<(), TransferError>,
        out: &mut Outbox,
    ) {
        let slot = self.written(now, target, result, out);
        if result.is_ok() {
            self.stats.nvme_writes += 1;
            self.became_readable(node, Tier::Nvme, out);
        } else {
            self.stats.failed_writes += 1;
            self.drop_record(slot, node, out);
        }
        if self.write_backs * 2 < self.config.max_write_backs {
            self.write_behind(now, out);
        }
    }

    #[allow(clippy::too_many_arguments)] // one transition, all of whose parts are tokens
    fn reinsert_ended(
        &mut self,
        now: Nanos,
        node: NodeId,
        key: BlockKey,
        target: Writing,
        from: SlotId,
        result: Result<(), TransferError>,
        out: &mut Outbox,
    ) {
        let slot = self.written(now, target, result, out);
        let still_there = self.is_record(node, key, from);
        if let Some(log) = &mut self.log {
            if result.is_ok() && still_there {
                log.forget(from);
                self.index.place(node, Tier::Nvme, slot);
                self.index.set_heat(node, self.index.heat(node) / 2);
                self.stats.nvme_writes += 1;
                self.stats.reinserted += 1;
            } else {
                log.forget(slot);
                self.stats.failed_writes += u64::from(result.is_err());
                self.drop_if_there(node, key, from, out);
            }
        }
        self.emptied(from, out);
    }

    /// What every write to NVMe ends with: its segment is sealed if that was the last one.
    fn written(
        &mut self,
        now: Nanos,
        target: Writing,
        result: Result<(), TransferError>,
        out: &mut Outbox,
    ) -> SlotId {
        let slot = target.slot();
        self.write_backs -= 1;
        self.write_health.note(now, result.is_ok());
        if let Some(log) = &mut self.log
            && let Some((segment, generation)) = log.written(target)
        {
            self.seal(segment, generation, out);
        }
        slot
    }

    /// True while `slot` is the NVMe record of this very block.
    fn is_record(&self, node: NodeId, key: BlockKey, slot: SlotId) -> bool {
        self.index.key(node) == key && self.index.ready_slot(node, Tier::Nvme) == Some(slot)
    }

    fn drop_if_there(&mut self, node: NodeId, key: BlockKey, slot: SlotId, out: &mut Outbox) {
        if self.is_record(node, key, slot) {
            self.drop_record(slot, node, out);
        }
    }

    /// If that was the last thing that kept a segment under reclaim, prepares it for its next life.
    pub(super) fn emptied(&mut self, slot: SlotId, out: &mut Outbox) {
        let Some(log) = &mut self.log else { return };
        let segment: SegmentId = log.segment_of(slot);
        if log.finish_reclaim(segment) {
            self.prepare_segment(out);
        }
    }
}
