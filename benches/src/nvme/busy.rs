//! An NVMe log that is kept busy, from submission to verified completion.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use kv_core::RecordIdentity;
use kv_core::ids::{JobId, SegmentId, SlotId};
use kv_core::job::{Job, Op, Place, RecordMeta, TransferError, Urgency};
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::{Epoch, Generation};
use kv_tiers::arena::{Arena, ArenaConfig};
use kv_tiers::nvme::{LogConfig, NvmeConfig, NvmeLog};

use super::NvmeBenchError;
use crate::SplitMix64;
use crate::completions::Completions;

/// A log, and enough host slots to keep its queue full.
///
/// Record jobs carry their slot as job id, the openings and sealings of segments carry [`BusyLog::SEGMENT_JOB`].
pub(super) struct BusyLog {
    log: NvmeLog,
    completions: Completions,
    slots: u32,
    /// Bytes of a record on disk.
    stride: usize,
    records_per_segment: u32,
    /// Latest generation of each segment.
    generations: Vec<u64>,
    /// Records written so far. Record `n` lies in segment `n / records_per_segment`, counted round and round.
    written: u64,
    /// Segments opened so far, counted in the same way.
    opened: u64,
    rng: SplitMix64,
}

impl BusyLog {
    const SEGMENT_JOB: JobId = JobId(u64::MAX);

    /// Opens a log and makes payloads for it that do not compress.
    pub(super) fn open(
        dir: &Path,
        log: LogConfig,
        payload: usize,
        queue_depth: u32,
    ) -> Result<Self, NvmeBenchError> {
        // Twice the depth: while one job is in flight the next of its slot waits in the log's queue.
        let slots = queue_depth.saturating_mul(2);
        let arena = Arena::new(ArenaConfig::new(slots, payload))?;
        let mut rng = SplitMix64::new(payload as u64);
        for slot in (0..slots).map(SlotId) {
            // SAFETY: the slot exists, and no log or device knows of this arena yet.
            let bytes = unsafe { arena.payload_mut(slot) };
            for chunk in bytes.chunks_mut(8) {
                chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]);
            }
        }
        let stride = arena.slot_bytes();
        let (sink, completions) = Completions::channel();
        let config = NvmeConfig { queue_depth: Some(queue_depth), ..NvmeConfig::new(dir, log) };
        let (log, recovery) = NvmeLog::open(&config, arena, sink)?;
        Ok(Self {
            log,
            completions,
            slots,
            stride,
            records_per_segment: config.log.records_per_segment,
            generations: recovery.segments.iter().map(|s| s.generation.0).collect(),
            written: 0,
            opened: 0,
            rng,
        })
    }

    /// Records that fit.
    pub(super) fn capacity(&self) -> u64 {
        self.generations.len() as u64 * u64::from(self.records_per_segment)
    }

    /// Who does the I/O, and why.
    pub(super) fn how(&self) -> &str {
        self.log.why()
    }

    /// Writes the next `records` records, as fast as it goes.
    pub(super) fn fill(&mut self, records: u64) -> Result<(), TransferError> {
        let end = self.written + records;
        self.run(|log, slot| (log.written < end).then(|| log.write(slot, end))).map(drop)
    }

    /// Overwrites the oldest segments, opening and sealing them, for a time; bytes on disk per second.
    pub(super) fn write_for(&mut self, time: Duration) -> Result<f64, TransferError> {
        let started = Instant::now();
        self.run(|log, slot| (started.elapsed() < time).then(|| log.write(slot, u64::MAX)))
    }

    /// Reads records at random for a time and verifies them; bytes on disk per second. The log must have been
    /// filled, once and in full.
    pub(super) fn read_for(&mut self, time: Duration) -> Result<f64, TransferError> {
        let started = Instant::now();
        self.run(|log, slot| (started.elapsed() < time).then(|| log.read(slot)))
    }

    /// Completes what was submitted and closes the log.
    pub(super) fn close(self) {
        self.log.close();
    }

    /// Gives every free slot to `next` until that returns `None`, and waits for the rest.
    fn run(
        &mut self,
        mut next: impl FnMut(&mut Self, SlotId) -> Option<Vec<Job>>,
    ) -> Result<f64, TransferError> {
        let mut free: VecDeque<SlotId> = (0..self.slots).map(SlotId).collect();
        let (mut outstanding, mut records, mut more) = (0, 0u64, true);
        let started = Instant::now();
        loop {
            while more && let Some(slot) = free.pop_front() {
                match next(self, slot) {
                    Some(jobs) => {
                        outstanding += jobs.len();
                        self.log.submit(&jobs);
                    }
                    None => more = false,
                }
            }
            if outstanding == 0 {
                return Ok((records * self.stride as u64) as f64 / started.elapsed().as_secs_f64());
            }
            let job = self.completions.wait()?;
            outstanding -= 1;
            if job != Self::SEGMENT_JOB {
                records += 1;
                free.push_back(SlotId(job.0 as u32));
            }
        }
    }

    fn read(&mut self, slot: SlotId) -> Vec<Job> {
        let number = self.rng.below(self.capacity());
        let place = self.place(number);
        let op = Op::Read { place, host: slot, expect: meta(place).identity };
        vec![Job { id: JobId(u64::from(slot.0)), op, urgency: Urgency::Demand }]
    }

    /// The next write, of `until` in all, with the openings and sealings around it. A segment is opened while the
    /// one before it is filled: an opening is two small writes and syncs, which wait behind everything that the
    /// device has to do.
    fn write(&mut self, slot: SlotId, until: u64) -> Vec<Job> {
        let write_back = |id, op| Job { id, op, urgency: Urgency::WriteBack };
        let per_segment = u64::from(self.records_per_segment);
        let ahead = (self.written / per_segment + 1).min(until.saturating_sub(1) / per_segment);
        let mut jobs = Vec::new();
        while self.opened <= ahead {
            let segment = self.segment(self.opened);
            let generation = &mut self.generations[segment.0 as usize];
            *generation += 1;
            let generation = Generation(*generation);
            jobs.push(write_back(Self::SEGMENT_JOB, Op::OpenSegment { segment, generation }));
            self.opened += 1;
        }
        let place = self.place(self.written);
        let op = Op::Write { host: slot, place, record: meta(place) };
        jobs.push(write_back(JobId(u64::from(slot.0)), op));
        if place.index + 1 == self.records_per_segment {
            let (segment, generation) = (place.segment, place.generation);
            jobs.push(write_back(Self::SEGMENT_JOB, Op::SealSegment { segment, generation }));
        }
        self.written += 1;
        jobs
    }

    /// Where record `number` lies, in the present generation of its segment.
    fn place(&self, number: u64) -> Place {
        let per_segment = u64::from(self.records_per_segment);
        let segment = self.segment(number / per_segment);
        let generation = Generation(self.generations[segment.0 as usize]);
        Place { segment, generation, index: (number % per_segment) as u32 }
    }

    fn segment(&self, turn: u64) -> SegmentId {
        SegmentId((turn % self.generations.len() as u64) as u32)
    }
}

