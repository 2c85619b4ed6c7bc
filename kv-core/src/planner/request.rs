//! One request between `acquire` and `commit` or `cancel`.

use super::log_space::Reading;
use super::pool::{Pin, Private};
use crate::index::{NamespaceIndex, NodeId};
use crate::key::BlockKey;
use crate::tier::Tier;
use crate::units::Nanos;

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

#[derive(Debug)]
pub(super) struct RequestBlock {
    pub(super) key: BlockKey,
    pub(super) held: Held,
    /// Where look-up found it.
    pub(super) found: Option<Tier>,
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
}

impl Request {
    /// The load of a waiting block ended. True when the request can be answered.
    pub(super) fn load_ended(&mut self, block: u32, held: Held) -> bool {
        let failed = matches!(held, Held::Failed);
        self.blocks[block as usize].held = held;
        if block >= self.limit {
            return false;
        }
        if failed {
            self.cut(block);
        } else {
            self.pending -= 1;
        }
        self.pending == 0
    }

    /// Blocks from `limit` on no longer count.
    pub(super) fn cut(&mut self, limit: u32) {
        self.limit = limit;
        let waiting = |b: &&RequestBlock| matches!(b.held, Held::Waiting);
        self.pending = self.blocks[..limit as usize].iter().filter(waiting).count() as u32;
    }

    /// The first block whose load has not ended.
    pub(super) fn first_waiting(&self) -> Option<u32> {
        self.blocks.iter().position(|b| matches!(b.held, Held::Waiting)).map(|i| i as u32)
    }
}
