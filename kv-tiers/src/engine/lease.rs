//! What a caller holds between `acquire` and `commit`: the promise that its blocks stay where they are.

use super::ticket::Ticket;
use super::{EngineError, Shared};
use crate::sync::lock;
use kv_core::ids::{RequestId, SlotId};
use kv_core::planner::{Ready, Reasons};
use kv_core::tier::Tier;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// One request in progress. Dropping it cancels the request.
#[must_use = "dropping a lease cancels its request"]
pub struct Lease {
    shared: Arc<Shared>,
    ticket: Arc<Ticket>,
    request: RequestId,
    /// The slots of blocks `0..granted`, fetched once the request was answered.
    slots: OnceLock<Vec<SlotId>>,
    ended: bool,
}

/// A commit that was refused, with the lease to try again.
#[derive(Debug, thiserror::Error)]
#[error("the commit was refused: {reason}")]
pub struct Refused {
    /// Still valid.
    pub lease: Lease,
    /// What was wrong.
    #[source]
    pub reason: EngineError,
}

impl Lease {
    pub(super) fn new(shared: Arc<Shared>, ticket: Arc<Ticket>, request: RequestId) -> Self {
        Self { shared, ticket, request, slots: OnceLock::new(), ended: false }
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.request
    }

    /// The answer, if it is there: which blocks are ready, and which have slots to compute into.
    #[must_use]
    pub fn poll(&self) -> Option<Ready> {
        self.ticket.poll()
    }

    /// Waits for the answer. It comes when all loads have ended or the request's patience has.
    #[must_use]
    pub fn wait(&self) -> Ready {
        self.ticket.wait()
    }

    /// Waits for the answer for at most `limit`.
    #[must_use]
    pub fn wait_for(&self, limit: Duration) -> Option<Ready> {
        self.ticket.wait_until(Instant::now() + limit)
    }

    /// Why slow sources were used, or not; `None` if none was asked about.
    #[must_use]
    pub fn why(&self) -> Option<Reasons> {
        lock(&self.shared.core).planner.why(self.request)
    }

    /// The slots of blocks `0..granted` in the top tier. Empty until the request is answered.
    #[must_use]
    pub fn slots(&self) -> &[SlotId] {
        if self.ticket.poll().is_none() {
            return &[];
        }
        self.slots.get_or_init(|| {
            let core = lock(&self.shared.core);
            core.planner.slots(self.request).map(|slots| slots.flatten().collect()).unwrap_or_default()
        })
    }

    /// The bytes of a ready block, when host RAM is the top tier.
    ///
    /// # Errors
    /// [`EngineError::NoSuchBlock`] for a block that is not ready, [`EngineError::NotInHostMemory`].
    pub fn host_block(&self, index: u32) -> Result<&[u8], EngineError> {
        let ready = self.poll().map_or(0, |r| r.ready);
        let slot = self.host_slot(index, 0..ready, "read")?;
        // SAFETY: the slot is one of this arena's. The planner keeps a ready block pinned until this lease
        // ends, and the slice borrows the lease; a pinned slot is written by nobody.
        Ok(unsafe { self.shared.arena.payload(slot) })
    }

    /// The bytes of a block that is not ready, to compute into, when host RAM is the top tier.
    ///
    /// # Errors
    /// [`EngineError::NoSuchBlock`] for a block that is ready or has no slot,
    /// [`EngineError::NotInHostMemory`].
    pub fn host_block_mut(&mut self, index: u32) -> Result<&mut [u8], EngineError> {
        let range = self.poll().map_or(0..0, |r| r.ready..r.granted);
        let slot = self.host_slot(index, range, "written")?;
        // SAFETY: the slot is one of this arena's. The planner gave it to this request alone, nobody else
        // learns of it before the commit, and the slice borrows the lease exclusively.
        Ok(unsafe { self.shared.arena.payload_mut(slot) })
    }

    /// Notes the [`payload_checksum`](kv_core::payload_checksum) of what was written to a block since
    /// [`Lease::host_block_mut`], made on the way: the block then goes to NVMe without being read for it. A wrong checksum
    /// makes the block a miss when it comes back.
    ///
    /// # Errors
    /// As [`Lease::host_block_mut`].
    pub fn note_checksum(&mut self, index: u32, checksum: u64) -> Result<(), EngineError> {
        let range = self.poll().map_or(0..0, |r| r.ready..r.granted);
        let slot = self.host_slot(index, range, "written")?;
        self.shared.arena.note_checksum(slot, checksum);
        Ok(())
    }

    fn host_slot(&self, index: u32, range: Range<u32>, verb: &'static str) -> Result<SlotId, EngineError> {
        if self.shared.top != Tier::Host {
            return Err(EngineError::NotInHostMemory);
        }
        let slot = self.slots().get(index as usize).copied();
        slot.filter(|_| range.contains(&index)).ok_or(EngineError::NoSuchBlock {
            index,
            first: range.start,
            end: range.end,
            verb,
        })
    }

    /// Ends the request: blocks `0..computed` hold valid KV and may be cached; the others are given back.
    ///
    /// # Errors
    /// [`Refused`], with the lease, when `computed` is out of range or the answer is not there yet.
    pub fn commit(mut self, computed: u32) -> Result<(), Refused> {
        let request = self.request;
        match self.shared.call(|planner, now, out| planner.commit(now, request, computed, out)) {
            Ok(()) => {
                self.ended = true;
                Ok(())
            }
            Err(reason) => Err(Refused { lease: self, reason: reason.into() }),
        }
    }

    /// Ends the request without caching anything. Loads on their way go on and fill the cache.
    pub fn cancel(self) {}
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.ended {
            let request = self.request;
            self.shared.cancel(request);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("request", &self.request).field("answer", &self.poll()).finish()
    }
}
