//! What the planner answers: jobs for the hands, replies for callers, events for routers.

use crate::ids::RequestId;
use crate::job::{Job, RemoteJob};
use crate::key::BlockKey;
use crate::tier::{PerTier, Tier};
use crate::units::Nanos;

/// Filled by the planner, emptied by its driver. Reused, so that the steady state allocates nothing.
#[derive(Clone, Debug)]
pub struct Outbox {
    /// Work to start now. Jobs of one outbox are independent of each other.
    pub jobs: Vec<Job>,
    /// Calls to remote stores, to start now.
    pub remote_jobs: Vec<RemoteJob>,
    /// Requests that can go on.
    pub replies: Vec<Ready>,
    /// What became, or is no longer, readable where.
    pub events: Vec<Event>,
    /// A new deadline: [`Planner::tick`](super::Planner::tick) wants to be called by then.
    pub tick_by: Nanos,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            jobs: Vec::new(),
            remote_jobs: Vec::new(),
            replies: Vec::new(),
            events: Vec::new(),
            tick_by: Nanos::NEVER,
        }
    }
}

impl Outbox {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.tick_by = Nanos::NEVER;
        self.jobs.clear();
        self.remote_jobs.clear();
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
    /// And how many came from remote stores.
    pub remote_hits: u32,
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
