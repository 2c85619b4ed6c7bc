//! Why it was decided so: every term in seconds, the account before and after, and the term that decided.

use super::forecast::LoadForecast;
use super::ledger::Balance;
use super::model::SourceId;
use super::recompute::{RecomputeForecast, TokenRange};
use super::rule::Candidate;
use std::fmt;

/// A term of a load's expected cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// Asking whether the blocks are there.
    Lookup,
    /// Waiting behind other bytes.
    Queue,
    /// The bytes themselves.
    Transfer,
    /// Decoding them.
    Decode,
    /// Copying them to the GPU.
    HostToDevice,
    /// That they may come too late.
    Lateness,
    /// That the load may fail.
    Failure,
}

impl Term {
    /// As in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Queue => "queue",
            Self::Transfer => "transfer",
            Self::Decode => "decode",
            Self::HostToDevice => "h2d",
            Self::Lateness => "lateness",
            Self::Failure => "failure",
        }
    }
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decided {
    /// Loading saves more than the margin: load.
    Saves,
    /// No source has anything: recompute.
    NothingOffered,
    /// The sources that have it fail too often just now: recompute.
    BreakerOpen,
    /// The sources that have it were not measured often enough: recompute.
    Unmeasured,
    /// Loading does not save enough, most of all because of this term: recompute.
    TooSlow(Term),
    /// Loading would be worth it, but if it went wrong the promise would be broken: recompute.
    Ledger,
}

impl Decided {
    /// As in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Saves => "saves",
            Self::NothingOffered => "nothing_offered",
            Self::BreakerOpen => "breaker_open",
            Self::Unmeasured => "unmeasured",
            Self::TooSlow(term) => term.name(),
            Self::Ledger => "ledger",
        }
    }
}

/// The terms of the best source. Seconds, except for `risk`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SourceTerms {
    /// Which source.
    pub source: SourceId,
    /// What its parts are expected to take.
    pub load: LoadForecast,
    /// Half of such loads take no longer.
    pub median: f64,
    /// Nine in ten take no longer.
    pub p90: f64,
    /// Probability that it fails.
    pub risk: f64,
    /// The deadline that costs least.
    pub deadline: f64,
    /// Expected cost with that deadline.
    pub cost: f64,
    /// Part of the cost because it may be late.
    pub for_lateness: f64,
    /// Part of the cost because it may fail.
    pub for_failure: f64,
    /// What must be saved at least.
    pub margin: f64,
}

impl SourceTerms {
    /// The largest part of the cost.
    pub(super) fn largest(load: &LoadForecast, candidate: &Candidate) -> Term {
        let terms = [
            (Term::Transfer, load.transfer),
            (Term::Lookup, load.lookup),
            (Term::Queue, load.queue),
            (Term::Decode, load.decode),
            (Term::HostToDevice, load.h2d),
            // Of what is lost by lateness the recompute is not the source's doing when no deadline helps at all.
            (Term::Lateness, if candidate.deadline > 0.0 { candidate.for_lateness } else { 0.0 }),
            (Term::Failure, candidate.for_failure),
        ];
        terms
            .into_iter()
            .reduce(|most, term| if term.1 > most.1 { term } else { most })
            .map_or(Term::Transfer, |t| t.0)
    }
}

/// Why it was decided so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Explanation {
    /// What was asked about.
    pub range: TokenRange,
    /// What computing it takes.
    pub recompute: RecomputeForecast,
    /// What loading it takes; `None` when no source could be considered.
    pub source: Option<SourceTerms>,
    /// The account before the decision.
    pub before: Balance,
    /// And after it, with what was reserved.
    pub after: Balance,
    /// What decided.
    pub decided: Decided,
}

/// For people, over several lines.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, recompute, source, before, after, decided } = self;
        writeln!(
            f,
            "recompute {}..{}: {:.6} s expected, {:.6} s surely (GPU load {:.2})",
            range.start, range.end, recompute.expected, recompute.surely, recompute.load
        )?;
        if let Some(s) = source {
            let load = &s.load;
            writeln!(f, "load from source {}:", s.source.0)?;
            for (term, seconds) in [
                ("lookup", load.lookup),
                ("queue", load.queue),
                ("transfer", load.transfer),
                ("decode", load.decode),
                ("h2d", load.h2d),
                ("overlap", -load.overlap),
            ] {
                writeln!(f, "  {term:<10}{seconds:>12.6} s")?;
            }
            writeln!(f, "  congestion {:.2}, failure risk {:.4}", load.level, s.risk)?;
            writeln!(f, "  half within {:.6} s, nine in ten within {:.6} s", s.median, s.p90)?;
            writeln!(
                f,
                "  deadline {:.6} s: cost {:.6} s, of it lateness {:.6} s, failure {:.6} s",
                s.deadline, s.cost, s.for_lateness, s.for_failure
            )?;
            writeln!(f, "  saves {:.6} s; must save {:.6} s", recompute.expected - s.cost, s.margin)?;
        }
        for (when, balance) in [("before", before), ("after", after)] {
            writeln!(
                f,
                "ledger {when}: spent {:.6} s, recompute only {:.6} s, reserved {:.6} s, room {:.6} s",
                balance.actual.as_secs_f64(),
                balance.recompute_only.as_secs_f64(),
                balance.reserved.as_secs_f64(),
                balance.room().as_secs_f64()
            )?;
        }
        match decided {
            Decided::Saves => writeln!(f, "decided: load, because it saves more than the margin"),
            Decided::NothingOffered => writeln!(f, "decided: recompute, no source has it"),
            Decided::BreakerOpen => writeln!(f, "decided: recompute, the source fails too often"),
            Decided::Unmeasured => writeln!(f, "decided: recompute, the source is not measured yet"),
            Decided::TooSlow(term) => {
                writeln!(
                    f,
                    "decided: recompute, loading does not save enough, mostly because of: {}",
                    term.name()
                )
            }
            Decided::Ledger => writeln!(f, "decided: recompute, the ledger has no room for a load in vain"),
        }
    }
}
