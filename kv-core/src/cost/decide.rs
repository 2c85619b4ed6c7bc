//! One decision: load or recompute, from where, until when, and what is probed beside it.

use super::breaker::Gate;
use super::explain::{Decided, Explanation, SourceTerms};
use super::forecast::{LoadForecast, LoadSize};
use super::model::{CostModel, Source, SourceId};
use super::recompute::{RecomputeForecast, TokenRange};
use super::rule::{Candidate, HEDGE_AT, MARGIN, MOST_WAIT, Trade, WhenLate};
use super::settle::{Stake, Ticket};
use crate::units::{Bytes, Nanos, Tokens};

/// One request in this many takes a probe along.
const PROBE_ONE_IN: u64 = 100;
/// A source that is refused is also probed when it was not observed for so long: its congestion may be over. The time
/// grows by half with every such probe, up to the longest, and is the first again when the source is used.
pub(super) const PATIENCE: Nanos = Nanos::from_millis(2_000);
const LONGEST_PATIENCE: Nanos = Nanos::from_millis(60_000);
/// The largest probe. Large, because time per byte cannot be told from time to the first byte by small ones; two
/// probes in three are a quarter and a sixteenth of what they could be.
const PROBE_BYTES: u64 = 1 << 30;
/// A probe is given up after so many times what recomputing would take: a source slower than that is as good as none.
const PROBE_PATIENCE: f64 = 8.0;
/// But not sooner than this, in seconds.
const SHORTEST_PROBE: f64 = 4.0;

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The tokens that would not have to be computed: from the end of what the request has in fast tiers to the end of
    /// what the sources have.
    pub range: TokenRange,
    /// The end of the prompt. What lies behind the range is computed in any case.
    pub prompt_end: Tokens,
    /// What the runtime can do with a late load.
    pub when_late: WhenLate,
}

/// A source has the whole range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which.
    pub source: SourceId,
    /// What it would deliver.
    pub size: LoadSize,
}

/// A load that a request waits for.
#[derive(Debug)]
pub struct Load {
    /// Where from.
    pub source: SourceId,
    /// From the decision on: when to stop waiting (or, with [`WhenLate::Race`], to begin to recompute beside it).
    pub deadline: Nanos,
    /// A second source to ask if the first is unusually late.
    pub hedge: Option<Hedge>,
    /// To be settled.
    pub ticket: Ticket,
}

/// The same bytes from another source. The deadline is the load's.
#[derive(Debug)]
pub struct Hedge {
    /// Where from.
    pub source: SourceId,
    /// From the decision on: when to ask it.
    pub after: Nanos,
    /// To be settled, [`NotStarted`](super::Outcome::NotStarted) if the first source was in time.
    pub ticket: Ticket,
}

/// A read that nobody waits for, so that a source which is not used stays measured.
#[derive(Debug)]
pub struct Probe {
    /// Where from.
    pub source: SourceId,
    /// How much: the first bytes of what was offered.
    pub bytes: Bytes,
    /// From the decision on: when to give it up.
    pub deadline: Nanos,
    /// To be settled.
    pub ticket: Ticket,
}

/// An answer.
#[derive(Debug)]
pub struct Decision {
    /// The load to wait for; without one the range is computed.
    pub load: Option<Load>,
    /// What is to be done beside it.
    pub probe: Option<Probe>,
    /// Why.
    pub why: Explanation,
}

/// What it would cost to have a range here, for routers that compare places. Seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quote {
    /// By computing it.
    pub recompute: f64,
    /// Expected by the better way.
    pub expected: f64,
    /// Nine requests in ten take no longer.
    pub p90: f64,
    /// The source that would be used.
    pub source: Option<SourceId>,
}

/// An offer and what the rule makes of it.
#[derive(Clone, Copy)]
struct Weighed {
    offer: Offer,
    load: LoadForecast,
    risk: f64,
    candidate: Candidate,
}

/// The two cheapest offers that may be used, and why others may not.
struct Weighing {
    best: Option<Weighed>,
    second: Option<Weighed>,
    /// The obstacle of an offer that may not be used at all.
    obstacle: Decided,
}

fn nanos(seconds: f64) -> Nanos {
    // Saturating: a float that is no time is none.
    Nanos((seconds * 1e9) as u64)
}

