//! Jobs on their way and the tokens they hold until they end.

use super::log_space::{Reading, Writing};
use super::pool::{Filling, Pin, Private};
use super::probe::ProbeId;
use crate::ids::{JobId, RemoteId, RequestId, SegmentId, SlotId};
use crate::index::NodeId;
use crate::key::BlockKey;

/// A block of a request that waits for a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) request: RequestId,
    pub(super) block: u32,
}

/// Waiters of one load. Nearly always one, so that the first needs no allocation.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    pub(super) first: Option<Waiter>,
    pub(super) more: Vec<Waiter>,
}

impl Waiters {
    pub(super) fn one(waiter: Waiter) -> Self {
        Self { first: Some(waiter), more: Vec::new() }
    }

    pub(super) fn push(&mut self, waiter: Waiter) {
        if self.first.is_none() {
            self.first = Some(waiter);
        } else {
            self.more.push(waiter);
        }
    }

    pub(super) fn drain(self) -> impl Iterator<Item = Waiter> {
        self.first.into_iter().chain(self.more)
    }
}

/// The tokens of one job. `Rescue` and `Reinsert` also remember the key: their node has no slot of its own
/// that would keep it alive, so its handle may name another block by the time they end.
#[derive(Debug)]
pub(super) enum InFlight {
    Onboard {
        node: NodeId,
        source: Pin,
        target: Filling,
        waiters: Waiters,
    },
    /// `onward` is the HBM slot that the block goes on to.
    Read {
        node: NodeId,
        source: ReadFrom,
        target: Filling,
        onward: Option<Filling>,
        waiters: Waiters,
    },
    Offload {
        node: NodeId,
        source: Pin,
        target: Filling,
    },
    Write {
        node: NodeId,
        source: Pin,
        target: Writing,
    },
    /// A record worth keeping is read out of a segment that is being reclaimed, into a slot that no look-up
    /// can see...
    Rescue {
        node: NodeId,
        key: BlockKey,
        source: Reading,
        target: Private,
    },
    /// ...and written to the open segment, from there or from the host tier's own copy.
    Reinsert {
        node: NodeId,
        key: BlockKey,
        source: RescueSource,
        target: Writing,
        from: SlotId,
    },
    /// A block is read to measure its source, into a slot that no look-up can see.
    Probe {
        probe: ProbeId,
        source: ReadFrom,
        target: Private,
    },
    OpenSegment {
        segment: SegmentId,
    },
    SealSegment {
        segment: SegmentId,
    },
    /// Asks a remote store what it has.
    Lookup {
        request: RequestId,
        remote: RemoteId,
    },
    /// The call that brings the blocks of several `Read`s.
    Get {
        owner: GetOwner,
        jobs: Vec<JobId>,
    },
    Put {
        remote: RemoteId,
        sources: Vec<(Pin, NodeId)>,
    },
}

/// Where a block is read from.
#[derive(Debug)]
pub(super) enum ReadFrom {
    Log(Reading),
    Remote,
}

/// Who learns how a call's time was spent.
#[derive(Clone, Copy, Debug)]
pub(super) enum GetOwner {
    Request(RequestId),
    Probe(ProbeId),
}

#[derive(Debug)]
pub(super) enum RescueSource {
    Staged(Private),
    Resident(Pin),
}
