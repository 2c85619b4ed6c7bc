//! Host to NVMe: what is about to be evicted is written first, if admission thinks it worth a write; and
//! the log gets its space back a segment at a time.

use super::inflight::{InFlight, RescueSource};
use super::log_space::LogSpace;
use super::{Outbox, Planner, job_id};
use crate::ids::{SegmentId, SlotId};
use crate::index::NodeId;
use crate::job::{Job, Op, Place, RecordMeta, Urgency};
use crate::key::BlockKey;
use crate::policy::Offer;
use crate::tier::Tier;
use crate::units::{Generation, Nanos};

/// Write-behind looks at this share of the host tier, coldest first (one part in...).
const WINDOW_SHARE: usize = 8;
/// ...but at no fewer and no more blocks than these at a time: enough for the longest usual chain, and
/// bounded so that a commit stays short.
const WINDOW: std::ops::RangeInclusive<usize> = 64..=1024;
/// Of a segment under reclaim, at most this share is written again (one part in...), which bounds write
/// amplification by 1 / (1 - 1/4).
const REINSERT_SHARE: u32 = 4;

/// Stops writing to a tier that fails again and again, and tries again later.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WriteHealth {
    failures_in_a_row: u32,
    paused_until: Option<Nanos>,
}

impl WriteHealth {
    const TOLERATED: u32 = 4;
    const FIRST_PAUSE: Nanos = Nanos::from_millis(100);
    const LONGEST_DOUBLING: u32 = 9;

    pub(super) fn note(&mut self, now: Nanos, ok: bool) {
        if ok {
            *self = Self::default();
            return;
        }
        self.failures_in_a_row += 1;
        if self.failures_in_a_row >= Self::TOLERATED {
            let doublings = (self.failures_in_a_row - Self::TOLERATED).min(Self::LONGEST_DOUBLING);
            self.paused_until = Some(now + Nanos(Self::FIRST_PAUSE.0 << doublings));
        }
    }

    pub(super) fn paused(&self, now: Nanos) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }

    pub(super) fn resume_at(&self) -> Option<Nanos> {
        self.paused_until
    }
}

impl Planner {
    /// True while writes to NVMe are suspended because they kept failing.
    #[must_use]
    pub fn nvme_writes_paused(&self, now: Nanos) -> bool {
        self.write_health.paused(now)
    }

    /// Goes on writing what is about to be evicted, as far as there is room.
    pub(super) fn write_behind(&mut self, now: Nanos, out: &mut Outbox) {
        if self.log.is_none() || self.closing || self.write_health.paused(now) {
            return;
        }
        if self.write_health.paused_until.take().is_some()
            && let Some(log) = &mut self.log
        {
            log.retry_bad();
            // It may be this segment alone that cannot be written any more.
            if let Some((segment, generation)) = log.close_open() {
                self.seal(segment, generation, out);
            }
        }
        self.prepare_segment(out);
        if self.to_write.is_empty() {
            self.collect_coldest();
        }
        while self.write_backs < self.config.max_write_backs
            && self.log.as_ref().is_some_and(LogSpace::has_room)
            && let Some((slot, node)) = self.to_write.pop_front()
        {
            if !self.host.is_unsettled(slot, node) || self.index.slot(node, Tier::Nvme).is_some() {
                continue;
            }
            let offer = Offer {
                bytes: self.config.record_bytes,
                heat: self.index.heat(node),
                begun: !self.index.is_leaf(node, Tier::Nvme),
            };
            if self.admission.admit(now, offer) {
                self.write(slot, node, out);
            } else {
                self.host.settle(slot);
                self.stats.admission_refused += 1;
            }
        }
        self.prepare_segment(out);
    }

    /// Means to write every block of host RAM that NVMe lacks, not only those near eviction: before a shutdown.
    /// Admission still has its say. [`Planner::unwritten`] tells how far it has come.
    pub fn write_back_all(&mut self, now: Nanos, out: &mut Outbox) {
        if self.log.is_none() || self.closing {
            return;
        }
        self.to_write.clear();
        let (index, to_write) = (&self.index, &mut self.to_write);
        self.host.coldest(usize::MAX, &mut |slot, node| {
            if index.slot(node, Tier::Nvme).is_none() {
                to_write.push_back((slot, node));
            }
        });
        self.write_behind(now, out);
    }

