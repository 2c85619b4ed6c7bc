//! Which block of a tier leaves first (eviction), and which block is worth a write to NVMe (admission).
//!
//! One file per algorithm, all of the same shape. `cargo run --release -p kv-core --example policy_table`
//! compares them on traces, as shares of the [optimum](Optimum).

mod adaptive;
mod admission;
mod heap;
mod history;
mod hit_reward;
mod list;
mod lru;
mod optimal;
mod s3fifo;

pub use adaptive::Adaptive;
pub use admission::{BytesPerDay, NvmeAdmission, Offer};
pub use hit_reward::HitReward;
pub use lru::Lru;
pub use optimal::Optimum;
pub use s3fifo::S3Fifo;

use crate::ids::SlotId;
use crate::key::BlockKey;
use crate::units::Nanos;
use std::fmt;
use std::str::FromStr;

/// What a policy is told when a block is inserted or hit.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    /// Name of the block (already uniform: its low half may be used as a hash).
    pub key: BlockKey,
    /// Name of its parent; [`BlockKey::ROOT`] for the first block of a chain.
    pub parent: BlockKey,
    /// Position in its chain, 0 for the first block.
    pub depth: u32,
    /// Virtual or real time of the request.
    pub now: Nanos,
}

/// Ranks the resident blocks of one tier.
///
/// The planner touches the blocks of a request **tail first** and down to depth 0, so that an ancestor is
/// always at least as recent as its descendants, and asks for victims with a filter that admits only
/// unpinned leaves. Implementations allocate in proportion to the capacity they were built with and not per
/// call. A slot outside the capacity is ignored.
pub trait EvictionPolicy: Send {
    /// Name on the command line and in reports.
    fn name(&self) -> &'static str;
    /// `slot` became resident. It is not resident now.
    fn insert(&mut self, slot: SlotId, touch: &Touch);
    /// `slot`, which is resident, was used by a request.
    fn hit(&mut self, slot: SlotId, touch: &Touch);
    /// `slot` is no longer resident (evicted, invalidated or purged).
    fn remove(&mut self, slot: SlotId);
    /// The block that is worth least among those for which `evictable` holds; `None` only if it holds for
    /// none. It stays resident until the planner calls [`EvictionPolicy::remove`].
    fn victim(&mut self, now: Nanos, evictable: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId>;
    /// Offers resident blocks to `take`, those worth least first, until it has taken `many` or refuses all that
    /// are left. What it takes is no longer resident. To take one may make it accept others: a parent becomes
    /// a leaf. Returns how many it took.
    ///
    /// One call for many victims lets a policy go over the blocks that are refused (a long chain that is pinned
    /// by the very request that needs the room, say) once and not once per victim.
    fn evict(&mut self, now: Nanos, many: usize, take: &mut dyn FnMut(SlotId) -> bool) -> usize {
        for taken in 0..many {
            let Some(slot) = self.victim(now, take) else { return taken };
            self.remove(slot);
        }
        many
    }
    /// Visits resident blocks, least valuable first, until `visit` returns `false`. Used for write-behind,
    /// so an approximate order is enough.
    fn coldest(&self, visit: &mut dyn FnMut(SlotId) -> bool);
}

/// Which policy ranks a tier's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// [`Adaptive`].
    #[default]
    Adaptive,
    /// [`Lru`].
    Lru,
    /// [`HitReward`].
    HitReward,
    /// [`S3Fifo`].
    S3Fifo,
}

impl PolicyKind {
    /// Every kind, the default first.
    pub const ALL: [Self; 4] = [Self::Adaptive, Self::Lru, Self::HitReward, Self::S3Fifo];

    /// Name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Lru => "lru",
            Self::HitReward => "hit-reward",
            Self::S3Fifo => "s3fifo",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no policy's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no eviction policy is called {0:?}: choose one of {names}", names = PolicyKind::ALL.map(PolicyKind::name).join(", "))]
pub struct UnknownPolicy(pub String);

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    /// ```
    /// use kv_core::policy::PolicyKind;
    /// assert_eq!("lru".parse(), Ok(PolicyKind::Lru));
    /// assert!("mru".parse::<PolicyKind>().is_err());
    /// ```
    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}

/// A policy for slots `0..capacity`.
#[must_use]
pub fn build(kind: PolicyKind, capacity: usize) -> Box<dyn EvictionPolicy> {
    match kind {
        PolicyKind::Adaptive => Box::new(Adaptive::new(capacity)),
        PolicyKind::Lru => Box::new(Lru::new(capacity)),
        PolicyKind::HitReward => Box::new(HitReward::new(capacity)),
        PolicyKind::S3Fifo => Box::new(S3Fifo::new(capacity)),
    }
}
