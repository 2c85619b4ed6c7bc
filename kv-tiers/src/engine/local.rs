//! The usual engine: the device, the memory and the NVMe log of this machine.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kv_core::cost::priors::{CurvePrior, LinkPrior};
use kv_core::ids::JobId;
use kv_core::job::{AnswerSink, CompletionSink, Job, Op, RemoteJob, TransferError, Urgency};
use kv_core::key::Fingerprint;
use kv_core::layout::Placement;
use kv_core::planner::{ConfigError, LogShape, Planner, PlannerConfig, RemoteSource, SlowSources};
use kv_core::policy::{BytesPerDay, PolicyKind};
use kv_core::units::Bytes;
use kv_cuda::{BlockCopy, ChoiceError, ChosenDevice, Device, DeviceChoice, DeviceError, Direction};
use parking_lot::RwLock;

use super::remotes::{Remote, RemoteHands};
use super::{Clock, Engine, Hand, Inbox};
use crate::arena::{Arena, ArenaConfig, ArenaError, slot_bytes};
use crate::codec::Elements;
use crate::nvme::{NvmeConfig, NvmeError, NvmeLog, Recovery};
use crate::remote::RemoteStore;

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
    /// Load or recompute? Without it whatever was found is loaded, and there are no remote stores.
    pub slow: Option<SlowConfig>,
}

/// The sources whose blocks are loaded only when that beats recomputing them.
#[derive(Clone, Debug)]
pub struct SlowConfig {
    /// Tokens of one block.
    pub tokens_per_block: u32,
    /// The model and layout whose recompute is learnt.
    pub fingerprint: Fingerprint,
    /// What is believed about it; see [`curve`](kv_core::cost::priors::curve).
    pub curve: CurvePrior,
    /// What is believed of the NVMe tier; `None` loads from it without asking.
    pub nvme: Option<LinkPrior>,
    /// The remote stores.
    pub remotes: Vec<RemoteConfig>,
    /// Where to keep what was learnt from one life to the next: a small file, read when the engine opens and written
    /// when it shuts down. One that is damaged or of another model is not used.
    pub learnt: Option<PathBuf>,
}

/// One remote store of an engine.
#[derive(Clone)]
pub struct RemoteConfig {
    /// As in metrics; what was learnt about it is found again by this name.
    pub name: String,
    /// The store.
    pub store: Arc<dyn RemoteStore>,
    /// What is believed before anything was measured; see [`NETWORK`](kv_core::cost::priors::NETWORK).
    pub link: LinkPrior,
    /// Whether computed blocks are stored there.
    pub writes: bool,
    /// What the bytes are elements of, to have blocks encoded on their way there; `None` stores them raw. It pays on links
    /// below some 20 Gbit/s for bf16, and hardly ever for e4m3 (`kvtier bench codec`). All nodes should agree.
    pub elements: Option<Elements>,
}

impl fmt::Debug for RemoteConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, store: _, link, writes, elements } = self;
        f.debug_struct("RemoteConfig")
            .field("name", name)
            .field("link", link)
            .field("writes", writes)
            .field("elements", elements)
            .finish_non_exhaustive()
    }
}

impl SlowConfig {
    fn sources(&self, block_bytes: usize) -> SlowSources {
        let remote = |r: &RemoteConfig| RemoteSource { name: r.name.clone(), link: r.link, writes: r.writes };
        SlowSources {
            tokens_per_block: self.tokens_per_block,
            block_bytes: Bytes(block_bytes as u64),
            fingerprint: self.fingerprint,
            curve: self.curve,
            nvme: self.nvme,
            remotes: self.remotes.iter().map(remote).collect(),
            // Engines that start together must not probe in step.
            seed: RandomState::new().hash_one(0),
        }
    }
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
            slow: self.slow.as_ref().map(|slow| slow.sources(self.block_bytes)),
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
        let (mut hands, recovery) = LocalHands::open(config, inbox.clone())?;
        let start = Instant::now();
        hands.open_remotes(config, start, inbox.clone())?;
        let served = recovery.as_ref().map_or(0, |found| planner.restore(&found.segments, &found.records));
        let (arena, device) = (hands.arena.clone(), hands.device().cloned());
        let mut engine = Self::assemble(planner, arena, Arc::new(hands), Clock::Monotonic(start), &inbox);
        if let Some(learnt) = config.slow.as_ref().and_then(|slow| slow.learnt.clone()) {
            engine.load_learnt(learnt);
        }
        engine.start_ticker().map_err(OpenError::Thread)?;
        engine.prepare_write();
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
    remotes: Option<RemoteHands>,
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
        Ok((Self { arena, device, log: RwLock::new(log), nvme_how, remotes: None }, recovery))
    }

    /// Sets up the hands for remote stores. Deadlines count from `start`.
    fn open_remotes(
        &mut self,
        config: &EngineConfig,
        start: Instant,
        sink: Arc<dyn AnswerSink>,
    ) -> Result<(), OpenError> {
        let remotes = config.slow.iter().flat_map(|slow| &slow.remotes);
        let stores: Vec<_> =
            remotes.map(|r| Remote { store: r.store.clone(), elements: r.elements }).collect();
        if !stores.is_empty() {
            let hands = RemoteHands::start(stores, self.arena.clone(), start, sink);
            self.remotes = Some(hands.map_err(OpenError::Thread)?);
        }
        Ok(())
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

    fn call(&self, calls: Vec<RemoteJob>) -> Vec<(JobId, TransferError)> {
        match &self.remotes {
            Some(remotes) => remotes.submit(calls),
            None => calls.iter().map(|call| (call.id, TransferError::Down)).collect(),
        }
    }

    fn leave_calls(&self) {
        if let Some(remotes) = &self.remotes {
            remotes.close();
        }
    }

    fn sync(&self) -> Result<(), TransferError> {
        self.log.read().as_ref().map_or(Ok(()), NvmeLog::sync)
    }

    fn close(&self) {
        self.leave_calls();
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
