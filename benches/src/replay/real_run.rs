//! Replays a workload with real bytes through the engine: one request at a time, every block that is
//! found compared with what was stored under its key.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::key::BlockKey;
use kv_core::layout::{Arrangement, Attention, DType, HeadOrder, KvLayout, KvOrder, LayoutError, Placement};
use kv_core::planner::{Planner, PlannerStats, Ready};
use kv_core::units::{Epoch, Tokens};
use kv_cuda::Device;
use kv_tiers::engine::{Acquire, Clock, Engine, EngineConfig, Inbox, Lease, LocalHands};

use super::in_order::InOrder;
use super::pattern::Pattern;
use super::{ReplayError, Workload};

/// Transfers of one request take milliseconds; a disk that needs longer than this has stopped.
const STUCK: Duration = Duration::from_secs(120);

/// What a real run found, beside the planner's counters.
#[derive(Clone, Debug, Default)]
pub(super) struct RealTotals {
    /// The planner's counters.
    pub(super) stats: PlannerStats,
    /// Bytes of blocks that were found in a tier and compared with what had been stored.
    pub(super) verified_bytes: u64,
    /// Blocks that differed. Anything but 0 is a bug in kvtier.
    pub(super) mismatches: u64,
    /// What requests waited for their loads.
    pub(super) waited: Duration,
    /// The whole run, with making and comparing bytes.
    pub(super) elapsed: Duration,
    /// The device, and why it is this one.
    pub(super) device_how: Option<String>,
    /// How the NVMe log does its I/O, and why.
    pub(super) nvme_how: Option<String>,
}

/// Runs the engine over the workload; `progress` is called with the number of requests done.
///
/// # Errors
/// [`ReplayError`] when the tiers cannot be set up. Failing transfers are misses, not errors.
pub(super) fn run(
    workload: &Workload,
    config: &EngineConfig,
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<RealTotals, ReplayError> {
    let mut rig = Rig::new(config, seed)?;
    let namespace = rig.engine.namespace(workload.namespace, workload.fingerprint, Epoch(0))?;
    let start = Instant::now();
    for (done, arrival) in workload.arrivals.iter().enumerate() {
        rig.engine.clock().advance_to(arrival.at);
        let asked = Instant::now();
        let request = Acquire { namespace, keys: &arrival.keys, patience: None, notify: None };
        let lease = rig.engine.acquire(&request)?;
        let ready = lease.wait();
        rig.totals.waited += asked.elapsed();
        rig.play_runtime(lease, ready, &arrival.keys)?;
        rig.engine.quiesce(STUCK)?;
        progress(done + 1);
    }
    rig.totals.elapsed = start.elapsed();
    rig.totals.stats = rig.engine.stats();
    rig.engine.shutdown(STUCK)?;
    Ok(rig.totals)
}

/// An engine and the runtime that is played on it.
struct Rig {
    engine: Engine,
    device: Option<Arc<dyn Device>>,
    pattern: Pattern,
    /// One block, to read the device into and to fill it from.
    block: Vec<u8>,
    totals: RealTotals,
}

impl Rig {
    fn new(config: &EngineConfig, seed: u64) -> Result<Self, ReplayError> {
        let inbox = Arc::new(Inbox::default());
        let in_order = InOrder::new(inbox.clone());
        let (hands, recovery) = LocalHands::open(config, in_order.clone())?;
        let how = |how: Option<&str>| how.map(str::to_owned);
        let (device_how, nvme_how) = (how(hands.device_how()), how(hands.nvme_how()));
        let totals = RealTotals { device_how, nvme_how, ..RealTotals::default() };
        let (arena, device) = (hands.arena().clone(), hands.device().cloned());
        let mut planner = Planner::new(config.planner())?;
        if let Some(found) = recovery {
            // No records, for the log is fresh; but the generations of its segments go on from an earlier log's.
            planner.restore(&found.segments, &found.records);
        }
        let hands = in_order.hand(Arc::new(hands));
        let engine = Engine::assemble(planner, arena, hands, Clock::simulated(), &inbox);
        let block = vec![0; config.block_bytes];
        Ok(Self { engine, device, pattern: Pattern::new(seed), block, totals })
    }

    /// Compares what is ready and computes the rest.
    fn play_runtime(&mut self, mut lease: Lease, ready: Ready, keys: &[BlockKey]) -> Result<(), ReplayError> {
        for (index, key) in (0..ready.granted).zip(keys) {
            let found = index < ready.ready;
            let same = match &self.device {
                None if found => self.pattern.matches(*key, lease.host_block(index)?),
                None => {
                    self.pattern.fill(*key, lease.host_block_mut(index)?);
                    continue;
                }
                Some(device) => {
                    let Some(slot) = lease.slots().get(index as usize).copied() else { break };
                    if !found {
                        self.pattern.fill(*key, &mut self.block);
                        device.upload(slot, &self.block)?;
                        continue;
                    }
                    device.download(slot, &mut self.block)?;
                    self.pattern.matches(*key, &self.block)
                }
            };
            self.totals.verified_bytes += self.block.len() as u64;
            self.totals.mismatches += u64::from(!same);
        }
        Ok(lease.commit(ready.granted).map_err(|refused| refused.reason)?)
    }
}

/// A pool of HBM blocks of any size: as many layers, up to 32, as divide the block, so that it falls into
/// fragments like a model's.
///
/// # Errors
/// [`LayoutError`] for a block of no bytes or too many.
pub(super) fn pool(blocks: u32, block_bytes: usize) -> Result<Placement, LayoutError> {
    let layers = [32, 16, 8, 4, 2].into_iter().find(|layers| block_bytes.is_multiple_of(2 * layers));
    let dim = |parts: usize| u32::try_from(block_bytes / parts).unwrap_or(u32::MAX);
    let (layers, attention) = match layers {
        Some(layers) => {
            let (order, kv) = (HeadOrder::Nhd, KvOrder::Split);
            (layers, Attention::Heads { kv_heads: 1, head_dim: dim(2 * layers), order, kv })
        }
        None => (1, Attention::Latent { dim: dim(1) }),
    };
    let layout = KvLayout::new(layers as u32, attention, DType::Fp8E4M3, Tokens(1))?;
    Placement::packed(layout, blocks, Arrangement::SeparateKv)
}
