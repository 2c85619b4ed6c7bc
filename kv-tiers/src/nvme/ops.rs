//! What each job means, step by step, whoever does the I/O.
//!
//! | job          | steps                                                     |
//! |--------------|-----------------------------------------------------------|
//! | Write        | header into the slot; write header and payload            |
//! | Read         | read header and payload; verify all of it                 |
//! | OpenSegment  | sync what was written to other segments;                  |
//! |              | write header copy 0, sync, write copy 1, sync             |
//! | SealSegment  | sync, write the footer, sync                              |
//!
//! A [`Task`] says which I/O comes next and is told how it went. [`Segments::execute`] drives one with blocking
//! calls, the io_uring backend drives many at once; neither knows what a job means.

use std::io;

use kv_core::ids::{JobId, SegmentId};
use kv_core::job::{Job, Op, Place, TransferError};
use kv_core::units::Generation;
use kv_core::{Mismatch, RecordIdentity, Verified};

use super::error::transfer_error;
use super::format::{Footer, FooterEntry, RecordHeader, SegmentHeader};
use super::page::PageBuf;
use super::segments::Segments;
use crate::arena::{Claim, PAGE, Span};

/// The next I/O of a task, on its whole buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Io {
    Read { segment: SegmentId, offset: u64 },
    Write { segment: SegmentId, offset: u64 },
    Sync { segment: SegmentId },
}

/// A job under way. Owns its buffer, so it must live until its I/O has completed.
pub(crate) struct Task {
    id: JobId,
    work: Work,
}

enum Work {
    Write {
        place: Place,
        entry: FooterEntry,
        slot: Claim,
    },
    Read {
        place: Place,
        expect: RecordIdentity,
        slot: Claim,
    },
    /// `first` are segments to sync: records that were worth keeping were copied there, and must be durable before
    /// their old copies go.
    Open {
        segment: SegmentId,
        generation: Generation,
        first: Vec<SegmentId>,
        header: PageBuf,
        step: u8,
    },
    Seal {
        segment: SegmentId,
        generation: Generation,
        footer: PageBuf,
        step: u8,
    },
}

impl Segments {
    /// Does one job with blocking calls.
    ///
    /// # Errors
    /// The job may not be done now ([`Mismatch::Identity`]: its segment has another generation, is not open or
    /// is sealed, or the place is taken; `EBUSY`: another job has the slot), its I/O failed or was short, or
    /// what was read is not what was expected.
    pub fn execute(&self, job: &Job) -> Result<Verified, TransferError> {
        let mut task = Task::start(self, job)?;
        loop {
            let outcome = match task.io(self) {
                Io::Read { segment, offset } => self.store.read_at(segment, offset, task.buffer_mut()),
                Io::Write { segment, offset } => self.store.write_at(segment, offset, task.buffer()),
                Io::Sync { segment } => self.store.sync(segment).map(|()| 0),
            };
            if let Some(verified) = task.step(self, outcome)? {
                return Ok(verified);
            }
        }
    }
}

impl Task {
    /// Checks that the job is allowed now and prepares its buffer.
    pub(crate) fn start(segments: &Segments, job: &Job) -> Result<Self, TransferError> {
        let Segments { log, geometry, .. } = *segments;
        let claim = |slot| segments.arena.claim(slot).ok_or(TransferError::Io(libc::EBUSY));
        let work = match job.op {
            Op::Write { host, place, record } => {
                if record.identity.generation != place.generation {
                    return Err(Mismatch::Identity.into());
                }
                let mut slot = claim(host)?;
                segments.begin_write(place)?;
                let payload_checksum = slot.checksum();
                let payload_bytes = geometry.payload_bytes as u64;
                RecordHeader { log, place, meta: record, payload_bytes, payload_checksum }
                    .encode(slot.header_mut());
                Work::Write { place, entry: FooterEntry::new(place.index, &record, payload_checksum), slot }
            }
            Op::Read { place, host, expect } => {
                segments.readable(place)?;
                let slot = claim(host)?;
                slot.begin_read();
                Work::Read { place, expect, slot }
            }
            Op::OpenSegment { segment, generation } => {
                segments.begin_open(segment, generation)?;
                let header = SegmentHeader { log, segment, generation, geometry }.encode();
                Work::Open { segment, generation, first: segments.dirty(), header, step: 0 }
            }
            Op::SealSegment { segment, generation } => match segments.begin_seal(segment, generation)? {
                Some(entries) => {
                    let footer = Footer { log, segment, generation, entries }.encode(geometry);
                    Work::Seal { segment, generation, footer, step: 0 }
                }
                // Sealed already: its last sync again.
                None => Work::Seal { segment, generation, footer: PageBuf::empty(), step: 2 },
            },
            Op::Offload { .. } | Op::Onboard { .. } => return Err(TransferError::Io(libc::EINVAL)),
        };
        Ok(Self { id: job.id, work })
    }