/// A header for every place, different at each.
fn meta(place: Place) -> RecordMeta {
    let mut key = [1; 16];
    key[..4].copy_from_slice(&place.index.to_le_bytes());
    key[4..8].copy_from_slice(&place.segment.0.to_le_bytes());
    RecordMeta {
        identity: RecordIdentity {
            namespace: NamespaceId([1; 16]),
            epoch: Epoch(0),
            fingerprint: Fingerprint([2; 16]),
            key: BlockKey::from_bytes(key),
            generation: place.generation,
        },
        parent: BlockKey::ROOT,
        depth: place.index,
    }
}

#[cfg(test)]
mod tests {
    use kv_tiers::nvme::OpenMode;

    use super::*;

    #[test]
    fn what_was_written_round_and_round_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { segments: 3, records_per_segment: 4, mode: OpenMode::Recover };
        let mut log = BusyLog::open(dir.path(), config, 4096, 2).unwrap();
        assert_eq!(log.capacity(), 12);
        log.fill(12).unwrap();
        assert!(log.read_for(Duration::from_millis(5)).unwrap() > 0.0);
        // Segment 0 anew and one record of segment 1, whose old ones are gone with its opening.
        log.fill(5).unwrap();
        log.close();
        let (sink, _completions) = Completions::channel();
        let arena = Arena::new(ArenaConfig::new(1, 4096)).unwrap();
        let (_log, found) = NvmeLog::open(&NvmeConfig::new(dir.path(), config), arena, sink).unwrap();
        let of = |segment| found.records.iter().filter(|r| r.place.segment == SegmentId(segment)).count();
        assert_eq!([of(0), of(1), of(2)], [4, 1, 4]);
        assert!(found.records.iter().all(|r| r.meta == meta(r.place)));
        let generations: Vec<_> = found.segments.iter().map(|s| s.generation.0).collect();
        assert_eq!(generations, [2, 2, 1]);
    }
}
