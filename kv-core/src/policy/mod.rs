//! Eviction as a trait, one file per algorithm.

use crate::ids::SlotId;
use crate::key::BlockKey;
use crate::units::Nanos;

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
/// The planner touches the blocks of a request **tail first**, so that an ancestor is always at least as
/// recent as its descendants, and asks for victims with a filter that admits only unpinned leaves.
/// Implementations allocate in proportion to the capacity they were built with and not per call.
pub trait EvictionPolicy: Send {
    /// Name on the command line and in reports.
    fn name(&self) -> &'static str;
    /// `slot` became resident. It is not resident now.
    fn insert(&mut self, slot: SlotId, touch: &Touch);
    /// `slot`, which is resident, was used by a request.
    fn hit(&mut self, slot: SlotId, touch: &Touch);
    /// `slot` is no longer resident (evicted, invalidated or purged).
    fn remove(&mut self, slot: SlotId);
    /// The block that is worth least among those for which `evictable` holds. It stays resident until the
    /// planner calls [`EvictionPolicy::remove`].
    fn victim(&mut self, now: Nanos, evictable: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId>;
    /// Visits resident blocks, least valuable first, until `visit` returns `false`. Used for write-behind,
    /// so an approximate order is enough.
    fn coldest(&self, visit: &mut dyn FnMut(SlotId) -> bool);
}