    /// Blocks that write-behind means to write or is writing.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        self.to_write.len() + self.write_backs as usize
    }

    /// Looks for blocks to write at the cold end of the host tier. A block gets nearer to that end only when
    /// others are used or come in, so a quarter of the window may be touched before another look is needed:
    /// a look at 4 blocks per block touched, whatever the sizes.
    fn collect_coldest(&mut self) {
        let capacity = self.host.capacity() as usize;
        let window = (capacity / WINDOW_SHARE).clamp(*WINDOW.start(), *WINDOW.end());
        if !self.host.take_touches(window.min(capacity) / 4) {
            return;
        }
        let (index, to_write) = (&self.index, &mut self.to_write);
        self.host.coldest(window, &mut |slot, node| {
            if index.slot(node, Tier::Nvme).is_none() {
                to_write.push_back((slot, node));
            }
        });
    }

    fn write(&mut self, host: SlotId, node: NodeId, out: &mut Outbox) {
        let Some(source) = self.host.pin(host) else { return };
        let Some(target) = self.log.as_mut().and_then(|log| log.allocate(node)) else {
            self.host.unpin(source);
            return;
        };
        let place = target.place();
        self.index.place(node, Tier::Nvme, target.slot());
        self.write_backs += 1;
        let record = self.record(node, place);
        let id = job_id(self.jobs.insert(InFlight::Write { node, source, target }));
        out.jobs.push(Job { id, op: Op::Write { host, place, record }, urgency: Urgency::WriteBack });
    }

    fn record(&self, node: NodeId, place: Place) -> RecordMeta {
        RecordMeta {
            identity: self.identity(node, place.generation),
            parent: self.index.parent_key(node),
            depth: self.index.depth(node),
        }
    }

    pub(super) fn seal(&mut self, segment: SegmentId, generation: Generation, out: &mut Outbox) {
        let id = job_id(self.jobs.insert(InFlight::SealSegment { segment }));
        out.jobs.push(Job { id, op: Op::SealSegment { segment, generation }, urgency: Urgency::WriteBack });
    }

    /// Opens a segment before there is something to write, which would have to wait for it; but empties none for that.
    pub fn prepare_write(&mut self, out: &mut Outbox) {
        if !self.closing && self.log.as_ref().is_some_and(LogSpace::wants_reserve) {
            let _opening = self.open_free_segment(out);
        }
    }

    /// Keeps one empty segment in reserve.
    pub(super) fn prepare_segment(&mut self, out: &mut Outbox) {
        if self.closing || !self.log.as_ref().is_some_and(LogSpace::wants_reserve) {
            return;
        }
        if !self.open_free_segment(out) {
            self.reclaim_segment(out);
        }
    }

    /// False when no segment is free.
    fn open_free_segment(&mut self, out: &mut Outbox) -> bool {
        let Some((segment, generation)) = self.log.as_mut().and_then(LogSpace::prepare) else { return false };
        let id = job_id(self.jobs.insert(InFlight::OpenSegment { segment }));
        let op = Op::OpenSegment { segment, generation };
        out.jobs.push(Job { id, op, urgency: Urgency::WriteBack });
        true
    }

    /// Empties one segment: the most used records are written again, the others are dropped.
    fn reclaim_segment(&mut self, out: &mut Outbox) {
        let Some(log) = &mut self.log else { return };
        let index = &self.index;
        let used =
            |log: &LogSpace, id| log.live_records(id).filter(|(_, n)| index.heat(*n) > 0).count() as u32;
        let Some(segment) = log.reclaim(used) else {
            log.retry_bad();
            return;
        };
        let mut records: Vec<(SlotId, NodeId)> = log.live_records(segment).collect();
        let keep = (log.records_per_segment() / REINSERT_SHARE) as usize;
        // Stable: of equally used records the older, which are nearer to the head of a chain or colder, go.
        records.sort_by_key(|(_, node)| std::cmp::Reverse(index.heat(*node)));
        for (i, (slot, node)) in records.into_iter().enumerate() {
            if i < keep && self.index.heat(node) > 0 {
                self.rescue(slot, node, out);
            } else {
                self.evict_record(slot, node, out);
            }
        }
        if self.log.as_mut().is_some_and(|log| log.finish_reclaim(segment)) {
            self.prepare_segment(out);
        }
    }

    fn rescue(&mut self, slot: SlotId, node: NodeId, out: &mut Outbox) {
        let key = self.index.key(node);
        if let Some(host) = self.index.ready_slot(node, Tier::Host)
            && let Some(pin) = self.host.pin(host)
        {
            self.reinsert(node, key, slot, RescueSource::Resident(pin), out);
            return;
        }
        // Only a free slot: evicting a host block to save an NVMe one would be a poor trade.
        let (Some(target), Some(log)) = (self.host.take_free(), &mut self.log) else {
            self.evict_record(slot, node, out);
            return;
        };
        let (source, place) = (log.read(slot), log.place(slot));
        let (host, expect) = (target.slot(), self.identity(node, place.generation));
        let id = job_id(self.jobs.insert(InFlight::Rescue { node, key, source, target }));
        out.jobs.push(Job { id, op: Op::Read { place, host, expect }, urgency: Urgency::WriteBack });
    }

    pub(super) fn reinsert(
        &mut self,
        node: NodeId,
        key: BlockKey,
        from: SlotId,
        source: RescueSource,
        out: &mut Outbox,
    ) {
        let there = self.index.key(node) == key && self.index.ready_slot(node, Tier::Nvme) == Some(from);
        let target = if there { self.log.as_mut().and_then(|log| log.allocate(node)) } else { None };
        let Some(target) = target else {
            match source {
                RescueSource::Staged(private) => self.host.give_back(private),
                RescueSource::Resident(pin) => self.host.unpin(pin),
            }
            if there {
                self.evict_record(from, node, out);
            }
            return;
        };
        self.write_backs += 1;
        let host = match &source {
            RescueSource::Staged(private) => private.slot(),
            RescueSource::Resident(pin) => pin.slot(),
        };
        let place = target.place();
        let record = self.record(node, place);
        let id = job_id(self.jobs.insert(InFlight::Reinsert { node, key, source, target, from }));
        out.jobs.push(Job { id, op: Op::Write { host, place, record }, urgency: Urgency::WriteBack });
    }

    /// The record makes room for others.
    fn evict_record(&mut self, slot: SlotId, node: NodeId, out: &mut Outbox) {
        self.stats.evictions[Tier::Nvme] += 1;
        if self.index.best_tier(node) == Some(Tier::Nvme) {
            self.admission.died(self.index.heat(node));
        }
        self.drop_record(slot, node, out);
    }

    /// The record is worth nothing any more.
    pub(super) fn drop_record(&mut self, slot: SlotId, node: NodeId, out: &mut Outbox) {
        if let Some(log) = &mut self.log {
            log.forget(slot);
        }
        self.gone(node, Tier::Nvme, out);
        self.index.release(node);
    }
}
