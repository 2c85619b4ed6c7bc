//! An open log: jobs in, completions out.

use std::path::PathBuf;
use std::sync::Arc;

use kv_core::job::{Job, TransferError};

use super::config::LogConfig;
use super::error::NvmeError;
use super::pool::Pool;
use super::probe;
use super::recover::Recovery;
use super::segments::Segments;
use super::sink::CompletionSink;
use super::store::{FileStore, SegmentStore};
use super::uring::Uring;
use crate::arena::Arena;

/// Who does the I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// io_uring if the kernel lets us, else threads.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Threads with blocking calls.
    Pool,
}

/// Where a log is and how to use it.
#[derive(Clone, Debug)]
pub struct NvmeConfig {
    /// An existing directory on the NVMe filesystem, for this log alone.
    pub dir: PathBuf,
    /// Its sizes, and how to open it. The payload size is the arena's.
    pub log: LogConfig,
    /// Who does the I/O.
    pub backend: Backend,
    /// Demand loads in flight, and write-backs in flight, at most. `None` measures the device for up to 200 ms.
    pub queue_depth: Option<u32>,
}

impl NvmeConfig {
    /// A log in `dir`, with everything chosen at opening.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, log: LogConfig) -> Self {
        Self { dir: dir.into(), log, backend: Backend::Auto, queue_depth: None }
    }
}

/// Most jobs of one urgency in flight.
const MAX_DEPTH: u32 = 1024;

/// An open log. Dropping it gives jobs that have not started back as [`TransferError::Down`].
///
/// ```
/// use std::sync::{Arc, mpsc};
/// use kv_core::{Verified, ids::*, job::*, units::Generation};
/// use kv_tiers::arena::{Arena, ArenaConfig};
/// use kv_tiers::nvme::*;
///
/// struct Channel(mpsc::Sender<JobId>);
/// impl CompletionSink for Channel {
///     fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
///         result.expect("the disk works");
///         self.0.send(job).expect("the test waits");
///     }
/// }
///
/// let dir = tempfile::tempdir()?;
/// let arena = Arena::new(ArenaConfig::new(8, 4096))?;
/// let config = LogConfig { segments: 2, records_per_segment: 16, mode: OpenMode::Recover };
/// let (sender, completions) = mpsc::channel();
/// let (log, recovery) =
///     NvmeLog::open(&NvmeConfig::new(dir.path(), config), arena, Arc::new(Channel(sender)))?;
/// let RecoveredSegment { segment, generation, .. } = recovery.segments[0];
/// let op = Op::OpenSegment { segment, generation: Generation(generation.0 + 1) };
/// log.submit(&[Job { id: JobId(1), op, urgency: Urgency::WriteBack }]);
/// assert_eq!(completions.recv()?, JobId(1));
/// log.close();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct NvmeLog {
    hands: Hands,
    segments: Arc<Segments>,
    queue_depth: u32,
    why: String,
}

enum Hands {
    Uring(Uring),
    Pool(Pool),
}

impl NvmeLog {
    /// Opens the log in a directory, or makes one there. Completions may arrive once jobs are submitted.
    ///
    /// # Errors
    /// See [`NvmeError`]: each says what to do.
    pub fn open(
        config: &NvmeConfig,
        arena: Arc<Arena>,
        sink: Arc<dyn CompletionSink>,
    ) -> Result<(Self, Recovery), NvmeError> {
        let dir = &config.dir;
        let files = Arc::new(FileStore::open(dir).map_err(NvmeError::at(dir, "opening the directory"))?);
        let store: Arc<dyn SegmentStore> = Arc::clone(&files) as _;
        let (segments, recovery) =
            Segments::open(store, arena, config.log).map_err(|e| e.in_directory(dir))?;
        let segments = Arc::new(segments);
        let depth = match config.queue_depth {
            Some(depth) => probe::Depth { depth, why: "configured".into() },
            None => probe::queue_depth(&segments, &recovery),
        };
        let queue_depth = depth.depth.clamp(1, MAX_DEPTH);
        let uring = match config.backend {
            Backend::Pool => Err("a pool was configured".to_owned()),
            Backend::Auto | Backend::Uring => {
                Uring::start(Arc::clone(&segments), files, queue_depth, Arc::clone(&sink), true)
            }
        };
        let (hands, chosen) = match (uring, config.backend) {
            (Ok(uring), _) => {
                let chosen = format!("io_uring: {}", uring.how());
                (Hands::Uring(uring), chosen)
            }
            (Err(why), Backend::Uring) => return Err(NvmeError::NoUring(why)),
            (Err(why), _) => {
                let pool = Pool::start(Arc::clone(&segments), queue_depth, sink);
                (Hands::Pool(pool.map_err(NvmeError::io("starting I/O threads"))?), format!("pool: {why}"))
            }
        };
        let why = format!("{chosen}; queue depth {queue_depth}: {}", depth.why);
        tracing::info!("NVMe log in {}: {why}", dir.display());
        Ok((Self { hands, segments, queue_depth, why }, recovery))
    }

    /// Opens the log in a store of the caller's, with a pool of threads.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn with_store(
        store: Arc<dyn SegmentStore>,
        config: LogConfig,
        queue_depth: u32,
        arena: Arc<Arena>,
        sink: Arc<dyn CompletionSink>,
    ) -> Result<(Self, Recovery), NvmeError> {
        let (segments, recovery) = Segments::open(store, arena, config)?;
        let segments = Arc::new(segments);
        let queue_depth = queue_depth.clamp(1, MAX_DEPTH);
        let pool = Pool::start(Arc::clone(&segments), queue_depth, sink)
            .map_err(NvmeError::io("starting I/O threads"))?;
        let why = "pool: the store is not files".to_owned();
        Ok((Self { hands: Hands::Pool(pool), segments, queue_depth, why }, recovery))
    }

    /// Queues jobs and returns at once. Each completes exactly once, with the sink.
    ///
    /// What changes one segment happens in the order of submission: an opening before the writes after it, a
    /// sealing after the writes before it. Everything else may overtake.
    pub fn submit(&self, jobs: &[Job]) {
        match &self.hands {
            Hands::Uring(uring) => uring.submit(jobs),
            Hands::Pool(pool) => pool.submit(jobs),
        }
    }

    /// Makes everything that completed before the call durable. Blocks for the device.
    ///
    /// # Errors
    /// Something that completed may not be durable.
    pub fn sync(&self) -> Result<(), TransferError> {
        self.segments.sync()
    }

    /// Completes everything that was submitted, then ends.
    pub fn close(mut self) {
        match &mut self.hands {
            Hands::Uring(uring) => uring.stop(true),
            Hands::Pool(pool) => pool.stop(true),
        }
    }

    /// Who does the I/O: `uring` or `pool`.
    #[must_use]
    pub fn backend_name(&self) -> &'static str {
        match self.hands {
            Hands::Uring(_) => "uring",
            Hands::Pool(_) => "pool",
        }
    }

    /// Jobs of one urgency in flight, at most.
    #[must_use]
    pub fn queue_depth(&self) -> u32 {
        self.queue_depth
    }

    /// Why this backend and this depth.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}
