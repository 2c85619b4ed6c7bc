//! Plays arrivals against a world under one rule.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::rules::{Ending, News, Question, Rule};
use super::workload::Arrival;
use super::world::{Pull, World};

/// Passes that are not counted in the error of predictions: the model starts from nothing.
const WARM_UP: usize = 100;
/// Choices count as right or wrong only where one way is this much shorter than the other.
const CLEAR: f64 = 0.3;

/// What came of it. Times are seconds.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests.
    pub requests: usize,
    /// Requests that waited for a load.
    pub pulls: usize,
    /// Sum of times to first token.
    pub total: f64,
    /// The same if everything were recomputed.
    pub recompute_only: f64,
    /// Time to first token of each request as a multiple of what it would have been by recomputing.
    pub ratios: Vec<f64>,
    /// Relative errors of predicted passes, and those that cannot be avoided.
    pub pass_errors: Vec<f64>,
    /// See `pass_errors`.
    pub pass_noise: Vec<f64>,
    /// Loads, made or not, for which a P90 was predicted, and how many would have been in time for it.
    pub predicted: usize,
    /// See `predicted`.
    pub covered: usize,
    /// Clear cases, and how many of them were decided right.
    pub clear: usize,
    /// See `clear`.
    pub right: usize,
}

/// News that arrive at a moment; the earliest first.
struct Due(f64, usize, News);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0).then(other.1.cmp(&self.1))
    }
}

/// How a load ends under a deadline, and when its request has the prefix or begins to compute it.
fn end(pull: Pull, deadline: f64, race_until: Option<f64>) -> Ending {
    let last = race_until.unwrap_or(deadline);
    match pull {
        Pull::Arrives(took) if took <= last => Ending::Arrived(took),
        Pull::Fails(after) if after <= deadline => Ending::Failed(after),
        Pull::Arrives(_) | Pull::Fails(_) | Pull::Hangs | Pull::JustLate => Ending::TooLate(deadline, last),
    }
}

/// Plays all arrivals. `watch` sees the rule after each of its decisions.
pub fn play<R: Rule + ?Sized>(
    arrivals: &[Arrival],
    world: &World,
    rule: &mut R,
    watch: &mut dyn FnMut(usize, &mut R),
) -> Tally {
    let mut tally = Tally::default();
    let mut due = BinaryHeap::new();
    let mut in_flight: Vec<(f64, u64)> = Vec::new();
    for (request, arrival) in arrivals.iter().enumerate() {
        let now = arrival.at;
        while due.peek().is_some_and(|d: &Due| d.0 <= now) {
            if let Some(Due(at, _, news)) = due.pop() {
                rule.hear(at, &news);
            }
        }
        in_flight.retain(|(until, _)| *until > now);
        let flying = in_flight.iter().map(|(_, bytes)| bytes).sum();

        let prefix = arrival.prefix();
        let whole_pass = world.pass(request, now, arrival.prompt());
        let rest_pass = world.pass(request, now, arrival.suffix());
        let recompute = world.extra(request, now, prefix);
        let (mut waited, mut computed, mut pass) = (0.0, arrival.prompt(), whole_pass);
        if !prefix.is_empty() {
            let bytes = u64::from(prefix.len()) * super::world::TOKEN_BYTES;
            let pull = world.pull(request, 0, now, bytes, flying);
            let choice = rule.choose(
                now,
                &Question { request, prefix, prompt: arrival.input, recompute, whole: whole_pass, pull },
            );
            watch(request, rule);
            if let Pull::Arrives(took) = pull {
                if let Some(p90) = choice.p90 {
                    tally.predicted += 1;
                    tally.covered += usize::from(took <= p90);
                }
                if (recompute / took - 1.0).abs() > CLEAR {
                    tally.clear += 1;
                    tally.right += usize::from(choice.wait.is_some() == (took < recompute));
                }
            }
            if let Some(wait) = choice.wait {
                tally.pulls += 1;
                let race_until = wait.race.then_some(wait.deadline + recompute);
                let ending = end(pull, wait.deadline, race_until);
                let ended = match ending {
                    Ending::Arrived(took) => {
                        (waited, computed, pass) = (took, arrival.suffix(), rest_pass);
                        took
                    }
                    Ending::Failed(after) => {
                        waited = after;
                        after
                    }
                    Ending::TooLate(gave_up, ran) => {
                        waited = gave_up;
                        ran
                    }
                };
                in_flight.push((now + ended, bytes));
                due.push(Due(now + ended, request, News::Load(request, ending)));
            }
            if let Some(probe) = choice.probe {
                let pull = world.pull(request, 1, now, probe.bytes, flying);
                let ending = end(pull, probe.deadline, None);
                let (Ending::Arrived(ended) | Ending::Failed(ended) | Ending::TooLate(_, ended)) = ending;
                in_flight.push((now + ended, probe.bytes));
                due.push(Due(now + ended, request, News::Probe(request, ending)));
            }
        }
        if let Some(expected) = rule.expected_pass(now, computed)
            && request >= WARM_UP
        {
            tally.pass_errors.push((expected / pass - 1.0).abs());
            tally.pass_noise.push(world.pass_noise(request, now));
        }
        due.push(Due(now + waited + pass, request, News::Pass(computed, pass)));
        tally.requests += 1;
        tally.total += waited + pass;
        tally.recompute_only += whole_pass;
        tally.ratios.push((waited + pass) / whole_pass);
    }
    tally.ratios.sort_by(f64::total_cmp);
    tally
}

impl Tally {
    /// The multiple that 999 requests in a thousand do not exceed.
    #[must_use]
    pub fn p999(&self) -> f64 {
        let at = (self.ratios.len() as f64 * 0.999).ceil() as usize;
        self.ratios.get(at.saturating_sub(1)).copied().unwrap_or(1.0)
    }

    /// Mean of relative errors of predicted passes.
    #[must_use]
    pub fn mape(&self) -> Option<f64> {
        mean(&self.pass_errors)
    }

    /// The part of it that nobody could avoid.
    #[must_use]
    pub fn noise(&self) -> Option<f64> {
        mean(&self.pass_noise)
    }

    /// Share of loads within the predicted P90.
    #[must_use]
    pub fn coverage(&self) -> Option<f64> {
        (self.predicted > 0).then(|| self.covered as f64 / self.predicted as f64)
    }

    /// Share of clear cases that were decided right.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        (self.clear > 0).then(|| self.right as f64 / self.clear as f64)
    }

    /// Mean time to first token.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.total / self.requests.max(1) as f64
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