impl CostModel {
    /// Load or recompute? `dice` are 64 random bits; nothing but the choice of probes depends on them. Offers of
    /// sources that are not this model's are passed over.
    pub fn decide(&mut self, now: Nanos, ask: &Ask, offers: &[Offer], dice: u64) -> Decision {
        let recompute = self.curve.forecast(now, ask.range);
        let before = self.ledger.balance();
        let longest = self.longest(now, ask);
        let weighing = self.weigh(now, ask, &recompute, offers, longest);
        let mut why = Explanation {
            range: ask.range,
            recompute,
            source: None,
            before,
            after: before,
            decided: weighing.obstacle,
        };
        let mut wait_for = None;
        if let Some(mut best) = weighing.best {
            let wanted = worth(&recompute, &best.candidate);
            let room = self.ledger.room().as_secs_f64();
            if wanted && best.candidate.deadline > room {
                // Waiting less may still be worth it.
                let source = &self.sources[usize::from(best.offer.source.0)];
                best.candidate = trade(source, ask, &recompute, &best.load, best.risk).best(room);
            }
            why.source = Some(self.terms(&best, &recompute));
            why.decided = match (wanted, worth(&recompute, &best.candidate)) {
                (false, _) => Decided::TooSlow(SourceTerms::largest(&best.load, &best.candidate)),
                (true, false) => Decided::Ledger,
                (true, true) => Decided::Saves,
            };
            if why.decided == Decided::Saves {
                match self.admit(&best, weighing.second, &recompute, longest) {
                    Some(load) => wait_for = Some(load),
                    None => why.decided = Decided::Ledger,
                }
            }
        }
        let used = wait_for.as_ref().map(|load| load.source);
        let probe = self.probe(now, offers, used, &recompute, dice);
        why.after = self.ledger.balance();
        Decision { load: wait_for, probe, why }
    }

    /// A load or probe is of so many bytes after all, raw.
    pub(crate) fn resize(&mut self, now: Nanos, ticket: &mut Ticket, bytes: Bytes) {
        let Some(source) = self.sources.get_mut(usize::from(ticket.source.0)) else { return };
        source.load.end(ticket.size.bytes);
        ticket.size = LoadSize::raw(bytes);
        ticket.forecast = source.load.forecast(now, &ticket.size);
        source.load.begin(bytes);
    }

    /// What would it cost to serve this range here? Changes nothing.
    #[must_use]
    pub fn quote(&self, now: Nanos, ask: &Ask, offers: &[Offer]) -> Quote {
        let recompute = self.curve.forecast(now, ask.range);
        let longest = self.longest(now, ask).min(self.ledger.room().as_secs_f64());
        let best = self.weigh(now, ask, &recompute, offers, longest).best;
        let Some(best) = best.filter(|best| worth(&recompute, &best.candidate)) else {
            let expected = recompute.expected;
            return Quote { recompute: expected, expected, p90: expected, source: None };
        };
        let in_vain = best.candidate.deadline + recompute.expected;
        let slow = self.sources[usize::from(best.offer.source.0)].load.p90(&best.load);
        let late = ask.when_late == WhenLate::GiveUp && slow > best.candidate.deadline;
        Quote {
            recompute: recompute.expected,
            expected: best.candidate.cost,
            p90: if late { in_vain } else { slow.min(in_vain) },
            source: Some(best.offer.source),
        }
    }

    /// The longest that the request may wait, in seconds: a part of what it surely takes without any source.
    fn longest(&self, now: Nanos, ask: &Ask) -> f64 {
        let end = ask.prompt_end.max(ask.range.end);
        MOST_WAIT * self.curve.forecast(now, TokenRange { start: ask.range.start, end }).surely
    }

    fn weigh(
        &self,
        now: Nanos,
        ask: &Ask,
        recompute: &RecomputeForecast,
        offers: &[Offer],
        longest: f64,
    ) -> Weighing {
        let mut found = Weighing { best: None, second: None, obstacle: Decided::NothingOffered };
        for offer in offers.iter().filter(|_| !ask.range.is_empty()) {
            let Some(source) = self.sources.get(usize::from(offer.source.0)) else { continue };
            if source.breaker.gate(now) != Gate::Loads {
                found.obstacle = Decided::BreakerOpen;
                continue;
            }
            if !source.load.knows(offer.size.bytes) {
                found.obstacle = Decided::Unmeasured;
                continue;
            }
            let load = source.load.forecast(now, &offer.size);
            let risk = source.risk.probability();
            let candidate = trade(source, ask, recompute, &load, risk).best(longest);
            let weighed = Weighed { offer: *offer, load, risk, candidate };
            let cheaper = |than: &Option<Weighed>| than.is_none_or(|t| candidate.cost < t.candidate.cost);
            if cheaper(&found.best) {
                found.second = found.best.replace(weighed);
            } else if cheaper(&found.second) {
                found.second = Some(weighed);
            }
        }
        found
    }

