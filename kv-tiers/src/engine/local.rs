//! The usual engine: the device, the memory and the NVMe log of this machine.

use std::sync::Arc;

use kv_core::ids::JobId;
use kv_core::job::{CompletionSink, Job, Op, TransferError, Urgency};
use kv_core::layout::Placement;
use kv_core::planner::{ConfigError, LogShape, Planner, PlannerConfig};
use kv_core::policy::{BytesPerDay, PolicyKind};
use kv_core::units::Bytes;
use kv_cuda::{BlockCopy, ChoiceError, ChosenDevice, Device, DeviceChoice, DeviceError, Direction};
use parking_lot::RwLock;

use super::{Clock, Engine, Hand, Inbox};
use crate::arena::{Arena, ArenaConfig, ArenaError, slot_bytes};
use crate::nvme::{NvmeConfig, NvmeError, NvmeLog, Recovery};

/// Sizes and rules of an engine on this machine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Bytes of one block.
    pub block_bytes: usize,
    /// The block pool in device memory that kvtier manages; `None` when the runtime keeps its own.
    pub hbm: Option<Placement>,
    /// The device that holds that pool.
    pub device: DeviceChoice,
    /// Blocks in pinned host memory.
    pub host_slots: u32,
    /// The NVMe log, if there is one.
    pub nvme: Option<NvmeConfig>,
    /// Eviction in HBM and host memory.
    pub policy: PolicyKind,
    /// Bytes that may be written to NVMe per day; `None` sets no limit.
    pub nvme_budget: Option<BytesPerDay>,
    /// NVMe writes in flight at most. 32 keep fast drives busy.
    pub max_write_backs: u32,
}

impl EngineConfig {
    /// The part that the planner needs to know.
    #[must_use]
    pub fn planner(&self) -> PlannerConfig {
        PlannerConfig {
            hbm_slots: self.hbm.as_ref().map_or(0, Placement::num_blocks),
            host_slots: self.host_slots,
            log: self.nvme.as_ref().map(|nvme| LogShape {
                segments: nvme.log.segments,
                records_per_segment: nvme.log.records_per_segment,
            }),
            record_bytes: Bytes(slot_bytes(self.block_bytes).unwrap_or(usize::MAX) as u64),
            policy: self.policy,
            nvme_budget: self.nvme_budget,
            max_write_backs: self.max_write_backs,
        }
    }
}

