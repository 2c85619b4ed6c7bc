//! What a planner is built from, and why it may refuse.

use super::LogShape;
use crate::cost::priors::{CurvePrior, LinkPrior};
use crate::cost::{self, CostConfig, SourceConfig};
use crate::key::Fingerprint;
use crate::policy::{BytesPerDay, PolicyKind};
use crate::tier::Tier;
use crate::units::Bytes;

/// Sizes and rules of one planner. All blocks of a planner have the same size; a model with several KV
/// groups uses one planner per group.
#[derive(Clone, Debug)]
pub struct PlannerConfig {
    /// HBM slots that kvtier manages; 0 when the runtime keeps its own HBM pool.
    pub hbm_slots: u32,
    /// Host arena slots.
    pub host_slots: u32,
    /// The NVMe log; needs host slots to stage through.
    pub log: Option<LogShape>,
    /// Bytes that one record occupies on NVMe, header included.
    pub record_bytes: Bytes,
    /// Eviction in HBM and host.
    pub policy: PolicyKind,
    /// Write budget of the drive; `None` writes whatever may be reused.
    pub nvme_budget: Option<BytesPerDay>,
    /// Write-backs in flight at most; at least 1 with a log.
    pub max_write_backs: u32,
    /// Load or recompute? Without it whatever was found is loaded, and there are no remote stores.
    pub slow: Option<SlowSources>,
}

/// The sources whose blocks are loaded only when that beats recomputing them, and what is believed about them.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowSources {
    /// Tokens of one block.
    pub tokens_per_block: u32,
    /// Bytes of one block.
    pub block_bytes: Bytes,
    /// The model and layout whose recompute is learnt.
    pub fingerprint: Fingerprint,
    /// What is believed about it; see [`priors::curve`](cost::priors::curve).
    pub curve: CurvePrior,
    /// What is believed of the NVMe tier; `None` loads from it without asking.
    pub nvme: Option<LinkPrior>,
    /// The remote stores, up to 16. Needs host slots to stage through.
    pub remotes: Vec<RemoteSource>,
    /// Decides which requests carry probes, and nothing else.
    pub seed: u64,
}

/// One remote store, as the planner knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteSource {
    /// As in metrics. What was learnt about it is found again by this name, which must not be `nvme`.
    pub name: String,
    /// What is believed before anything was measured.
    pub link: LinkPrior,
    /// Whether computed blocks are stored there.
    pub writes: bool,
}

impl SlowSources {
    /// Name of the NVMe tier among the sources of the cost model.
    pub const NVME: &str = "nvme";
    /// Remote stores of one planner at most.
    pub const MAX_REMOTES: usize = 16;

    /// The sources as the cost model numbers them: NVMe first, if it is one, then the remotes.
    pub(super) fn cost(&self) -> CostConfig {
        let nvme = self.nvme.map(|link| SourceConfig { name: Self::NVME.into(), link });
        let remotes = self.remotes.iter().map(|r| SourceConfig { name: r.name.clone(), link: r.link });
        CostConfig {
            fingerprint: self.fingerprint,
            curve: self.curve,
            sources: nvme.into_iter().chain(remotes).collect(),
        }
    }
}

/// A planner that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No tier has room.
    #[error("hbm_slots and host_slots are both 0: give at least one tier some room")]
    NoTier,
    /// Nowhere to stage.
    #[error("the NVMe tier needs host slots to stage through: set host_slots to at least 1")]
    NvmeWithoutHost,
    /// Too few segments.
    #[error("log.segments is {0}; at least {min} are needed (one open, one in reserve, one of data)", min = LogShape::MIN_SEGMENTS)]
    TooFewSegments(u32),
    /// A segment without records.
    #[error("log.records_per_segment is 0: segments are smaller than one record")]
    EmptySegment,
    /// Nothing would ever be written.
    #[error("max_write_backs is 0, so nothing could be written to NVMe: set it to at least 1")]
    NoWriteBacks,
    /// Nowhere to stage.
    #[error("remote stores need host slots to stage through: set host_slots to at least 1")]
    RemoteWithoutHost,
    /// More than a planner can name.
    #[error("{0} remote stores are too many; at most {max} are possible", max = SlowSources::MAX_REMOTES)]
    TooManyRemotes(usize),
    /// Nothing could be said about a block without tokens.
    #[error("tokens_per_block is 0: say how many tokens one block holds")]
    NoTokens,
    /// Names or priors that cannot be.
    #[error("the slow sources cannot be")]
    Cost(#[from] cost::ConfigError),
    /// More slots than 32-bit handles can name.
    #[error("{tier} has {slots} slots; at most {max} can be addressed", max = u32::MAX - 1)]
    TooManySlots {
        /// Which tier.
        tier: Tier,
        /// How many were asked for.
        slots: u64,
    },
}

impl PlannerConfig {
    /// Host memory alone, with the default policy.
    #[must_use]
    pub fn host_only(host_slots: u32) -> Self {
        Self {
            hbm_slots: 0,
            host_slots,
            log: None,
            record_bytes: Bytes(0),
            policy: PolicyKind::default(),
            nvme_budget: None,
            max_write_backs: 0,
            slow: None,
        }
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// The first [`ConfigError`] that applies.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.hbm_slots == 0 && self.host_slots == 0 {
            return Err(ConfigError::NoTier);
        }
        for (tier, slots) in [(Tier::Hbm, self.hbm_slots), (Tier::Host, self.host_slots)] {
            if slots == u32::MAX {
                return Err(ConfigError::TooManySlots { tier, slots: u64::from(slots) });
            }
        }
        if let Some(slow) = &self.slow {
            if slow.tokens_per_block == 0 {
                return Err(ConfigError::NoTokens);
            }
            if slow.remotes.len() > SlowSources::MAX_REMOTES {
                return Err(ConfigError::TooManyRemotes(slow.remotes.len()));
            }
            if !slow.remotes.is_empty() && self.host_slots == 0 {
                return Err(ConfigError::RemoteWithoutHost);
            }
        }
        let Some(log) = self.log else { return Ok(()) };
        if self.host_slots == 0 {
            return Err(ConfigError::NvmeWithoutHost);
        }
        if self.max_write_backs == 0 {
            return Err(ConfigError::NoWriteBacks);
        }
        if log.segments < LogShape::MIN_SEGMENTS {
            return Err(ConfigError::TooFewSegments(log.segments));
        }
        if log.records_per_segment == 0 {
            return Err(ConfigError::EmptySegment);
        }
        if log.slots() >= u64::from(u32::MAX) {
            return Err(ConfigError::TooManySlots { tier: Tier::Nvme, slots: log.slots() });
        }
        Ok(())
    }
}
