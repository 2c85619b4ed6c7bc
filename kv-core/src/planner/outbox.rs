//! What the planner answers: jobs for the hands, replies for callers, events for routers.

use crate::ids::RequestId;
use crate::job::Job;
use crate::key::BlockKey;
use crate::tier::{PerTier, Tier};

/// Filled by the planner, emptied by its driver. Reused, so that the steady state allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    /// Work to start now. Jobs of one outbox are independent of each other.
    pub jobs: Vec<Job>,
    /// Requests that can go on.
    pub replies: Vec<Ready>,
    /// What became, or is no longer, readable where.
    pub events: Vec<Event>,
}

impl Outbox {
    /// Empties all three, keeping their memory.
    pub fn clear(&mut self) {
        self.jobs.clear();
        self.replies.clear();
        self.events.clear();
    }
}

/// A request whose loads have all ended, well or badly, or whose deadline has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Which request.
    pub request: RequestId,
    /// Blocks `0..ready` of the chain are readable in the top tier.
    pub ready: u32,
    /// Blocks `ready..granted` have a slot of their own to compute into. Blocks from `granted` on found no
    /// room and are not cached.
    pub granted: u32,
    /// Of the ready blocks, how many were found in each tier.
    pub hits: PerTier<u32>,
    /// Blocks that a look-up promised and that failed to load or came too late; they count as misses.
    pub lost: u32,
}

/// A change of residency, as routers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The block can be read from this tier.
    Stored {
        /// Where.
        tier: Tier,
        /// Which.
        key: BlockKey,
        /// The block before it; [`BlockKey::ROOT`] for a first block.
        parent: BlockKey,
    },
    /// The block can no longer be read from this tier.
    Removed {
        /// Where.
        tier: Tier,
        /// Which.
        key: BlockKey,
    },
}
