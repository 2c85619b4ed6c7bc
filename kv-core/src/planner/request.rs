//! One request between `acquire` and `commit` or `cancel`.

use super::log_space::Reading;
use super::pool::{Pin, Private};
use super::stake::Loads;
use crate::index::{NamespaceIndex, NodeId};
use crate::key::BlockKey;
use crate::tier::Tier;
use crate::units::Nanos;
use std::ops::Range;

/// From where a block that look-up found will be brought to the top tier.
#[derive(Debug)]
pub(super) enum Source {
    /// It is there.
    Top(Pin),
    /// Another load is bringing it.
    OnItsWay,
    /// From host RAM, when HBM is the top tier.
    Host(Pin),
    /// From NVMe.
    Nvme(Reading),
}

/// What a request holds for one block of its chain.
#[derive(Debug)]
pub(super) enum Held {
    /// Nothing: no room, or already given up.
    Nothing,
    /// The source of a load that has not started; only while `acquire` runs.
    Found(Source),
    /// A slot of the top tier to compute into.
    Private(Private),
    /// The readable block in the top tier.
    Pinned(Pin, NodeId),
    /// A load that has not ended.
    Waiting,
    /// A load that failed.
    Failed,
}

impl Held {
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Nothing)
    }
}

/// Where a block was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Tier(Tier),
    Remote,
}

#[derive(Debug)]
pub(super) struct RequestBlock {
    pub(super) key: BlockKey,
    pub(super) held: Held,
    pub(super) found: Option<Found>,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) namespace: NamespaceIndex,
    pub(super) deadline: Nanos,
    pub(super) blocks: Vec<RequestBlock>,
    /// Blocks of the prefix that look-up found and that got a slot.
    pub(super) matched: u32,
    /// Blocks `0..granted` hold, or will hold, a slot.
    pub(super) granted: u32,
    /// First block whose load failed; `matched` while none did.
    pub(super) limit: u32,
    /// Loads before `limit` that have not ended.
    pub(super) pending: u32,
    /// Set by the reply: blocks `0..ready` are readable.
    pub(super) ready: Option<u32>,
    /// What it has to do with slow sources, if anything.
    pub(super) loads: Option<Box<Loads>>,
}

impl Request {
    /// The load of a waiting block ended.
    pub(super) fn load_ended(&mut self, block: u32, held: Held) {
        let failed = matches!(held, Held::Failed);
        self.blocks[block as usize].held = held;
        match (block < self.limit, failed) {
            (true, true) => self.cut(block),
            (true, false) => self.pending -= 1,
            (false, _) => {}
        }
    }

    /// Nothing is left to wait for, and it has not been answered.
    pub(super) fn is_done(&self) -> bool {
        let looking = self.loads.as_ref().is_some_and(|loads| loads.looking.is_some());
        self.ready.is_none() && self.pending == 0 && !looking
    }

    /// When it is to be answered at the latest, or to give up a part.
    pub(super) fn next_deadline(&self) -> Nanos {
        self.loads.as_ref().map_or(Nanos::NEVER, |loads| loads.deadline()).min(self.deadline)
    }

    /// Blocks from `limit` on no longer count.
    pub(super) fn cut(&mut self, limit: u32) {
        self.limit = limit;
        let waiting = |b: &&RequestBlock| matches!(b.held, Held::Waiting);
        self.pending = self.blocks[..limit as usize].iter().filter(waiting).count() as u32;
    }

    /// The first of these blocks whose load has not ended.
    pub(super) fn first_waiting(&self, blocks: Range<u32>) -> Option<u32> {
        let mut range = blocks;
        range.find(|i| matches!(self.blocks[*i as usize].held, Held::Waiting))
    }
}