    fn admit(
        &mut self,
        best: &Weighed,
        second: Option<Weighed>,
        recompute: &RecomputeForecast,
        longest: f64,
    ) -> Option<Load> {
        let alone = nanos(best.candidate.deadline);
        // When the first source is unusually late the second is still expected to beat recomputing: the request waits
        // long enough for it, if that is not too long in all.
        let late = self.quantile(best, HEDGE_AT);
        let longest = longest.min(self.ledger.room().as_secs_f64());
        let second = second.filter(|s| worth(recompute, &s.candidate));
        let until = second.map_or(0.0, |second| late + self.quantile(&second, 0.9));
        let second = second.filter(|_| until <= longest);
        let deadline = if second.is_some() { alone.max(nanos(until)) } else { alone };
        let reservation = self.ledger.reserve(deadline)?;
        let stake = Stake::Waiting { reservation, deadline, saved: nanos(recompute.surely) };
        let Weighed { offer, load, .. } = *best;
        let source = &mut self.sources[usize::from(offer.source.0)];
        source.load.begin(offer.size.bytes);
        source.patience = PATIENCE;
        let ticket = Ticket { source: offer.source, size: offer.size, forecast: load, stake };
        let hedge = second.map(|second| Hedge {
            source: second.offer.source,
            after: nanos(late),
            // Hardly any is sent: their bytes do not count as in flight.
            ticket: Ticket {
                source: second.offer.source,
                size: second.offer.size,
                forecast: second.load,
                stake: Stake::Nothing,
            },
        });
        Some(Load { source: best.offer.source, deadline, hedge, ticket })
    }

    fn quantile(&self, weighed: &Weighed, tau: f64) -> f64 {
        self.sources[usize::from(weighed.offer.source.0)].load.quantile(&weighed.load, tau)
    }

    fn terms(&self, weighed: &Weighed, recompute: &RecomputeForecast) -> SourceTerms {
        let Weighed { offer, load, risk, candidate } = *weighed;
        SourceTerms {
            source: offer.source,
            load,
            median: self.quantile(weighed, 0.5),
            p90: self.sources[usize::from(offer.source.0)].load.p90(&load),
            risk,
            deadline: candidate.deadline,
            cost: candidate.cost,
            for_lateness: candidate.for_lateness,
            for_failure: candidate.for_failure,
            margin: MARGIN * recompute.expected,
        }
    }

    /// A source is probed when it has to be measured, when its breaker is half-open, and once in a while.
    fn probe(
        &mut self,
        now: Nanos,
        offers: &[Offer],
        used: Option<SourceId>,
        recompute: &RecomputeForecast,
        dice: u64,
    ) -> Option<Probe> {
        let chosen = dice.is_multiple_of(PROBE_ONE_IN);
        let first = (dice >> 40) as usize;
        for i in 0..offers.len() {
            let offer = offers[(first + i) % offers.len()];
            let Some(source) = self.sources.get_mut(usize::from(offer.source.0)) else { continue };
            let unseen = used.is_none() && now - source.load.seen() >= source.patience;
            let due = match source.breaker.gate(now) {
                Gate::Nothing => false,
                Gate::OneProbe => true,
                Gate::Loads => chosen || unseen || !source.load.measured(),
            };
            if !due || now < source.next_probe || used == Some(offer.source) || offer.size.bytes.0 == 0 {
                continue;
            }
            let deadline = nanos((PROBE_PATIENCE * recompute.expected).max(SHORTEST_PROBE));
            let Some(reservation) = self.ledger.reserve(Stake::share_of_probe(deadline)) else { continue };
            let bytes = Bytes((offer.size.bytes.0.min(PROBE_BYTES) >> ((dice >> 32) % 3 * 2)).max(1));
            let size = LoadSize::raw(bytes);
            source.next_probe = now + deadline;
            source.breaker.probing(now);
            if unseen {
                source.patience = Nanos(source.patience.0 + source.patience.0 / 2).min(LONGEST_PATIENCE);
            }
            let load = source.load.forecast(now, &size);
            source.load.begin(bytes);
            let stake = Stake::Probing { reservation, deadline };
            let ticket = Ticket { source: offer.source, size, forecast: load, stake };
            return Some(Probe { source: offer.source, bytes, deadline, ticket });
        }
        None
    }
}

/// Whether a load saves more than the margin.
fn worth(recompute: &RecomputeForecast, candidate: &Candidate) -> bool {
    recompute.expected - candidate.cost > MARGIN * recompute.expected
}

fn trade<'a>(
    source: &'a Source,
    ask: &Ask,
    recompute: &RecomputeForecast,
    load: &'a LoadForecast,
    risk: f64,
) -> Trade<'a> {
    Trade {
        recompute: recompute.expected,
        risk,
        load,
        residuals: source.load.residuals(load),
        when_late: ask.when_late,
    }
}
