//! Loads that the rule admitted: a [`Stake`] holds the ticket from the decision until its blocks are all there, one has
//! failed, the deadline has come or the request has gone; it is settled exactly once. A request has at most two, one
//! from NVMe and one from a remote store; what it waits for both at once is charged once.

use super::Planner;
use super::request::{Held, Request, RequestBlock};
use super::slow::{Reasons, Slow};
use crate::cost::{LoadTimes, Outcome, Ticket};
use crate::ids::{JobId, RemoteId};
use crate::job::TransferError;
use crate::units::Nanos;
use slotmap::DefaultKey;
use std::ops::Range;

/// A load that the rule admitted.
#[derive(Debug)]
pub(super) struct Stake {
    ticket: Ticket,
    /// Asked when the first source is unusually late.
    pub(super) hedge: Option<Hedged>,
    /// When it was decided.
    pub(super) since: Nanos,
    /// When to give it up.
    pub(super) deadline: Nanos,
    /// What it brings.
    pub(super) blocks: Range<u32>,
    /// How many of these the request still waits for.
    pub(super) pending: u32,
    /// Not all of what the ticket is about is really loaded, so that its time says little.
    pub(super) partial: bool,
    pub(super) lookup: Nanos,
    pub(super) decode: Nanos,
    /// The hedge delivered it.
    pub(super) overtaken: bool,
}

#[derive(Debug)]
pub(super) struct Hedged {
    pub(super) ticket: Ticket,
    pub(super) remote: RemoteId,
    pub(super) after: Nanos,
}

/// A remote store was asked what it has of the blocks of the stake.
#[derive(Debug)]
pub(super) struct Looking {
    pub(super) job: JobId,
    pub(super) stake: Stake,
    /// Bit for each store that was asked so far.
    pub(super) tried: u16,
}

/// What a request has to do with slow sources.
#[derive(Debug, Default)]
pub(super) struct Loads {
    pub(super) nvme: Option<Stake>,
    pub(super) looking: Option<Looking>,
    pub(super) remote: Option<Stake>,
    /// Up to when waiting was charged.
    pub(super) charged: Nanos,
    pub(super) why: Reasons,
}

/// Which of a request's loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Nvme,
    Lookup,
    Remote,
}

/// How a stake ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Arrived,
    Late,
    Failed,
    /// Says nothing about the source.
    Cancelled,
}

impl From<TransferError> for End {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Late => Self::Late,
            // It was never begun.
            TransferError::Down => Self::Cancelled,
            _ => Self::Failed,
        }
    }
}

impl Loads {
    /// The earliest deadline of the rule.
    pub(super) fn deadline(&self) -> Nanos {
        let stakes = [&self.nvme, &self.remote].into_iter().flatten();
        let looking = self.looking.as_ref().map(|l| &l.stake);
        stakes.chain(looking).map(|s| s.deadline).min().unwrap_or(Nanos::NEVER)
    }

    pub(super) fn stake(&mut self, which: Which) -> Option<&mut Stake> {
        match which {
            Which::Nvme => self.nvme.as_mut(),
            Which::Lookup => self.looking.as_mut().map(|l| &mut l.stake),
            Which::Remote => self.remote.as_mut(),
        }
    }

    fn take(&mut self, which: Which) -> Option<Stake> {
        match which {
            Which::Nvme => self.nvme.take(),
            Which::Lookup => self.looking.take().map(|l| l.stake),
            Which::Remote => self.remote.take(),
        }
    }

    const ALL: [Which; 3] = [Which::Nvme, Which::Lookup, Which::Remote];
}

impl Stake {
    pub(super) fn new(ticket: Ticket, since: Nanos, deadline: Nanos, blocks: Range<u32>) -> Self {
        Self {
            ticket,
            hedge: None,
            since,
            deadline,
            blocks,
            pending: 0,
            partial: false,
            lookup: Nanos(0),
            decode: Nanos(0),
            overtaken: false,
        }
    }

    /// Blocks up to `end` are being brought; there was no room for others.
    pub(super) fn bring(&mut self, blocks: &[RequestBlock], end: u32) {
        self.partial = end < self.blocks.end;
        self.blocks.end = end.max(self.blocks.start);
        let brought = &blocks[self.blocks.start as usize..self.blocks.end as usize];
        self.pending = brought.iter().filter(|b| matches!(b.held, Held::Waiting)).count() as u32;
    }
}