/// Why an engine could not be opened. What was in the log is still there.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Sizes that cannot work.
    #[error("the configuration cannot work")]
    Config(#[from] ConfigError),
    /// Blocks of two sizes.
    #[error("block_bytes is {block_bytes}, but a block of the HBM layout has {layout_bytes} bytes")]
    BlockBytes {
        /// As configured.
        block_bytes: usize,
        /// What the layout says.
        layout_bytes: usize,
    },
    /// No pinned memory.
    #[error("the host arena could not be made")]
    Arena(#[from] ArenaError),
    /// No device.
    #[error("the device could not be set up")]
    Device(#[from] ChoiceError),
    /// No log.
    #[error("the NVMe log could not be opened")]
    Nvme(#[from] NvmeError),
    /// No thread.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// An engine and what opening it found.
pub struct Opened {
    /// The engine.
    pub engine: Engine,
    /// The device whose slots it manages, through which the runtime reaches its bytes.
    pub device: Option<Arc<dyn Device>>,
    /// What was found in the log.
    pub recovery: Option<Recovery>,
    /// Records of the log that can be served.
    pub served: u64,
}

impl Engine {
    /// Opens device, memory and log, and takes over what the log holds.
    ///
    /// # Errors
    /// [`OpenError`]; nothing in the log is lost by it.
    pub fn open(config: &EngineConfig) -> Result<Opened, OpenError> {
        let mut planner = Planner::new(config.planner())?;
        let inbox = Arc::new(Inbox::default());
        let (hands, recovery) = LocalHands::open(config, inbox.clone())?;
        let served = recovery.as_ref().map_or(0, |found| planner.restore(&found.segments, &found.records));
        let (arena, device) = (hands.arena.clone(), hands.device().cloned());
        let mut engine = Self::assemble(planner, arena, Arc::new(hands), Clock::monotonic(), &inbox);
        engine.start_ticker().map_err(OpenError::Thread)?;
        Ok(Opened { engine, device, recovery, served })
    }
}

/// Device and log of this machine, working in one arena.
pub struct LocalHands {
    arena: Arc<Arena>,
    device: Option<ChosenDevice>,
    /// Taken out when the hands are closed.
    log: RwLock<Option<NvmeLog>>,
    nvme_how: Option<String>,
}

impl LocalHands {
    /// Sets them up; they will report to `sink`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        config: &EngineConfig,
        sink: Arc<dyn CompletionSink>,
    ) -> Result<(Self, Option<Recovery>), OpenError> {
        let layout_bytes = config.hbm.map_or(config.block_bytes, |pool| pool.layout().bytes_per_block());
        if layout_bytes != config.block_bytes {
            return Err(OpenError::BlockBytes { block_bytes: config.block_bytes, layout_bytes });
        }
        // An engine without a host tier has an arena all the same, of the least size there is.
        let arena = Arena::new(ArenaConfig::new(config.host_slots.max(1), config.block_bytes))?;
        let device = match config.hbm {
            Some(pool) => Some(config.device.open(pool, arena.clone(), sink.clone())?),
            None => None,
        };
        let (log, recovery) = match &config.nvme {
            Some(nvme) => {
                let (log, recovery) = NvmeLog::open(nvme, arena.clone(), sink)?;
                (Some(log), Some(recovery))
            }
            None => (None, None),
        };
        let nvme_how = log.as_ref().map(|log| log.why().to_owned());
        Ok((Self { arena, device, log: RwLock::new(log), nvme_how }, recovery))
    }

    /// The memory.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> Option<&Arc<dyn Device>> {
        self.device.as_ref().map(|chosen| &chosen.device)
    }

    /// Which device it is, and why.
    #[must_use]
    pub fn device_how(&self) -> Option<&str> {
        self.device.as_ref().map(|chosen| chosen.how.as_str())
    }

    /// How the log does its I/O, and why so.
    #[must_use]
    pub fn nvme_how(&self) -> Option<&str> {
        self.nvme_how.as_deref()
    }

    fn as_copy(&self, job: &Job) -> Option<BlockCopy> {
        let (direction, device_block, host) = match job.op {
            Op::Offload { hbm, host } => (Direction::ToHost, hbm, host),
            Op::Onboard { host, hbm } => (Direction::ToDevice, hbm, host),
            _ => return None,
        };
        let host = self.arena.payload_range(host)?;
        Some(BlockCopy { job: job.id, direction, device_block, host })
    }

    fn copy(&self, jobs: &[Job], urgency: Urgency, refused: &mut Vec<(JobId, TransferError)>) {
        let copies: Vec<_> =
            jobs.iter().filter(|job| job.urgency == urgency).filter_map(|j| self.as_copy(j)).collect();
        if copies.is_empty() {
            return;
        }
        let taken = match self.device() {
            // SAFETY: the planner's tokens warrant it: the destination of a copy is a `Filling` slot, which
            // exactly one job has; its source is pinned, and a pinned slot is written by nobody. The slots
            // stay in that state until this job has been reported.
            Some(device) => unsafe { device.submit(&copies, urgency) },
            None => Err(DeviceError::Closed),
        };
        if let Err(error) = taken {
            tracing::error!(%error, copies = copies.len(), "the device refused copies");
            refused.extend(copies.iter().map(|copy| (copy.job, TransferError::Down)));
        }
    }
}

impl Hand for LocalHands {
    fn submit(&self, jobs: Vec<Job>) -> Vec<(JobId, TransferError)> {
        let mut refused = Vec::new();
        let is_copy = |job: &Job| matches!(job.op, Op::Offload { .. } | Op::Onboard { .. });
        let (copies, io): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(is_copy);
        for urgency in [Urgency::Demand, Urgency::WriteBack] {
            self.copy(&copies, urgency, &mut refused);
        }
        match &*self.log.read() {
            Some(log) => log.submit(&io),
            None => refused.extend(io.iter().map(|job| (job.id, TransferError::Down))),
        }
        refused
    }

    fn sync(&self) -> Result<(), TransferError> {
        self.log.read().as_ref().map_or(Ok(()), NvmeLog::sync)
    }

    fn close(&self) {
        if let Some(device) = self.device() {
            device.close();
        }
        // Not under the lock: what the log reports while it closes may lead to new jobs.
        let log = self.log.write().take();
        if let Some(log) = log {
            log.close();
        }
    }
}
