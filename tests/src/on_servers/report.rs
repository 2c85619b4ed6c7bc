//! The figures, and the table.

use std::fmt;
use std::time::Duration;

use kvtier_benches::report::{Machine, Table};
use serde::Serialize;

use super::{Prompts, Scenario, Served};

/// One scenario on one server. Seconds unless said otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The server.
    pub server: &'static str,
    /// The scenario.
    pub scenario: &'static str,
    /// Requests that kvtier has served: all.
    pub requests: usize,
    /// What they take by recomputing everything.
    pub recompute_only: f64,
    /// What they took with kvtier.
    pub kvtier: f64,
    /// `1.02 x recompute_only + K`.
    pub promise: f64,
    /// How far `kvtier` is above it; never above 0.
    pub above_promise: f64,
    /// The longest that a request took, as a share of recomputing it.
    pub worst: f64,
    /// Blocks that came from the server.
    pub hits: u64,
    /// Blocks that verification refused.
    pub refused: u64,
    /// Requests that "always load" served before its time was over.
    pub always_requests: usize,
    /// What it took, as a share of recomputing them.
    pub always_ratio: f64,
    /// Of what an oracle would have taken that knows for each request how long "always load" took for it; where that
    /// served all of them. It says something while the server is as it was.
    pub of_oracle: Option<f64>,
    /// The same over the second half of the requests, when learning is over.
    pub of_oracle_late: Option<f64>,
}

impl Figure {
    pub(super) fn new(
        server: &'static str,
        scenario: &Scenario,
        prompts: &Prompts,
        ours: &Served,
        theirs: &Served,
        wanted: Duration,
        promise: Duration,
    ) -> Self {
        let recompute: Vec<f64> = prompts.iter().map(|p| p.pass(0).1.as_secs_f64()).collect();
        let waits: Vec<f64> = ours.waits.iter().map(Duration::as_secs_f64).collect();
        let best = recompute.iter().zip(&theirs.waits).map(|(r, load)| r.min(load.as_secs_f64()));
        let best: Vec<f64> = best.collect();
        let all = theirs.waits.len() == waits.len();
        let half = waits.len() / 2;
        let of =
            |from: usize| all.then(|| waits[from..].iter().sum::<f64>() / best[from..].iter().sum::<f64>());
        Self {
            server,
            scenario: scenario.name,
            requests: waits.len(),
            recompute_only: wanted.as_secs_f64(),
            kvtier: ours.total().as_secs_f64(),
            promise: promise.as_secs_f64(),
            above_promise: ours.total().as_secs_f64() - promise.as_secs_f64(),
            worst: waits.iter().zip(&recompute).map(|(w, r)| w / r).fold(0.0, f64::max),
            hits: ours.hits,
            refused: ours.refused,
            always_requests: theirs.waits.len(),
            always_ratio: theirs.total().as_secs_f64() / prompts.recompute(theirs.waits.len()).as_secs_f64(),
            of_oracle: of(0),
            of_oracle_late: of(half),
        }
    }
}

/// All figures of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// What.
    pub figures: Vec<Figure>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = [
            "server, scenario",
            "recompute only",
            "kvtier",
            "ratio",
            "above 1.02 R + K",
            "worst request",
            "hits",
            "refused",
            "always load",
            "of oracle",
            "second half",
        ];
        let mut table = Table::new(&titles);
        for x in &self.figures {
            let share = |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{s:.3}"));
            let cut = if x.always_requests < x.requests {
                format!(" ({})", x.always_requests)
            } else {
                String::new()
            };
            table.row([
                format!("{}, {}", x.server, x.scenario),
                format!("{:.2} s", x.recompute_only),
                format!("{:.2} s", x.kvtier),
                format!("{:.3}", x.kvtier / x.recompute_only),
                format!("{:+.2} s", x.above_promise),
                format!("{:.2}", x.worst),
                x.hits.to_string(),
                x.refused.to_string(),
                format!("{:.2}{cut}", x.always_ratio),
                share(x.of_oracle),
                share(x.of_oracle_late),
            ]);
        }
        write!(f, "{table}")
    }
}
