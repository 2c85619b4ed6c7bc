//! The tiers, fastest first, and small per-tier arrays.

use std::fmt;
use std::ops::{Index, IndexMut};

/// A place where a block can live. Ordered: a smaller tier is closer to the computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Tier {
    /// GPU memory.
    Hbm = 0,
    /// Pinned host memory.
    Host = 1,
    /// The log-structured local NVMe tier.
    Nvme = 2,
}

impl Tier {
    /// Every local tier, fastest first.
    pub const ALL: [Self; 3] = [Self::Hbm, Self::Host, Self::Nvme];

    /// Lower-case name, as it appears in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hbm => "hbm",
            Self::Host => "host",
            Self::Nvme => "nvme",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One value per tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerTier<T>(pub [T; 3]);

impl<T> Index<Tier> for PerTier<T> {
    type Output = T;
    fn index(&self, tier: Tier) -> &T {
        &self.0[tier as usize]
    }
}
impl<T> IndexMut<Tier> for PerTier<T> {
    fn index_mut(&mut self, tier: Tier) -> &mut T {
        &mut self.0[tier as usize]
    }
}
