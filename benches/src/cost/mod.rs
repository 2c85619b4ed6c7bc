//! `kvtier bench cost`: the rule that decides load or recompute, beside the rules that others ship.
//!
//! ```text
//!   workload   lengths, arrivals and reuse of a trace      rules      what others do, and the oracle
//!   world      what a GPU and a remote really do           ours       kvtier's cost model
//!   simulate   plays one against the other                 latency    what one decision takes
//!   why        one decision, explained
//! ```
//!
//! All rules meet the same requests, noise and regimes. The model starts from the priors of an unknown model, so what it
//! spends on learning is in the figures.

mod latency;
mod ours;
mod rules;
mod simulate;
mod summary;
mod why;
mod workload;
mod world;

use kv_core::cost::{ConfigError, WhenLate};
use serde::Serialize;

use crate::generate::AgentTrace;
use crate::report::Sample;
use crate::trace::Request;

pub use latency::Latency;
pub use ours::Ours;
pub use rules::{Choice, Question, Rule};
pub use simulate::{Tally, play};
pub use summary::{Summary, Target};
pub use why::{NoSuchRequest, Which, Why, explain};
pub use workload::{Arrival, arrivals};
pub use world::{Pull, Remote, TOKEN_BYTES, World};

/// Requests of one workload at least; shorter traces are played again.
const REQUESTS: usize = 4_000;

/// A trace, ready to be played.
#[derive(Clone, Debug)]
pub struct Workload {
    /// As printed.
    pub name: String,
    /// Its requests.
    pub arrivals: Vec<Arrival>,
}

impl Workload {
    /// From a recorded trace.
    #[must_use]
    pub fn new(name: &str, requests: &[Request], block_tokens: u32) -> Self {
        Self { name: name.to_owned(), arrivals: arrivals(requests, block_tokens, REQUESTS) }
    }

    /// A generated one like those that coding agents leave.
    #[must_use]
    pub fn generated() -> Self {
        let trace = AgentTrace { sessions: 200, ..AgentTrace::default() };
        let requests: Vec<_> = trace.requests().map(|r| r.request).collect();
        Self::new("generated agents", &requests, trace.block_tokens)
    }

    /// When the last request arrives, in seconds.
    #[must_use]
    pub fn end(&self) -> f64 {
        self.arrivals.last().map_or(0.0, |a| a.at)
    }
}

/// What one rule made of one workload and remote, over all seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The trace.
    pub workload: String,
    /// The remote.
    pub remote: Remote,
    /// The rule.
    pub rule: &'static str,
    /// Mean time to first token in seconds.
    pub mean_ttft: Sample,
    /// Its ratio to recomputing everything.
    pub of_recompute: Sample,
    /// Its ratio to the oracle's.
    pub of_oracle: Sample,
    /// The largest ratio of a request to its own recompute, but for one in a thousand.
    pub p999: Sample,
    /// Seconds in all above 1.02 x recompute-only + K; what is promised is never above 0.
    pub above_promise: Sample,
    /// Requests that waited for a load.
    pub pulls: Sample,
    /// Share of clear cases decided right.
    pub accuracy: Option<Sample>,
    /// Mean relative error of predicted passes.
    pub mape: Option<Sample>,
    /// The part of it that nobody could avoid.
    pub noise: Option<Sample>,
    /// Share of loads within the predicted P90.
    pub coverage: Option<Sample>,
}

/// Everything measured.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// By workload, remote and rule.
    pub rules: Vec<Figure>,
    /// One decision.
    pub latency: Latency,
}

/// Names of the rules, in the order of the tables.
const ORACLE: &str = "oracle";

fn contenders(seed: u64) -> Result<Vec<Box<dyn Rule>>, ConfigError> {
    Ok(vec![
        Box::new(Ours::new(seed, WhenLate::GiveUp)?),
        Box::new(Ours::new(seed, WhenLate::Race)?),
        Box::new(rules::MeanCost::default()),
        Box::new(rules::Threshold),
        Box::new(rules::AlwaysLoad),
        Box::new(rules::NeverLoad),
        Box::new(rules::BoundOracle),
        Box::new(rules::Oracle),
    ])
}

/// Plays every workload against every remote under every rule, once per seed. `progress` hears what comes next.
///
/// # Errors
/// Never with the priors that ship; see [`ConfigError`].
pub fn measure(
    workloads: &[Workload],
    seeds: &[u64],
    mut progress: impl FnMut(&str, Remote),
) -> Result<Figures, ConfigError> {
    let mut figures = Vec::new();
    for workload in workloads {
        for remote in Remote::all() {
            progress(&workload.name, remote);
            let mut by_rule: Vec<(&'static str, Vec<Tally>)> = Vec::new();
            for seed in seeds {
                let world = World::new(*seed, remote, workload.end());
                for (i, mut rule) in contenders(*seed)?.into_iter().enumerate() {
                    let tally = play(&workload.arrivals, &world, rule.as_mut(), &mut |_, _| {});
                    match by_rule.get_mut(i) {
                        Some((_, tallies)) => tallies.push(tally),
                        None => by_rule.push((rule.name(), vec![tally])),
                    }
                }
            }
            let oracle: Vec<f64> = by_rule
                .iter()
                .filter(|(name, _)| *name == ORACLE)
                .flat_map(|(_, tallies)| tallies.iter().map(Tally::mean))
                .collect();
            figures.extend(
                by_rule
                    .iter()
                    .filter_map(|(rule, tallies)| figure(&workload.name, remote, rule, tallies, &oracle)),
            );
        }
    }
    Ok(Figures { rules: figures, latency: latency::measure(learnt(workloads, seeds)?) })
}

/// A model after the first workload with the remote as measured.
fn learnt(workloads: &[Workload], seeds: &[u64]) -> Result<kv_core::cost::CostModel, ConfigError> {
    let seed = seeds.first().copied().unwrap_or(1);
    let mut ours = Ours::new(seed, WhenLate::GiveUp)?;
    if let Some(workload) = workloads.first() {
        let world = World::new(seed, Remote::AsMeasured, workload.end());
        play(&workload.arrivals, &world, &mut ours, &mut |_, _| {});
    }
    Ok(ours.into_model())
}

fn figure(
    workload: &str,
    remote: Remote,
    rule: &'static str,
    tallies: &[Tally],
    oracle: &[f64],
) -> Option<Figure> {
    let all = |of: &dyn Fn(&Tally) -> f64| Sample::of(tallies.iter().map(of).collect());
    let some = |of: &dyn Fn(&Tally) -> Option<f64>| Sample::of(tallies.iter().filter_map(of).collect());
    let credit = kv_core::cost::CREDIT.as_secs_f64();
    Some(Figure {
        workload: workload.to_owned(),
        remote,
        rule,
        mean_ttft: all(&Tally::mean)?,
        of_recompute: all(&|t| t.total / t.recompute_only)?,
        of_oracle: Sample::of(tallies.iter().zip(oracle).map(|(t, oracle)| t.mean() / oracle).collect())?,
        p999: all(&Tally::p999)?,
        above_promise: all(&|t| t.total - (1.02 * t.recompute_only + credit))?,
        pulls: all(&|t| t.pulls as f64)?,
        accuracy: some(&Tally::accuracy),
        mape: some(&Tally::mape),
        noise: some(&Tally::noise),
        coverage: some(&Tally::coverage),
    })
}
