//! Bookkeeping of the NVMe log: which segment is open, what each record slot holds, what can be reclaimed.
//!
//! ```text
//!   Free ──prepare──► Preparing ──opened──► Reserve ──promote──► Open ──full, written──► Sealing ──► Sealed
//!    ▲                                                                                              │
//!    └───────────────────────── emptied ◄──────────────────── Reclaiming ◄──────────────────────────┘
//! ```
//!
//! One segment is open and one more is kept in reserve, so that a write never waits for a segment.
//! Records are never overwritten in place; space comes back a whole segment at a time.

use crate::ids::{SegmentId, SlotId};
use crate::index::NodeId;
use crate::job::Place;
use crate::units::Generation;

/// Size of the log in segments and records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogShape {
    /// Number of segments, at least [`LogShape::MIN_SEGMENTS`].
    pub segments: u32,
    /// Records in each.
    pub records_per_segment: u32,
}

impl LogShape {
    /// One open, one in reserve, one to keep data in.
    pub const MIN_SEGMENTS: u32 = 3;

    /// Record slots in all.
    #[must_use]
    pub const fn slots(self) -> u64 {
        self.segments as u64 * self.records_per_segment as u64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentState {
    Free,
    Preparing,
    Reserve,
    Open,
    Sealing,
    Sealed,
    Reclaiming,
    /// Could not be opened; left alone until [`LogSpace::retry_bad`].
    Bad,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    state: SegmentState,
    generation: Generation,
    /// Next record to hand out.
    next: u32,
    live: u32,
    readers: u32,
    writers: u32,
    /// Order of sealing, for age.
    sealed_at: u64,
}

/// A counted promise that a record stays where it is while it is read.
#[derive(Debug)]
#[must_use = "dropping it blocks the segment for ever"]
pub(super) struct Reading(SlotId);

impl Reading {
    pub(super) fn slot(&self) -> SlotId {
        self.0
    }
}

/// A record slot handed out for one write.
#[derive(Debug)]
#[must_use = "dropping it blocks the segment for ever"]
pub(super) struct Writing {
    slot: SlotId,
    place: Place,
}

impl Writing {
    pub(super) fn slot(&self) -> SlotId {
        self.slot
    }
    pub(super) fn place(&self) -> Place {
        self.place
    }
}

pub(super) struct LogSpace {
    shape: LogShape,
    segments: Vec<Segment>,
    records: Vec<Option<NodeId>>,
    open: Option<SegmentId>,
    reserve: Option<SegmentId>,
    /// Grows with every sealing.
    age: u64,
}

impl LogSpace {
    pub(super) fn new(shape: LogShape) -> Self {
        let fresh = Segment {
            state: SegmentState::Free,
            generation: Generation(0),
            next: 0,
            live: 0,
            readers: 0,
            writers: 0,
            sealed_at: 0,
        };
        Self {
            shape,
            segments: vec![fresh; shape.segments as usize],
            records: vec![None; shape.slots() as usize],
            open: None,
            reserve: None,
            age: 0,
        }
    }

    fn segment(&mut self, id: SegmentId) -> &mut Segment {
        &mut self.segments[id.0 as usize]
    }

    pub(super) fn segment_of(&self, slot: SlotId) -> SegmentId {
        SegmentId(slot.0 / self.shape.records_per_segment)
    }

    pub(super) fn place(&self, slot: SlotId) -> Place {
        let segment = self.segment_of(slot);
        Place {
            segment,
            generation: self.segments[segment.0 as usize].generation,
            index: slot.0 % self.shape.records_per_segment,
        }
    }

    /// Occupied record slots.
    pub(super) fn live(&self) -> u64 {
        self.segments.iter().map(|s| u64::from(s.live)).sum()
    }

    /// The next record slot of the open segment.
    pub(super) fn allocate(&mut self, node: NodeId) -> Option<Writing> {
        let id = match self.open {
            Some(id) => id,
            None => {
                let id = self.reserve.take()?;
                self.segment(id).state = SegmentState::Open;
                self.open = Some(id);
                id
            }
        };
        let per_segment = self.shape.records_per_segment;
        let segment = self.segment(id);
        let index = segment.next;
        segment.next += 1;
        segment.writers += 1;
        segment.live += 1;
        if segment.next == per_segment {
            self.open = None;
        }
        let slot = SlotId(id.0 * per_segment + index);
        self.records[slot.0 as usize] = Some(node);
        Some(Writing { slot, place: self.place(slot) })
    }

    /// No more writes will come. The segment to seal now, if there is one; else the last write that is still
    /// under way will return it.
    pub(super) fn close(&mut self) -> Option<(SegmentId, Generation)> {
        self.reserve = None;
        self.close_open()
    }

    /// The open segment takes no more records, full or not. Returned as by [`LogSpace::close`].
    pub(super) fn close_open(&mut self) -> Option<(SegmentId, Generation)> {
        let id = self.open.take()?;
        let per_segment = self.shape.records_per_segment;
        let segment = self.segment(id);
        segment.next = per_segment;
        Self::seal_if_complete(segment, per_segment).map(|generation| (id, generation))
    }

    fn seal_if_complete(segment: &mut Segment, per_segment: u32) -> Option<Generation> {
        let complete =
            segment.state == SegmentState::Open && segment.writers == 0 && segment.next == per_segment;
        complete.then(|| {
            segment.state = SegmentState::Sealing;
            segment.generation
        })
    }

    /// The write ended, well or badly. Returns the segment if it is complete and must be sealed now.
    pub(super) fn written(&mut self, writing: Writing) -> Option<(SegmentId, Generation)> {
        let id = self.segment_of(writing.slot);
        let per_segment = self.shape.records_per_segment;
        let segment = self.segment(id);
        segment.writers -= 1;
        Self::seal_if_complete(segment, per_segment).map(|generation| (id, generation))
    }

    /// Sealed: its index is on disk, or could not be written, which recovery copes with.
    pub(super) fn sealed(&mut self, id: SegmentId) {
        self.age += 1;
        let age = self.age;
        let segment = self.segment(id);
        segment.state = SegmentState::Sealed;
        segment.sealed_at = age;
        // Once a lap, so that one that is bad for good costs one failure in a lap.
        if age.is_multiple_of(u64::from(self.shape.segments)) {
            self.retry_bad();
        }
    }

    /// Nothing refers to the record any more.
    pub(super) fn forget(&mut self, slot: SlotId) {
        if self.records[slot.0 as usize].take().is_some() {
            let id = self.segment_of(slot);
            self.segment(id).live -= 1;
        }
    }

    pub(super) fn read(&mut self, slot: SlotId) -> Reading {
        let id = self.segment_of(slot);
        self.segment(id).readers += 1;
        Reading(slot)
    }

    pub(super) fn read_done(&mut self, reading: Reading) {
        let id = self.segment_of(reading.0);
        self.segment(id).readers -= 1;
    }

    /// True when the next write has a place.
    pub(super) fn has_room(&self) -> bool {
        self.open.is_some() || self.reserve.is_some()
    }

    /// True when a segment should be prepared and none is on its way.
    pub(super) fn wants_reserve(&self) -> bool {
        self.reserve.is_none()
            && !self
                .segments
                .iter()
                .any(|s| matches!(s.state, SegmentState::Preparing | SegmentState::Reclaiming))
    }

    /// Starts the next life of a free segment.
    pub(super) fn prepare(&mut self) -> Option<(SegmentId, Generation)> {
        let id = SegmentId(self.segments.iter().position(|s| s.state == SegmentState::Free)? as u32);
        let segment = self.segment(id);
        segment.state = SegmentState::Preparing;
        segment.generation = Generation(segment.generation.0 + 1);
        segment.next = 0;
        Some((id, segment.generation))
    }

    pub(super) fn prepared(&mut self, id: SegmentId, ok: bool) {
        if ok {
            self.segment(id).state = SegmentState::Reserve;
            self.reserve = Some(id);
        } else {
            self.segment(id).state = SegmentState::Bad;
        }
    }

    /// Gives segments that could not be opened another chance.
    pub(super) fn retry_bad(&mut self) {
        for segment in self.segments.iter_mut().filter(|s| s.state == SegmentState::Bad) {
            segment.state = SegmentState::Free;
        }
    }

    /// Chooses the segment to empty: of the oldest quarter that nobody reads, the one with the least worth
    /// keeping (`worth` counts for one segment); of equals, the oldest.
    pub(super) fn reclaim(&mut self, worth: impl Fn(&Self, SegmentId) -> u32) -> Option<SegmentId> {
        let mut sealed: Vec<(u64, SegmentId)> = self
            .segments
            .iter()
            .enumerate()
            .filter(|(_, s)| s.state == SegmentState::Sealed && s.readers == 0)
            .map(|(i, s)| (s.sealed_at, SegmentId(i as u32)))
            .collect();
        sealed.sort_unstable();
        sealed.truncate(sealed.len().div_ceil(4));
        let (_, id) = sealed.into_iter().min_by_key(|(age, id)| (worth(self, *id), *age))?;
        self.segment(id).state = SegmentState::Reclaiming;
        Some(id)
    }

    /// A segment under reclaim whose last record and reader are gone becomes free.
    pub(super) fn finish_reclaim(&mut self, id: SegmentId) -> bool {
        let segment = self.segment(id);
        let done = segment.state == SegmentState::Reclaiming
            && segment.live == 0
            && segment.readers == 0
            && segment.writers == 0;
        if done {
            segment.state = SegmentState::Free;
        }
        done
    }

    /// Live records of a segment, in log order.
    pub(super) fn live_records(&self, id: SegmentId) -> impl Iterator<Item = (SlotId, NodeId)> + '_ {
        let first = id.0 * self.shape.records_per_segment;
        (first..first + self.shape.records_per_segment)
            .filter_map(|slot| self.records[slot as usize].map(|node| (SlotId(slot), node)))
    }

    pub(super) fn records_per_segment(&self) -> u32 {
        self.shape.records_per_segment
    }

    /// Recovery found the segment in this generation, with or without records.
    pub(super) fn restore_segment(&mut self, id: SegmentId, generation: Generation, occupied: bool) {
        let Some(segment) = self.segments.get_mut(id.0 as usize) else { return };
        segment.generation = generation;
        if occupied {
            self.sealed(id);
        }
    }

    /// Recovery found a record; `None` when its place does not fit this log or is taken.
    pub(super) fn restore_record(&mut self, place: Place, node: NodeId) -> Option<SlotId> {
        let segment = self.segments.get_mut(place.segment.0 as usize)?;
        if segment.generation != place.generation || place.index >= self.shape.records_per_segment {
            return None;
        }
        let slot = SlotId(place.segment.0 * self.shape.records_per_segment + place.index);
        let record = &mut self.records[slot.0 as usize];
        if record.is_some() {
            return None;
        }
        *record = Some(node);
        segment.live += 1;
        Some(slot)
    }

    /// Sum of readers and of writers, for the audit.
    pub(super) fn busy(&self) -> (u32, u32) {
        self.segments.iter().fold((0, 0), |(r, w), s| (r + s.readers, w + s.writers))
    }

    /// Every occupied slot, for the audit.
    pub(super) fn occupied(&self) -> impl Iterator<Item = (SlotId, NodeId)> + '_ {
        self.records.iter().enumerate().filter_map(|(i, n)| n.map(|n| (SlotId(i as u32), n)))
    }
}
