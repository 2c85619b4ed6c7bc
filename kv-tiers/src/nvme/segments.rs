//! What this process knows about each segment, and the rules that a job must keep.
//!
//! ```text
//!            begin_open          opened            begin_seal        sealed
//!   any life ──────────► Opening ──────► Open ───────────► Sealing ──────► Sealed
//!   (lower generation)                   │ ▲ begin_write, end_write
//! ```
//!
//! A step that fails leaves its state as it is: a segment that could not be opened is good for nothing but a
//! later life, and one that could not be sealed takes no more records but may be sealed again.

use std::sync::Arc;

use kv_core::Mismatch;
use kv_core::ids::SegmentId;
use kv_core::job::{Place, TransferError};
use kv_core::units::Generation;
use parking_lot::Mutex;

use super::error::transfer_error;
use super::format::{FooterEntry, LogId};
use super::geometry::Geometry;
use super::store::SegmentStore;
use crate::arena::Arena;

/// A place of an open segment.
#[derive(Clone, Copy)]
pub(crate) enum Slot {
    Empty,
    Writing,
    Written(FooterEntry),
}

/// Where a segment is in its life.
pub(crate) enum State {
    Free,
    Opening,
    Open(Box<[Slot]>),
    Sealing(Vec<FooterEntry>),
    Sealed,
}

/// One segment.
pub(crate) struct Life {
    pub(crate) generation: Generation,
    pub(crate) state: State,
    /// A write completed that no sync has covered.
    pub(crate) dirty: bool,
    /// A sync failed. The kernel may have dropped what it could not write, and a later sync that succeeds
    /// would hide that; so nothing of this life is called durable any more.
    pub(crate) lost: bool,
}

impl Life {
    pub(crate) fn new(generation: Generation, state: State) -> Self {
        Self { generation, state, dirty: false, lost: false }
    }

    /// That life and no other, and not lost.
    fn usable(&mut self, generation: Generation) -> Result<&mut State, TransferError> {
        if self.generation != generation {
            return Err(Mismatch::Identity.into());
        }
        if self.lost {
            return Err(TransferError::Io(libc::EIO));
        }
        Ok(&mut self.state)
    }
}

/// The segments of one open log, the memory they are copied to and from, and where they are stored.
///
/// [`Segments::execute`] is the synchronous meaning of every job; simulators use it alone.
pub struct Segments {
    pub(crate) store: Arc<dyn SegmentStore>,
    pub(crate) arena: Arc<Arena>,
    pub(crate) log: LogId,
    pub(crate) geometry: Geometry,
    table: Box<[Mutex<Life>]>,
    /// One sync at a time: a second one must wait for the segments that the first has taken on.
    syncing: Mutex<()>,
}

impl Segments {
    pub(crate) fn new(
        store: Arc<dyn SegmentStore>,
        arena: Arc<Arena>,
        log: LogId,
        geometry: Geometry,
        lives: impl Iterator<Item = Life>,
    ) -> Self {
        let table = lives.map(Mutex::new).collect();
        Self { store, arena, log, geometry, table, syncing: Mutex::new(()) }
    }

