//! How a process that is to be killed and its killer understand each other.
//!
//! The victim writes names of blocks to its standard output, eight bytes each, little endian: blocks that
//! were readable from NVMe before a flush that has returned. [`STILL_THERE`] names none; a victim whose
//! killer is gone ends when it cannot be written.

use std::io::{self, Write};
use std::path::Path;

use kv_core::key::BlockKey;
use kv_core::policy::PolicyKind;
use kv_cuda::DeviceChoice;
use kv_tiers::engine::EngineConfig;
use kv_tiers::nvme::{LogConfig, NvmeConfig, OpenMode};

use crate::chains;

/// Not a multiple of anything, so that padding is exercised.
const BLOCK: usize = 4000;
/// Far fewer than are written in a life, so that write-behind is always busy.
const HOST_SLOTS: u32 = 64;
/// Blocks of the longest chain.
pub const LONGEST: u64 = 24;

/// Names no block.
pub const STILL_THERE: u64 = u64::MAX;

/// What kind of log is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// Grows from life to life and never has to reclaim.
    Growing,
    /// So small that it reclaims all the time.
    Reclaiming,
}

impl Series {
    /// As on the victim's command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Growing => "growing",
            Self::Reclaiming => "reclaiming",
        }
    }

    /// The series of that name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        [Self::Growing, Self::Reclaiming].into_iter().find(|series| series.name() == name)
    }

    /// An engine on the log in `dir`.
    #[must_use]
    pub fn config(self, dir: &Path) -> EngineConfig {
        let (segments, records_per_segment) = match self {
            Self::Growing => (192, 64),
            Self::Reclaiming => (6, 16),
        };
        let log = LogConfig { segments, records_per_segment, mode: OpenMode::Recover };
        EngineConfig {
            block_bytes: BLOCK,
            hbm: None,
            device: DeviceChoice::Host,
            host_slots: HOST_SLOTS,
            nvme: Some(NvmeConfig { queue_depth: Some(16), ..NvmeConfig::new(dir, log) }),
            policy: PolicyKind::Lru,
            nvme_budget: None,
            max_write_backs: 16,
            slow: None,
        }
    }

    /// A victim computes nothing new after it has written so many records.
    #[must_use]
    pub const fn records_per_life(self) -> u64 {
        match self {
            Self::Growing => 1000,
            Self::Reclaiming => u64::MAX,
        }
    }

    /// Segments that one life of a growing log may take, at most: its records, what was in host RAM when it
    /// stopped, one that it leaves half-full and one in reserve.
    #[must_use]
    pub const fn segments_per_life(self) -> usize {
        (1000 + HOST_SLOTS as usize + LONGEST as usize).div_ceil(64) + 2
    }
}

/// Writes acknowledgements, all of them with one call.
///
/// # Errors
/// Nobody listens any more.
pub fn acknowledge(keys: &[BlockKey], to: &mut impl Write) -> io::Result<()> {
    let names = keys.iter().filter_map(|key| chains::name(*key)).map(|(chain, index)| chain << 8 | index);
    let bytes: Vec<u8> = names.chain([STILL_THERE]).flat_map(u64::to_le_bytes).collect();
    to.write_all(&bytes)?;
    to.flush()
}

/// What was acknowledged, and whether anything was heard at all. A name that was cut short is none.
#[must_use]
pub fn acknowledged(heard: &[u8]) -> (Vec<BlockKey>, bool) {
    let (names, _) = heard.as_chunks::<8>();
    let names = names.iter().map(|name| u64::from_le_bytes(*name)).filter(|name| *name != STILL_THERE);
    (names.map(|name| chains::key(name >> 8, name & 0xFF)).collect(), !heard.is_empty())
}
