//! `kvtier bench reopen`: how long a log of many small records takes to open again.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use kv_tiers::arena::{Arena, ArenaConfig};
use kv_tiers::nvme::{LogConfig, NvmeConfig, NvmeLog, OpenMode};
use serde::Serialize;

use super::NvmeBenchError;
use super::busy::BusyLog;
use crate::ByteSize;
use crate::completions::Completions;
use crate::report::{Machine, Sample};

/// Bytes of a payload: the smallest that fills its pages, since reopening reads indices and no payloads.
const SMALL_PAYLOAD: usize = 4096;

/// Seconds for a million records: kvtier's own target.
const TARGET_SECONDS: f64 = 2.0;
const TARGET_RECORDS: u32 = 1_000_000;

const QUEUE_DEPTH: u32 = 64;

/// Full segments of the usual size and one that stays open with the rest, as after a crash.
#[derive(Clone, Copy, Debug)]
pub struct Reopen {
    /// Records of the log.
    pub records: u32,
    /// Times that it is opened.
    pub openings: u32,
}

impl Reopen {
    fn log(&self) -> LogConfig {
        // Above any size at which segments shrink, and below any at which they grow.
        let usual = LogConfig::sized(LogConfig::SEGMENT_BYTES * 64, SMALL_PAYLOAD);
        // A small log has sealed segments too.
        let records_per_segment = usual.records_per_segment.min(self.records.div_ceil(4)).max(1);
        let segments = self.records.div_ceil(records_per_segment).max(1);
        LogConfig { segments, records_per_segment, mode: OpenMode::Recover }
    }

    /// Disk space of the log, at most.
    #[must_use]
    pub fn disk_bytes(&self) -> ByteSize {
        let log = self.log();
        // A record and its entry in the footer, and the pages around the records.
        let segment = u64::from(log.records_per_segment) * (2 * SMALL_PAYLOAD as u64 + 256) + (64 << 10);
        ByteSize(u64::from(log.segments) * segment)
    }

    /// Makes the log in `dir`, which must be empty, and opens it again and again.
    ///
    /// # Errors
    /// [`NvmeBenchError`].
    pub fn measure(
        &self,
        dir: &Path,
        progress: &mut dyn FnMut(&dyn fmt::Display),
    ) -> Result<Reopened, NvmeBenchError> {
        let log = self.log();
        progress(&format_args!("writing {} records ({})", self.records, self.disk_bytes()));
        let mut busy = BusyLog::open(dir, log, SMALL_PAYLOAD, QUEUE_DEPTH)?;
        busy.fill(u64::from(self.records))?;
        busy.close();

        let arena = Arena::new(ArenaConfig::new(QUEUE_DEPTH, SMALL_PAYLOAD))?;
        let config = NvmeConfig { queue_depth: Some(QUEUE_DEPTH), ..NvmeConfig::new(dir, log) };
        let (mut seconds, mut bytes_read) = (Vec::new(), 0);
        for opening in 1..=self.openings {
            progress(&format_args!("opening {opening} of {}", self.openings));
            let (sink, _completions) = Completions::channel();
            let started = Instant::now();
            let (log, recovery) = NvmeLog::open(&config, arena.clone(), sink)?;
            seconds.push(started.elapsed().as_secs_f64());
            bytes_read = recovery.scanned_bytes;
            log.close();
            let (found, written) = (recovery.records.len() as u64, u64::from(self.records));
            if found != written || !recovery.damaged.is_empty() {
                return Err(NvmeBenchError::Lost { found, written });
            }
        }
        let seconds = Sample::of(seconds).unwrap_or(Sample { median: 0.0, min: 0.0, max: 0.0 });
        Ok(Reopened {
            schema: "kvtier.bench.reopen/1",
            machine: Machine::here(),
            records: self.records,
            segments: log.segments,
            openings: self.openings,
            bytes_read,
            seconds,
            records_per_second: seconds.inverse(f64::from(self.records)),
            target_seconds: (self.records == TARGET_RECORDS).then_some(TARGET_SECONDS),
        })
    }
}

/// A whole run: what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Reopened {
    schema: &'static str,
    machine: Machine,
    records: u32,
    segments: u32,
    openings: u32,
    /// By one opening.
    bytes_read: u64,
    seconds: Sample,
    records_per_second: Sample,
    /// For a million records only.
    target_seconds: Option<f64>,
}

impl fmt::Display for Reopened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, records, segments, openings, bytes_read, seconds, .. } = self;
        let mib = bytes_read >> 20;
        writeln!(f, "{machine}\n")?;
        writeln!(
            f,
            "{records} records in {segments} segments, the last one left open; {mib} MiB read by an opening; \
             median (min..max) of {openings} openings:\n"
        )?;
        let million = |n: f64| n / 1e6;
        let Sample { median, min, max } = self.records_per_second;
        let rate = Sample { median: million(median), min: million(min), max: million(max) };
        write!(f, "{seconds:.3} s, {rate:.2} million records/s")?;
        match self.target_seconds {
            Some(target) => writeln!(f, "; target <= {target} s"),
            None => writeln!(f, "; the target of {TARGET_SECONDS} s is for {TARGET_RECORDS} records"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_records_fill_segments_of_the_usual_size() {
        let log = Reopen { records: 1_000_000, openings: 1 }.log();
        assert!(log.records_per_segment > 30_000, "{log:?}");
        let capacity = log.segments * log.records_per_segment;
        assert!((1_000_000..1_000_000 + log.records_per_segment).contains(&capacity));
    }

    #[test]
    fn every_record_is_found_and_the_space_was_reckoned() {
        for records in [1, 2, 5, 403] {
            let dir = tempfile::tempdir().unwrap();
            let reopen = Reopen { records, openings: 2 };
            let done = reopen.measure(dir.path(), &mut |_| ()).unwrap();
            assert!(done.seconds.min > 0.0);
            let files = std::fs::read_dir(dir.path()).unwrap();
            let used: u64 = files.map(|f| f.unwrap().metadata().unwrap().len()).sum();
            assert!(used <= reopen.disk_bytes().0, "{records}: {used} of {}", reopen.disk_bytes());
        }
    }
}
