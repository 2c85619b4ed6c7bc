//! Why one request of a played trace was decided as it was, beside what really happened.

use std::fmt;

use kv_core::cost::{ConfigError, Explanation, WhenLate};
use kv_core::units::Nanos;
use serde::Serialize;

use super::ours::Ours;
use super::rules::{Choice, News, Question, Rule};
use super::simulate::play;
use super::world::{Pull, Remote, World};
use super::{Arrival, Workload};

/// Which request is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// By its number, 0-based.
    Number(usize),
    /// The first that waits for a load; if none does, the last that had a choice.
    FirstLoad,
}

/// The terms of the source in seconds, as they are serialised.
#[derive(Clone, Copy, Debug, Serialize)]
struct Terms {
    lookup: f64,
    queue: f64,
    transfer: f64,
    level: f64,
    decode: f64,
    h2d: f64,
    overlap: f64,
    median: f64,
    p90: f64,
    failure_risk: f64,
    deadline: f64,
    cost: f64,
    cost_of_lateness: f64,
    cost_of_failure: f64,
    margin: f64,
}

/// The ledger in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Account {
    actual: f64,
    recompute_only: f64,
    reserved: f64,
    room: f64,
}

/// A decision and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Why {
    /// Name of this form.
    schema: &'static str,
    workload: String,
    remote: Remote,
    request: usize,
    arrived_at: f64,
    prompt_tokens: u32,
    stored_tokens: u32,
    recompute: f64,
    recompute_surely: f64,
    gpu_load: f64,
    source: Option<Terms>,
    before: Account,
    after: Account,
    decided: &'static str,
    waits: bool,
    probes: bool,
    really_recompute: f64,
    really_load: Option<f64>,
    #[serde(skip)]
    text: String,
}

/// There is no such request, or it found nothing that could be loaded.
#[derive(Debug, thiserror::Error)]
pub enum NoSuchRequest {
    /// The trace is shorter.
    #[error("the trace has {0} requests, numbered from 0")]
    TooFar(usize),
    /// Nothing to decide.
    #[error("request {0} finds nothing that was sent before, so there is nothing to decide")]
    NothingStored(usize),
    /// Nothing to decide at all.
    #[error("no request of the trace finds anything that was sent before")]
    Nothing,
    /// See [`ConfigError`].
    #[error("the cost model refused its priors")]
    Config(#[from] ConfigError),
}

/// Keeps what was asked and chosen, so that one decision can be told.
struct Watched {
    ours: Ours,
    last: Option<(Question, Choice)>,
}

impl Rule for Watched {
    fn name(&self) -> &'static str {
        self.ours.name()
    }
    fn choose(&mut self, now: f64, question: &Question) -> Choice {
        let choice = self.ours.choose(now, question);
        self.last = Some((*question, choice));
        choice
    }
    fn hear(&mut self, now: f64, news: &News) {
        self.ours.hear(now, news);
    }
}

/// Plays the workload and explains one decision of it.
///
/// # Errors
/// [`NoSuchRequest`].
pub fn explain(
    workload: &Workload,
    remote: Remote,
    seed: u64,
    when_late: WhenLate,
    which: Which,
) -> Result<Why, NoSuchRequest> {
    let all = &workload.arrivals;
    if let Which::Number(number) = which {
        let arrival = all.get(number).ok_or(NoSuchRequest::TooFar(all.len()))?;
        if arrival.prefix().is_empty() {
            return Err(NoSuchRequest::NothingStored(number));
        }
    }
    let world = World::new(seed, remote, workload.end());
    let mut rule = Watched { ours: Ours::new(seed, when_late)?, last: None };
    let mut found: Option<(Question, Choice, Explanation)> = None;
    play(all, &world, &mut rule, &mut |request, rule: &mut Watched| {
        let done = found.as_ref().is_some_and(|(_, choice, _)| choice.wait.is_some());
        let wanted = match which {
            Which::Number(number) => number == request,
            Which::FirstLoad => !done,
        };
        if let (true, Some((question, choice)), Some(why)) = (wanted, rule.last, rule.ours.last()) {
            found = Some((question, choice, *why));
        }
    });
    let (question, choice, why) = found.ok_or(NoSuchRequest::Nothing)?;
    Ok(told(workload, remote, &all[question.request], &question, &choice, &why))
}

fn told(
    workload: &Workload,
    remote: Remote,
    arrival: &Arrival,
    question: &Question,
    choice: &Choice,
    why: &Explanation,
) -> Why {
    let seconds = |time: Nanos| time.as_secs_f64();
    let account = |balance: &kv_core::cost::Balance| Account {
        actual: seconds(balance.actual),
        recompute_only: seconds(balance.recompute_only),
        reserved: seconds(balance.reserved),
        room: seconds(balance.room()),
    };
    Why {
        schema: "kvtier.explain/1",
        workload: workload.name.clone(),
        remote,
        request: question.request,
        arrived_at: arrival.at,
        prompt_tokens: arrival.input,
        stored_tokens: arrival.stored,
        recompute: why.recompute.expected,
        recompute_surely: why.recompute.surely,
        gpu_load: why.recompute.load,
        source: why.source.map(|s| Terms {
            lookup: s.load.lookup,
            queue: s.load.queue,
            transfer: s.load.transfer,
            level: s.load.level,
            decode: s.load.decode,
            h2d: s.load.h2d,
            overlap: s.load.overlap,
            median: s.median,
            p90: s.p90,
            failure_risk: s.risk,
            deadline: s.deadline,
            cost: s.cost,
            cost_of_lateness: s.for_lateness,
            cost_of_failure: s.for_failure,
            margin: s.margin,
        }),
        before: account(&why.before),
        after: account(&why.after),
        decided: why.decided.name(),
        waits: choice.wait.is_some(),
        probes: choice.probe.is_some(),
        really_recompute: question.recompute,
        really_load: match question.pull {
            Pull::Arrives(took) => Some(took),
            Pull::Fails(_) | Pull::Hangs | Pull::JustLate => None,
        },
        text: why.to_string(),
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}, remote {}, request {} at {:.3} s: {} tokens, {} of them stored",
            self.workload,
            self.remote.name(),
            self.request,
            self.arrived_at,
            self.prompt_tokens,
            self.stored_tokens
        )?;
        write!(f, "{}", self.text)?;
        if self.probes {
            writeln!(f, "beside it: a probe that nobody waits for")?;
        }
        write!(f, "really: recompute {:.6} s, ", self.really_recompute)?;
        match self.really_load {
            Some(took) => writeln!(f, "load {took:.6} s"),
            None => writeln!(f, "the load fails or never ends"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explains_the_request_that_was_asked_about() {
        let workload = Workload::generated();
        let ask = |which| explain(&workload, Remote::AsMeasured, 1, WhenLate::GiveUp, which);
        let first = ask(Which::FirstLoad).expect("some request loads");
        assert!(first.waits && first.decided == "saves");
        let again = ask(Which::Number(first.request)).expect("the same");
        assert_eq!(again.to_string(), first.to_string());
        let text = first.to_string();
        assert!(
            text.contains("decided: load") && text.contains("ledger after") && text.contains("really:"),
            "{text}"
        );
        assert!(matches!(ask(Which::Number(usize::MAX)), Err(NoSuchRequest::TooFar(_))));
        assert!(matches!(ask(Which::Number(0)), Err(NoSuchRequest::NothingStored(0))));
    }
}
