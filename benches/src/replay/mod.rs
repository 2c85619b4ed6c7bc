//! Drives the planner, or the whole engine, with a recorded trace.
//!
//! ```text
//!   trace ─► workload ─┬─► virtual_run   the planner alone, every job done at once, no bytes
//!                      └─► real_run      the engine: GPU or its stand-in, host arena, NVMe log; all bytes checked
//!                              │
//!                              └─ in_order: jobs are reported in the order given out, so that both
//!                                 make the same decisions
//! ```

mod in_order;
mod pattern;
mod real_run;
mod report;
mod virtual_run;
mod workload;

use std::path::PathBuf;

use kv_core::layout::LayoutError;
use kv_core::planner::{ConfigError, LogShape, PlannerError};
use kv_core::policy::{BytesPerDay, Optimum, PolicyKind};
use kv_cuda::DeviceChoice;
use kv_tiers::engine::{EngineConfig, EngineError, OpenError};
use kv_tiers::nvme::{LogConfig, NvmeConfig, OpenMode};

pub use pattern::Pattern;
pub use report::{Blocks, ByTier, Report, Timing};
pub use workload::{Arrival, Workload};

/// Why a replay stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Sizes that cannot work.
    #[error("these sizes cannot work")]
    Config(#[from] ConfigError),
    /// The planner refused a call.
    #[error("the planner refused a request of the trace")]
    Planner(#[from] PlannerError),
    /// A tier could not be set up.
    #[error("the tiers could not be set up")]
    Open(#[from] OpenError),
    /// The engine refused a call or got stuck.
    #[error("the engine stopped")]
    Engine(#[from] EngineError),
    /// A block of that size has no layout.
    #[error("block_bytes cannot be laid out in a pool")]
    Layout(#[from] LayoutError),
    /// The device refused a copy.
    #[error("the device failed")]
    Device(#[from] kv_cuda::DeviceError),
}

/// What to replay a workload with.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Blocks that each tier holds; 0 leaves the tier out.
    pub capacity: Blocks,
    /// Eviction in HBM and host RAM.
    pub policy: PolicyKind,
    /// NVMe writes allowed per day; `None` sets no limit.
    pub nvme_budget: Option<BytesPerDay>,
    /// Bytes of one block. Without real bytes it only scales the NVMe budget and the bytes in the report.
    pub block_bytes: usize,
    /// Makes the bytes of blocks.
    pub seed: u64,
    /// Moves real bytes, with the NVMe log in this directory, which an earlier log there is lost for.
    pub real: Option<PathBuf>,
    /// The device that holds the blocks of HBM, when real bytes are moved.
    pub device: DeviceChoice,
}

/// Jobs that may be on their way to NVMe at a time: enough to keep a fast drive busy.
const WRITE_BACKS: u32 = 32;

impl Replay {
    /// Replays the workload; `progress` hears the number of requests done.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn run(&self, workload: &Workload, progress: &mut dyn FnMut(usize)) -> Result<Report, ReplayError> {
        let config = self.engine()?;
        let (stats, elapsed) = virtual_run::run(workload, &config.planner())?;
        let optimum = Optimum::new(workload.arrivals.iter().map(|a| a.keys.iter().copied()));
        let record_bytes = config.planner().record_bytes.0;
        let optimal_hits = optimum.hits(self.capacity.total() as usize);
        let mut report = Report::new(self, workload, &stats, record_bytes, optimal_hits);
        report.timing.planner_ns_per_block = elapsed.as_nanos() as f64 / workload.block_refs.max(1) as f64;
        report.timing.replay_seconds = elapsed.as_secs_f64();
        if self.real.is_some() {
            let totals = real_run::run(workload, &config, self.seed, progress)?;
            report.moved(&totals, &stats, record_bytes);
        }
        Ok(report)
    }

    fn engine(&self) -> Result<EngineConfig, ReplayError> {
        let Blocks { hbm, host, nvme } = self.capacity;
        let log = log_config(nvme, self.block_bytes);
        // The directory is looked at only when bytes are to be moved.
        let dir = self.real.clone().unwrap_or_default();
        Ok(EngineConfig {
            block_bytes: self.block_bytes,
            hbm: if hbm > 0 { Some(real_run::pool(hbm, self.block_bytes)?) } else { None },
            device: self.device,
            host_slots: host,
            nvme: (nvme > 0).then(|| NvmeConfig::new(dir, log)),
            policy: self.policy,
            nvme_budget: self.nvme_budget,
            max_write_backs: WRITE_BACKS,
            slow: None,
        })
    }
}

/// Segments of the usual size, or smaller ones where the log would have fewer than 16 of them.
fn log_config(blocks: u32, block_bytes: usize) -> LogConfig {
    let usual = LogConfig::sized(LogConfig::SEGMENT_BYTES, block_bytes).records_per_segment;
    let records_per_segment = usual.min(blocks.div_ceil(16)).max(1);
    let segments = blocks.div_ceil(records_per_segment).max(LogShape::MIN_SEGMENTS);
    LogConfig { segments, records_per_segment, mode: OpenMode::Fresh }
}