    /// Number of segments.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.table.len() as u32
    }

    /// Whether there are none; never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Makes every write that completed before the call durable.
    ///
    /// # Errors
    /// Something that completed may not be durable. Stays so for a segment until it is opened anew.
    pub fn sync(&self) -> Result<(), TransferError> {
        let _one = self.syncing.lock();
        let mut result = Ok(());
        for (index, life) in self.table.iter().enumerate() {
            {
                let mut life = life.lock();
                if life.lost {
                    result = Err(TransferError::Io(libc::EIO));
                    continue;
                }
                if !std::mem::take(&mut life.dirty) {
                    continue;
                }
            }
            if let Err(e) = self.store.sync(SegmentId(index as u32)) {
                life.lock().lost = true;
                result = Err(transfer_error(&e));
            }
        }
        result
    }

    /// Segments with writes that no sync has covered.
    pub(crate) fn dirty(&self) -> Vec<SegmentId> {
        (0..)
            .map(SegmentId)
            .zip(&self.table)
            .filter(|(_, life)| life.lock().dirty)
            .map(|(id, _)| id)
            .collect()
    }

    fn life(&self, segment: SegmentId) -> Result<&Mutex<Life>, TransferError> {
        self.table.get(segment.0 as usize).ok_or(TransferError::Refused(Mismatch::Identity))
    }

    /// From here on nothing of an earlier life is read.
    pub(crate) fn begin_open(&self, segment: SegmentId, generation: Generation) -> Result<(), TransferError> {
        let mut life = self.life(segment)?.lock();
        if generation <= life.generation {
            return Err(Mismatch::Identity.into());
        }
        *life = Life::new(generation, State::Opening);
        Ok(())
    }

    pub(crate) fn opened(&self, segment: SegmentId, generation: Generation) -> Result<(), TransferError> {
        let empty = vec![Slot::Empty; self.geometry.records_per_segment as usize];
        *self.life(segment)?.lock().usable(generation)? = State::Open(empty.into_boxed_slice());
        Ok(())
    }

    /// A place is written at most once in a life; one whose write failed may be tried again.
    pub(crate) fn begin_write(&self, place: Place) -> Result<(), TransferError> {
        let mut life = self.life(place.segment)?.lock();
        let State::Open(slots) = life.usable(place.generation)? else {
            return Err(Mismatch::Identity.into());
        };
        match slots.get_mut(place.index as usize) {
            Some(slot @ Slot::Empty) => {
                *slot = Slot::Writing;
                Ok(())
            }
            _ => Err(Mismatch::Identity.into()),
        }
    }

    /// `None` if the write failed.
    pub(crate) fn end_write(&self, place: Place, written: Option<FooterEntry>) {
        let Ok(life) = self.life(place.segment) else { return };
        let mut life = life.lock();
        life.dirty = true;
        if life.generation == place.generation
            && let State::Open(slots) = &mut life.state
            && let Some(slot) = slots.get_mut(place.index as usize)
        {
            *slot = written.map_or(Slot::Empty, Slot::Written);
        }
    }

    /// Takes no more records, and says which ones there are. `None` if it is sealed already.
    pub(crate) fn begin_seal(
        &self,
        segment: SegmentId,
        generation: Generation,
    ) -> Result<Option<Vec<FooterEntry>>, TransferError> {
        let mut life = self.life(segment)?.lock();
        let state = life.usable(generation)?;
        let entries = match state {
            State::Sealed => return Ok(None),
            State::Sealing(entries) => entries.clone(),
            State::Free | State::Opening => return Err(Mismatch::Identity.into()),
            State::Open(slots) => {
                let mut entries = Vec::with_capacity(slots.len());
                for slot in slots {
                    match slot {
                        Slot::Empty => {}
                        Slot::Writing => return Err(TransferError::Io(libc::EBUSY)),
                        Slot::Written(entry) => entries.push(*entry),
                    }
                }
                entries
            }
        };
        *state = State::Sealing(entries.clone());
        Ok(Some(entries))
    }

    pub(crate) fn sealed(&self, segment: SegmentId, generation: Generation) -> Result<(), TransferError> {
        let mut life = self.life(segment)?.lock();
        *life.usable(generation)? = State::Sealed;
        life.dirty = false;
        Ok(())
    }

    /// A sync of the segment failed.
    pub(crate) fn lose(&self, segment: SegmentId) {
        if let Ok(life) = self.life(segment) {
            life.lock().lost = true;
        }
    }

    /// Whether a record of that life may be read.
    pub(crate) fn readable(&self, place: Place) -> Result<(), TransferError> {
        let life = self.life(place.segment)?.lock();
        let current =
            life.generation == place.generation && !matches!(life.state, State::Opening | State::Free);
        if current && self.geometry.holds(place) { Ok(()) } else { Err(Mismatch::Identity.into()) }
    }
}