impl Slow {
    /// The load is over.
    pub(super) fn settle(&mut self, now: Nanos, stake: Stake, end: End, charged: &mut Nanos) {
        let waited = now - stake.since.max(*charged);
        *charged = now.max(*charged);
        let ran = now - stake.since;
        let mut outcome = match end {
            End::Arrived if stake.partial => Outcome::Cancelled { waited },
            End::Arrived => {
                let times = LoadTimes {
                    lookup: stake.lookup,
                    transfer: ran - stake.lookup - stake.decode,
                    decode: stake.decode,
                };
                Outcome::Arrived { waited, times }
            }
            End::Late => Outcome::TooLate { waited, ran },
            End::Failed => Outcome::Failed { waited },
            End::Cancelled => Outcome::Cancelled { waited },
        };
        if let Some(hedge) = stake.hedge {
            let mut second = Outcome::NotStarted;
            let ran = now - hedge.after;
            if stake.overtaken && end == End::Arrived && !stake.partial {
                outcome = Outcome::Overtaken { waited };
                let times =
                    LoadTimes { transfer: ran - stake.decode, decode: stake.decode, ..LoadTimes::default() };
                second = Outcome::Arrived { waited: ran, times };
            }
            self.cost.settle(now, hedge.ticket, second);
        }
        self.cost.settle(now, stake.ticket, outcome);
    }
}

impl Planner {
    /// A load of a request is over: the cost model is told.
    pub(super) fn end_stake(&mut self, now: Nanos, id: DefaultKey, which: Which, end: End) {
        let (Some(slow), Some(request)) = (&mut self.slow, self.requests.get_mut(id)) else { return };
        let Some(loads) = &mut request.loads else { return };
        if let Some(stake) = loads.take(which) {
            self.stats.loads_late += u64::from(end == End::Late);
            slow.settle(now, stake, end, &mut loads.charged);
        }
    }

    /// The same for a stake that was taken out of its request.
    pub(super) fn end_taken(&mut self, now: Nanos, id: DefaultKey, stake: Stake, end: End) {
        let Some(slow) = &mut self.slow else { return };
        let mut gone = Nanos(0);
        let loads = self.requests.get_mut(id).and_then(|r| r.loads.as_mut());
        self.stats.loads_late += u64::from(end == End::Late);
        slow.settle(now, stake, end, loads.map_or(&mut gone, |l| &mut l.charged));
    }

    /// The request needs none of its slow loads any more.
    pub(super) fn end_all_stakes(&mut self, now: Nanos, id: DefaultKey, end: End) {
        for which in Loads::ALL {
            self.end_stake(now, id, which, end);
        }
    }

    /// The load of one block of a request has ended. True when the request can be answered.
    pub(super) fn load_ended(
        &mut self,
        now: Nanos,
        id: DefaultKey,
        block: u32,
        held: Result<Held, TransferError>,
    ) -> bool {
        let Some(request) = self.requests.get_mut(id) else { return false };
        let failed = held.as_ref().err().copied();
        request.load_ended(block, held.unwrap_or(Held::Failed));
        for which in [Which::Nvme, Which::Remote] {
            let stake = request.loads.as_mut().and_then(|loads| loads.stake(which));
            let Some(stake) = stake.filter(|s| s.blocks.contains(&block)) else { continue };
            stake.pending = stake.pending.saturating_sub(1);
            match failed {
                Some(error) => self.end_stake(now, id, which, error.into()),
                None if stake.pending == 0 => self.end_stake(now, id, which, End::Arrived),
                None => {}
            }
            break;
        }
        if failed.is_some() {
            self.drop_beyond_limit(now, id);
        }
        self.requests.get(id).is_some_and(Request::is_done)
    }

    /// What comes behind a block that will not come is of no use to the request.
    pub(super) fn drop_beyond_limit(&mut self, now: Nanos, id: DefaultKey) {
        for which in Loads::ALL {
            let Some(request) = self.requests.get_mut(id) else { return };
            let limit = request.limit;
            let stake = request.loads.as_mut().and_then(|loads| loads.stake(which));
            if stake.is_some_and(|stake| stake.blocks.start > limit) {
                self.end_stake(now, id, which, End::Cancelled);
            }
        }
    }

    /// The deadline of a load has come: the request goes on without what has not arrived.
    pub(super) fn give_up_late(&mut self, now: Nanos, id: DefaultKey) {
        for which in Loads::ALL {
            let Some(request) = self.requests.get_mut(id) else { return };
            let stake = request.loads.as_mut().and_then(|loads| loads.stake(which));
            let Some(blocks) = stake.filter(|s| s.deadline <= now).map(|s| s.blocks.clone()) else {
                continue;
            };
            if which != Which::Lookup
                && let Some(first) = request.first_waiting(blocks)
            {
                request.cut(first.min(request.limit));
            }
            self.end_stake(now, id, which, End::Late);
            self.drop_beyond_limit(now, id);
        }
    }
}
