//! What a planner is built from, and why it may refuse.

use super::LogShape;
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