    /// What to do now.
    pub(crate) fn io(&self, segments: &Segments) -> Io {
        let geometry = segments.geometry;
        match self.work {
            Work::Write { place, .. } => {
                Io::Write { segment: place.segment, offset: geometry.record(place.index) }
            }
            Work::Read { place, .. } => {
                Io::Read { segment: place.segment, offset: geometry.record(place.index) }
            }
            Work::Open { ref first, .. } if let Some(segment) = first.last() => {
                Io::Sync { segment: *segment }
            }
            Work::Open { segment, step: 0, .. } => Io::Write { segment, offset: 0 },
            Work::Open { segment, step: 2, .. } => Io::Write { segment, offset: PAGE as u64 },
            Work::Seal { segment, step: 1, .. } => Io::Write { segment, offset: geometry.footer() },
            Work::Open { segment, .. } | Work::Seal { segment, .. } => Io::Sync { segment },
        }
    }

    /// What an [`Io::Write`] writes.
    pub(crate) fn buffer(&self) -> &[u8] {
        match &self.work {
            Work::Write { slot, .. } | Work::Read { slot, .. } => slot.image(),
            Work::Open { header: pages, .. } | Work::Seal { footer: pages, .. } => pages.bytes(),
        }
    }

    /// What an [`Io::Read`] fills.
    pub(crate) fn buffer_mut(&mut self) -> &mut [u8] {
        match &mut self.work {
            Work::Write { slot, .. } | Work::Read { slot, .. } => slot.image_mut(),
            Work::Open { header: pages, .. } | Work::Seal { footer: pages, .. } => pages.bytes_mut(),
        }
    }

    /// The buffer for the kernel, and the chunk of the arena that it lies in, if it does. Good for as long as
    /// the task lives, wherever it is moved.
    pub(crate) fn raw_buffer(&mut self) -> (Span, Option<usize>) {
        match &mut self.work {
            Work::Write { slot, .. } | Work::Read { slot, .. } => {
                let (span, chunk) = slot.raw();
                (span, Some(chunk))
            }
            Work::Open { header: pages, .. } | Work::Seal { footer: pages, .. } => {
                let bytes = pages.bytes_mut();
                (Span { start: bytes.as_mut_ptr(), len: bytes.len() }, None)
            }
        }
    }

    /// The I/O is over: bytes transferred (0 for a sync) or its error. `None` means that there is another one.
    ///
    /// # Errors
    /// The job failed; the task is of no more use.
    pub(crate) fn step(
        &mut self,
        segments: &Segments,
        outcome: io::Result<usize>,
    ) -> Result<Option<Verified>, TransferError> {
        let io = self.io(segments);
        let asked = if let Io::Sync { .. } = io { 0 } else { self.buffer().len() };
        let outcome = match outcome {
            Ok(done) if done == asked => Ok(()),
            Ok(done) => Err(TransferError::Short { asked, done }),
            Err(e) => Err(transfer_error(&e)),
        };
        if let (Io::Sync { segment }, Err(_)) = (io, outcome) {
            segments.lose(segment);
        }
        match &mut self.work {
            Work::Write { place, entry, .. } => {
                segments.end_write(*place, outcome.is_ok().then_some(*entry));
                outcome?;
            }
            Work::Read { place, expect, slot } => {
                outcome?;
                let verified = verify(self.id, segments, *place, expect, slot)?;
                // The segment may have been opened anew meanwhile.
                segments.readable(*place)?;
                return Ok(Some(verified));
            }
            Work::Open { segment, generation, first, step, .. } => {
                outcome?;
                if first.pop().is_some() {
                    return Ok(None);
                }
                *step += 1;
                if *step < 4 {
                    return Ok(None);
                }
                segments.opened(*segment, *generation)?;
            }
            Work::Seal { segment, generation, step, .. } => {
                outcome?;
                *step += 1;
                if *step < 3 {
                    return Ok(None);
                }
                segments.sealed(*segment, *generation)?;
            }
        }
        Ok(Some(Verified::by_status(self.id, asked, asked)?))
    }
}

/// Every byte of a record that a reader may see, checked against its header, and the header against what was
/// asked for.
fn verify(
    id: JobId,
    segments: &Segments,
    place: Place,
    expect: &RecordIdentity,
    slot: &Claim,
) -> Result<Verified, Mismatch> {
    let header = RecordHeader::decode(slot.image()).ok_or(Mismatch::Checksum)?;
    if header.log != segments.log || header.place != place {
        return Err(Mismatch::Identity);
    }
    let len = segments.geometry.payload_bytes;
    if header.payload_bytes != len as u64 {
        return Err(Mismatch::Length);
    }
    let found = header.meta.identity;
    Verified::by_record(id, expect, &found, len, slot.payload(), header.payload_checksum)
}
