//! `kvtier bench remote`: remote stores as a share of what their own benchmarks reach.
//!
//! ```text
//! busy    a store with a fixed number of calls under way       fio      the limit of a shared directory
//! share   the figures of a directory                           server   a Redis of the benchmark's own, and
//! summary what is printed                                               redis-benchmark on it
//! ```
//!
//! The store does all its work in the measured time: records, checksums both ways, names, renames, syncs, and a copy
//! into memory of the caller's. Store and limit take turns on the same server or directory, with values of the same
//! size and as many of them under way.

mod busy;
mod fio;
#[cfg(feature = "redis")]
mod server;
mod summary;

use std::io;
use std::path::Path;
use std::time::Duration;

use kv_tiers::remote::{OpenError, RemoteError};
use serde::Serialize;

pub use fio::FioFailed;
pub use summary::{Figure, Summary};

use busy::Busy;
use fio::Fio;

use crate::ByteSize;
use crate::report::Sample;

/// Bytes of a record before its payload, in every remote store.
const HEADER: usize = 128;

/// Which way values go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Verified.
    Get,
    /// Over older values of the same names.
    Put,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of a value: a record with its header of 128 bytes.
    pub values: Vec<ByteSize>,
    /// Values under way: calls about one block each, connections of redis-benchmark, jobs of fio.
    pub calls: u32,
    /// Bytes of all values of one measurement, for each side.
    pub set_bytes: ByteSize,
    /// Pairs of measurements (store, limit) for each figure.
    pub pairs: u32,
    /// Length of one measurement.
    pub time: Duration,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum RemoteBenchError {
    /// Not a size of values.
    #[error("{0} is no size of a value: from 1 KiB to 64 MiB, please")]
    Value(ByteSize),
    /// The store did not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Something went wrong with a block, on a store that is well.
    #[error("a call of the store failed")]
    Call(#[from] RemoteError),
    /// The limit of the directory.
    #[error(transparent)]
    Fio(#[from] FioFailed),
    /// The directory of the benchmark.
    #[error("using the benchmark's directory")]
    Directory(#[source] io::Error),
    /// The server or its benchmark.
    #[error("{0}; are redis-server and redis-benchmark installed (packages redis-server and redis-tools)?")]
    Redis(String),
}

impl Plan {
    /// Whether the sizes can be measured.
    ///
    /// # Errors
    /// [`RemoteBenchError::Value`].
    pub fn check(&self) -> Result<(), RemoteBenchError> {
        let wrong = self.values.iter().find(|value| !(1 << 10..=64 << 20).contains(&value.0));
        wrong.map_or(Ok(()), |value| Err(RemoteBenchError::Value(*value)))
    }

    /// Disk space that a measurement takes, with some for what is being replaced.
    #[must_use]
    pub fn disk_bytes(&self) -> ByteSize {
        let largest = self.values.iter().map(|value| value.0).max().unwrap_or(0);
        ByteSize(3 * self.set_bytes.0 + 64 * largest)
    }

    /// Different values of that size: enough that each is under way once at most.
    fn blocks(&self, value: ByteSize) -> u64 {
        (self.set_bytes.0 / value.0).max(4 * u64::from(self.calls))
    }

    /// Measures in `dir`, which must be empty and have room. `progress` is told what goes on.
    ///
    /// # Errors
    /// [`RemoteBenchError`]; sizes are checked before anything is measured.
    pub fn measure(
        &self,
        dir: &Path,
        progress: &mut dyn FnMut(&dyn std::fmt::Display),
    ) -> Result<Summary, RemoteBenchError> {
        self.check()?;
        let mut figures = Vec::new();
        for &value in &self.values {
            figures.extend(self.share(dir, value, progress)?);
        }
        #[cfg(feature = "redis")]
        for &value in &self.values {
            figures.extend(self.redis(value, progress)?);
        }
        #[cfg(not(feature = "redis"))]
        progress(&"Redis is left out: this command was built without the feature `redis`");
        Ok(Summary::new(self, figures))
    }

    /// A directory against fio.
    fn share(
        &self,
        dir: &Path,
        value: ByteSize,
        progress: &mut dyn FnMut(&dyn std::fmt::Display),
    ) -> Result<Vec<Figure>, RemoteBenchError> {
        let dir = tempfile::tempdir_in(dir).map_err(RemoteBenchError::Directory)?;
        let (ours, theirs) = (dir.path().join("kvtier"), dir.path().join("fio"));
        for dir in [&ours, &theirs] {
            std::fs::create_dir(dir).map_err(RemoteBenchError::Directory)?;
        }
        let store = kv_tiers::remote::FsStore::open(&ours, Busy::limits(value, self.calls))?;
        let mut busy = Busy::new(&store, value, self.blocks(value), self.calls);
        let fio = Fio { dir: &theirs, value, files: self.blocks(value), jobs: self.calls, time: self.time };
        progress(&format_args!("directory, {value}: writing the values"));
        busy.fill()?;
        fio.fill()?;
        let mut figures = Vec::new();
        for direction in [Direction::Get, Direction::Put] {
            progress(&format_args!("directory, {value}: {direction}"));
            let figure =
                self.pairs("directory", fio::how(direction), value, direction, &mut |turn| match turn {
                    Turn::Ours => busy.run(direction, self.time),
                    Turn::Limit => Ok(fio.measure(direction)?),
                })?;
            figures.extend(figure);
        }
        drop(store);
        dir.close().map_err(RemoteBenchError::Directory)?;
        Ok(figures)
    }

    /// A Redis against redis-benchmark.
    #[cfg(feature = "redis")]
    fn redis(
        &self,
        value: ByteSize,
        progress: &mut dyn FnMut(&dyn std::fmt::Display),
    ) -> Result<Vec<Figure>, RemoteBenchError> {
        let server = server::Server::start()?;
        let store = server.store(Busy::limits(value, self.calls))?;
        let mut busy = Busy::new(&store, value, self.blocks(value), self.calls);
        let limit = server::Limit { server: &server, value, keys: self.blocks(value), calls: self.calls };
        progress(&format_args!("Redis, {value}: writing the values"));
        busy.fill()?;
        limit.fill()?;
        let mut figures = Vec::new();
        for direction in [Direction::Get, Direction::Put] {
            progress(&format_args!("Redis, {value}: {direction}"));
            // How many requests take so long.
            let mut requests = limit.requests(direction, self.time)?;
            let how = server::how(direction);
            let figure = self.pairs("Redis", how, value, direction, &mut |turn| match turn {
                Turn::Ours => busy.run(direction, self.time),
                Turn::Limit => {
                    let rate = limit.measure(direction, requests)?;
                    requests = limit.requests_at(rate, self.time);
                    Ok(rate)
                }
            })?;
            figures.extend(figure);
        }
        Ok(figures)
    }

    /// `None` without pairs. Rates are bytes of values per second.
    fn pairs(
        &self,
        store: &'static str,
        limit: &'static str,
        value: ByteSize,
        direction: Direction,
        measure: &mut dyn FnMut(Turn) -> Result<f64, RemoteBenchError>,
    ) -> Result<Option<Figure>, RemoteBenchError> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for pair in 0..self.pairs {
            // Whoever comes second finds everything warm: both do, by turns.
            for turn in 0..2 {
                if (pair + turn).is_multiple_of(2) {
                    ours.push(measure(Turn::Ours)?);
                } else {
                    theirs.push(measure(Turn::Limit)?);
                }
            }
        }
        let shares = ours.iter().zip(&theirs).map(|(ours, limit)| ours / limit).collect();
        let giga = |rates: Vec<f64>| Sample::of(rates.into_iter().map(|rate| rate / 1e9).collect());
        let sample = || Some((giga(ours)?, giga(theirs)?, Sample::of(shares)?));
        Ok(sample().map(|(kvtier_gb_per_second, limit_gb_per_second, share_of_limit)| Figure {
            store,
            value,
            direction,
            limit,
            kvtier_gb_per_second,
            limit_gb_per_second,
            share_of_limit,
        }))
    }
}

/// Who measures.
enum Turn {
    Ours,
    Limit,
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Get => "gets",
            Self::Put => "puts",
        })
    }
}
