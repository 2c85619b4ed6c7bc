//! `kvtier bench nvme` and `kvtier bench reopen`: the NVMe log as a share of its limit.
//!
//! ```text
//! busy     a log with a full queue          limit    fio, on the same files in the same run
//! reopen   a log of many small records      threads  the limit where there is no fio
//! scratch  a directory that goes away       summary  the figures
//! ```
//!
//! The log does all its work in the measured time: headers, checksums of every payload, opening and sealing of
//! segments with their syncs. Log and limit take turns, because a disk's rate drifts by more than they differ.

mod busy;
mod limit;
mod reopen;
mod scratch;
mod summary;
mod threads;

use std::io;
use std::path::Path;
use std::time::Duration;

use kv_core::job::TransferError;
use kv_tiers::arena::{ArenaError, PAGE};
use kv_tiers::nvme::{LogConfig, NvmeError, OpenMode};
use serde::Serialize;

pub use limit::FioError;
pub use reopen::{Reopen, Reopened};
pub use scratch::{Scratch, ScratchError};
pub use summary::{Figure, Summary};

use busy::BusyLog;
use limit::{Limit, Task};

use crate::ByteSize;
use crate::report::Sample;

/// Which way records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Random records, verified.
    Read,
    /// Overwriting the oldest segments.
    Write,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of a record on disk, and of one I/O of the limit: payload and a header page of 4096 bytes.
    pub extents: Vec<ByteSize>,
    /// Records in flight, and I/Os of the limit.
    pub queue_depth: u32,
    /// Pairs of measurements (log, limit) for each extent and direction.
    pub pairs: u32,
    /// Length of one measurement.
    pub time: Duration,
    /// Disk space of the log.
    pub log_bytes: ByteSize,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum NvmeBenchError {
    /// Not a record size.
    #[error("{0} is no extent: a record has whole pages of 4 KiB, one of them the header, and at most 1 GiB")]
    Extent(ByteSize),
    /// Too few segments to go round.
    #[error("a log of {log} holds too few records of {extent}: it needs {needed} at least")]
    LogTooSmall {
        /// Disk space of the log.
        log: ByteSize,
        /// Bytes of a record.
        extent: ByteSize,
        /// Space that would do.
        needed: ByteSize,
    },
    /// Host memory.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The log did not open.
    #[error(transparent)]
    Log(#[from] NvmeError),
    /// The log did not move a record. Nothing else writes its files at that time: the disk is at fault, or kvtier.
    #[error("a job of the log failed")]
    Job(#[from] TransferError),
    /// The limit.
    #[error(transparent)]
    Fio(#[from] FioError),
    /// The limit without fio.
    #[error("reading or writing segment files beside the log")]
    Threads(#[source] io::Error),
    /// The directory of the benchmark.
    #[error("using the benchmark's directory")]
    Directory(#[source] io::Error),
    /// Fewer records were found than written. That is a bug in kvtier.
    #[error("the log was reopened with {found} of {written} records")]
    Lost {
        /// Records found.
        found: u64,
        /// Records written.
        written: u64,
    },
}

/// Segments of a measured log, at least: one is written, one opened ahead, and the rest is left alone.
const FEWEST_SEGMENTS: u64 = LogConfig::FEWEST_SEGMENTS;

impl Plan {
    /// The log for one extent: its sizes and its payload.
    fn log(&self, extent: ByteSize) -> Result<(LogConfig, usize), NvmeBenchError> {
        let page = PAGE as u64;
        let fits = extent.0.is_multiple_of(page) && (2 * page..=1 << 30).contains(&extent.0);
        if !fits {
            return Err(NvmeBenchError::Extent(extent));
        }
        let payload = (extent.0 - page) as usize;
        let log = LogConfig { mode: OpenMode::Fresh, ..LogConfig::sized(self.log_bytes.0, payload) };
        // Headers and a footer of a segment take less than four pages for one record.
        let needed = FEWEST_SEGMENTS * (extent.0 + 4 * page);
        if self.log_bytes.0 < needed {
            return Err(NvmeBenchError::LogTooSmall {
                log: self.log_bytes,
                extent,
                needed: ByteSize(needed),
            });
        }
        Ok((log, payload))
    }

    /// Whether the sizes make logs.
    ///
    /// # Errors
    /// [`NvmeBenchError::Extent`] or [`NvmeBenchError::LogTooSmall`].
    pub fn check(&self) -> Result<(), NvmeBenchError> {
        self.extents.iter().try_for_each(|&extent| self.log(extent).map(drop))
    }

    /// Disk space that a measurement takes, with some for the filesystem's own use.
    #[must_use]
    pub fn disk_bytes(&self) -> ByteSize {
        ByteSize(self.log_bytes.0.saturating_add(self.log_bytes.0 / 64).saturating_add(1 << 20))
    }

    /// Measures in `dir`, which must be empty and have room. `progress` is told what goes on.
    ///
    /// # Errors
    /// [`NvmeBenchError`]; sizes are checked before anything is measured.
    pub fn measure(
        &self,
        dir: &Path,
        progress: &mut dyn FnMut(&dyn std::fmt::Display),
    ) -> Result<Summary, NvmeBenchError> {
        self.check()?;
        let limit = Limit::choose(dir).map_err(NvmeBenchError::Directory)?;
        progress(&format_args!("limit: {limit}"));
        let (mut figures, mut how) = (Vec::new(), String::new());
        for &extent in &self.extents {
            let (config, payload) = self.log(extent)?;
            // A log for each extent, because a record's size is fixed for the life of a log.
            let dir = tempfile::tempdir_in(dir).map_err(NvmeBenchError::Directory)?;
            let mut log = BusyLog::open(dir.path(), config, payload, self.queue_depth)?;
            how = log.how().to_owned();
            progress(&format_args!("{extent}: filling the log"));
            // Space that was never written is slower to write, and reads as zeros without asking the disk.
            log.fill(log.capacity())?;
            // Reads first: the limit's writes go over the records.
            for direction in [Direction::Read, Direction::Write] {
                progress(&format_args!("{extent}: {direction}"));
                figures.extend(self.pairs(&mut log, &limit, dir.path(), extent, direction)?);
            }
            log.close();
            dir.close().map_err(NvmeBenchError::Directory)?;
        }
        Ok(Summary::new(self, limit.to_string(), how, figures))
    }

    /// `None` without pairs.
    fn pairs(
        &self,
        log: &mut BusyLog,
        limit: &Limit,
        dir: &Path,
        extent: ByteSize,
        direction: Direction,
    ) -> Result<Option<Figure>, NvmeBenchError> {
        let files = limit::segment_files(dir).map_err(NvmeBenchError::Directory)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for pair in 0..self.pairs {
            let task = Task {
                dir,
                files: &files,
                direction,
                extent: extent.0 as usize,
                depth: self.queue_depth,
                time: self.time,
                seed: u64::from(pair),
            };
            // Whoever comes second finds the disk warm: both do, by turns.
            for turn in 0..2 {
                if (pair + turn).is_multiple_of(2) {
                    ours.push(match direction {
                        Direction::Read => log.read_for(self.time)?,
                        Direction::Write => log.write_for(self.time)?,
                    });
                } else {
                    theirs.push(limit.measure(&task)?);
                }
            }
        }
        let shares = ours.iter().zip(&theirs).map(|(log, limit)| log / limit).collect();
        let giga = |rates: Vec<f64>| Sample::of(rates.into_iter().map(|rate| rate / 1e9).collect());
        let sample = || Some((giga(ours)?, giga(theirs)?, Sample::of(shares)?));
        Ok(sample().map(|(kvtier_gb_per_second, limit_gb_per_second, share_of_limit)| Figure {
            extent,
            direction,
            kvtier_gb_per_second,
            limit_gb_per_second,
            share_of_limit,
        }))
    }
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "reads",
            Self::Write => "writes",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(extent: u64, log: u64) -> Plan {
        Plan {
            extents: vec![ByteSize(extent)],
            queue_depth: 2,
            pairs: 2,
            time: Duration::from_millis(5),
            log_bytes: ByteSize(log),
        }
    }

    #[test]
    fn a_record_has_exactly_the_extent_asked_for() {
        let (log, payload) = plan(0, 2 << 30).log(ByteSize(2 << 20)).unwrap();
        assert_eq!(payload, (2 << 20) - 4096);
        assert_eq!((log.segments, log.records_per_segment, log.mode), (8, 127, OpenMode::Fresh));
    }

    #[test]
    fn sizes_that_make_no_log_are_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        for (extent, log) in [(0, 1 << 20), (4096, 1 << 20), (10_000, 1 << 20), (2 << 30, 1 << 40)] {
            let error = plan(extent, log).measure(dir.path(), &mut |_| ()).unwrap_err();
            assert!(matches!(error, NvmeBenchError::Extent(_)), "{extent}: {error}");
        }
        let error = plan(1 << 20, 8 << 20).measure(dir.path(), &mut |_| ()).unwrap_err();
        let NvmeBenchError::LogTooSmall { needed, .. } = error else { panic!("{error}") };
        assert!(plan(1 << 20, needed.0).log(ByteSize(1 << 20)).unwrap().0.segments as u64 >= FEWEST_SEGMENTS);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn reads_are_verified_while_and_writes_go_on_after_the_limit_used_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(16 << 10, 1 << 20);
        let (config, payload) = plan.log(plan.extents[0]).unwrap();
        let mut log = BusyLog::open(dir.path(), config, payload, plan.queue_depth).unwrap();
        log.fill(log.capacity()).unwrap();
        let limit = Limit::Threads { why: "this is a test".into() };
        let mut pairs = |direction| plan.pairs(&mut log, &limit, dir.path(), plan.extents[0], direction);
        let read = pairs(Direction::Read).unwrap().unwrap();
        let write = pairs(Direction::Write).unwrap().unwrap();
        assert!(read.share_of_limit.min > 0.0 && write.share_of_limit.min > 0.0);
        // The limit wrote over records that this reads: what is not kvtier's own is refused.
        let error = pairs(Direction::Read).unwrap_err();
        assert!(matches!(error, NvmeBenchError::Job(TransferError::Refused(_))), "{error:?}");
    }
}
