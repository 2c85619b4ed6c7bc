//! What a runtime tells about loads: tickets are given out by decisions and consumed by outcomes.

use super::forecast::{LoadForecast, LoadSize, LoadTimes};
use super::ledger::Reservation;
use super::model::{CostModel, SourceId};
use crate::units::Nanos;

/// A load that was given up counts against its source only after this many times its usual duration: short deadlines
/// are the rule's choice.
const UNUSUALLY_LATE: f64 = 2.0;
/// A probe is charged one part in this many of its duration: what a read in the background is assumed to take from
/// the requests beside it (3 %).
const PROBE_PART: u64 = 32;

/// A load, a hedge or a probe under way. Exactly one [`Outcome`] is told for it; a ticket that is dropped keeps its
/// reservation for ever, which is safe and wasteful.
#[derive(Debug)]
#[must_use = "what is reserved stays so until the ticket is settled"]
pub struct Ticket {
    pub(super) source: SourceId,
    pub(super) size: LoadSize,
    pub(super) forecast: LoadForecast,
    pub(super) stake: Stake,
}

/// What the ledger has to do with it.
#[derive(Debug)]
pub(super) enum Stake {
    /// A request waits. `saved` is what recomputing would surely have taken.
    Waiting { reservation: Reservation, deadline: Nanos, saved: Nanos },
    /// Nobody waits.
    Probing { reservation: Reservation, deadline: Nanos },
    /// A hedge: the load that it stands beside has the stake.
    Nothing,
}

impl Stake {
    /// What a probe may cost.
    pub(super) const fn share_of_probe(deadline: Nanos) -> Nanos {
        Nanos(deadline.0 / PROBE_PART)
    }
}

/// What became of a load. `waited` counts from the decision and is how long the request did nothing but wait; for
/// hedges and probes it is how long they ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All bytes are there and verified.
    Arrived {
        /// Until they could be used. In a race that the load has won: from the decision to its arrival.
        waited: Nanos,
        /// How the time was spent.
        times: LoadTimes,
    },
    /// Given up because of its deadline, or a race that the recompute has won.
    TooLate {
        /// Until the recompute began.
        waited: Nanos,
        /// Until the load was given up: as long as `waited`, or longer in a race.
        ran: Nanos,
    },
    /// The hedge was faster, so the request had its bytes after `waited`.
    Overtaken {
        /// Until they could be used.
        waited: Nanos,
    },
    /// An error, a miss after a promise, a short value, or bytes that verification refused.
    Failed {
        /// Until that was known.
        waited: Nanos,
    },
    /// The request went away. Says nothing about the source.
    Cancelled {
        /// Until then.
        waited: Nanos,
    },
    /// A hedge or probe that was never sent.
    NotStarted,
}

impl Outcome {
    /// How long the request waited, and whether it then had its bytes.
    const fn waited(&self) -> (Nanos, bool) {
        match *self {
            Self::Arrived { waited, .. } | Self::Overtaken { waited } => (waited, true),
            Self::TooLate { waited, .. } | Self::Failed { waited } | Self::Cancelled { waited } => {
                (waited, false)
            }
            Self::NotStarted => (Nanos(0), false),
        }
    }
}

impl CostModel {
    /// Tells what became of a load, hedge or probe. The pass that follows is told with
    /// [`observed_prefill`](Self::observed_prefill).
    pub fn settle(&mut self, now: Nanos, ticket: Ticket, outcome: Outcome) {
        let Ticket { source, size, forecast, stake } = ticket;
        let (waited, had_bytes) = outcome.waited();
        let counted = !matches!(stake, Stake::Nothing);
        let probed = matches!(stake, Stake::Probing { .. });
        match stake {
            Stake::Waiting { reservation, deadline, saved } if had_bytes => {
                // Whoever was overtaken in a race had been running for that long.
                self.ledger.gained(reservation, waited, saved.max(waited - deadline));
            }
            Stake::Waiting { reservation, .. } => self.ledger.lost(reservation, waited),
            Stake::Probing { reservation, deadline } => {
                self.ledger.lost(reservation, Stake::share_of_probe(waited.min(deadline)));
            }
            Stake::Nothing => {}
        }
        let Some(source) = self.sources.get_mut(usize::from(source.0)) else { return };
        if probed {
            source.next_probe = now;
        }
        if counted {
            source.load.end(size.bytes);
        }
        match outcome {
            Outcome::Arrived { times, .. } => {
                source.load.arrived(now, &forecast, &size, &times);
                source.risk.observe(false);
                source.breaker.good();
            }
            Outcome::TooLate { ran: seen, .. } | Outcome::Overtaken { waited: seen } => {
                let seen = seen.as_secs_f64();
                source.load.late(now, &forecast, seen);
                if seen > forecast.time(UNUSUALLY_LATE) {
                    source.breaker.bad(now);
                }
            }
            Outcome::Failed { .. } => {
                source.risk.observe(true);
                source.breaker.bad(now);
            }
            Outcome::Cancelled { .. } | Outcome::NotStarted => {}
        }
    }
}
