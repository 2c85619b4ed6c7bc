//! The run as people and scripts read it, with the pass marks beside the figures.

use std::fmt;

use serde::Serialize;

use super::{Figure, Figures, Remote};
use crate::report::{Machine, Sample, Table};

/// The marks are about these.
const OURS: [&str; 2] = ["kvtier", "kvtier, racing"];

/// A pass mark of the design.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// Who promises it.
    pub rule: &'static str,
    /// What is promised, with its unit.
    pub what: &'static str,
    /// The least that is allowed.
    pub at_least: Option<f64>,
    /// The most that is allowed.
    pub at_most: Option<f64>,
    /// The worst that was found, and where.
    pub found: f64,
    /// Workload and remote of the worst.
    pub at: String,
    /// Whether the mark is reached.
    pub met: bool,
}

/// A whole run: what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Name of this form.
    schema: &'static str,
    machine: Machine,
    seeds: Vec<u64>,
    #[serde(flatten)]
    figures: Figures,
    targets: Vec<Target>,
}

impl Summary {
    /// Puts figures and marks side by side.
    #[must_use]
    pub fn new(figures: Figures, seeds: Vec<u64>) -> Self {
        let targets = targets(&figures);
        Self { schema: "kvtier.bench.cost/1", machine: Machine::here(), seeds, figures, targets }
    }
}

fn targets(figures: &Figures) -> Vec<Target> {
    OURS.iter().flat_map(|rule| targets_of(rule, figures)).collect()
}

/// Medians over seeds, of the worst workload and remote; of what must never happen, the worst seed.
fn targets_of(rule: &'static str, figures: &Figures) -> Vec<Target> {
    let honest = |f: &Figure| Remote::HONEST.contains(&f.remote);
    let adverse = |f: &Figure| Remote::ADVERSE.contains(&f.remote);
    let any = |_: &Figure| true;
    let slower = |f: &Figure| f.remote == Remote::AlwaysSlower;
    type Which<'a> = &'a dyn Fn(&Figure) -> bool;
    type What<'a> = &'a dyn Fn(&Figure) -> Option<f64>;
    let of = |which: Which<'_>, what: What<'_>| -> Vec<(f64, String)> {
        let ours = figures.rules.iter().filter(|f| f.rule == rule && which(f));
        ours.filter_map(|f| Some((what(f)?, format!("{}, {}", f.workload, f.remote.name())))).collect()
    };
    let mut targets = Vec::new();
    let mut add = |what, at_least: Option<f64>, at_most: Option<f64>, found: Vec<(f64, String)>| {
        // How far beyond a bound; the worst is the largest.
        let beyond = |x: f64| {
            let low = at_least.map_or(f64::NEG_INFINITY, |bound| bound - x);
            low.max(at_most.map_or(f64::NEG_INFINITY, |bound| x - bound))
        };
        if let Some((found, at)) = found.into_iter().max_by(|a, b| beyond(a.0).total_cmp(&beyond(b.0))) {
            let met = beyond(found) <= 0.0;
            targets.push(Target { rule, what, at_least, at_most, found, at, met });
        }
    };
    let median = |sample: &Option<Sample>| sample.map(|s| s.median);
    add("recompute, mean relative error", None, Some(0.05), of(&any, &|f| median(&f.mape)));
    add("loads within the predicted P90", Some(0.88), Some(0.92), of(&honest, &|f| median(&f.coverage)));
    add("clear cases decided right", Some(0.95), None, of(&honest, &|f| median(&f.accuracy)));
    add("mean TTFT, of the oracle's", None, Some(1.05), of(&honest, &|f| Some(f.of_oracle.median)));
    add("seconds above 1.02 x recompute + K", None, Some(0.0), of(&any, &|f| Some(f.above_promise.max)));
    add("p99.9 of a request, of its recompute", None, Some(1.5), of(&adverse, &|f| Some(f.p999.max)));
    add("pulls from a remote that is always slower", None, Some(0.0), of(&slower, &|f| Some(f.pulls.max)));
    let here = |x: f64| vec![(x, "one source".to_owned())];
    add("one decision, p99, ns", None, Some(5000.0), here(figures.latency.p99_ns));
    add(
        "allocations per decision",
        None,
        Some(0.0),
        figures.latency.allocations.map(here).unwrap_or_default(),
    );
    targets
}

fn percent(sample: Option<Sample>) -> String {
    let cell = |s: Sample| format!("{:.1} ({:.1}..{:.1})", 100.0 * s.median, 100.0 * s.min, 100.0 * s.max);
    sample.map_or("-".to_owned(), cell)
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        writeln!(f, "Median (smallest..largest) over the seeds {:?}. Simulated times.", self.seeds)?;
        let rules = &self.figures.rules;
        let mut begun = None;
        let mut table = Table::new(&[]);
        for figure in rules {
            let here = (&figure.workload, figure.remote);
            if begun != Some(here) {
                if begun.is_some() {
                    write!(f, "\n{table}")?;
                }
                begun = Some(here);
                table = Table::new(&[
                    &format!("{}: {}", figure.workload, figure.remote.name()),
                    "mean TTFT, ms",
                    "of recompute",
                    "of oracle",
                    "p99.9 of own recompute",
                    "s above promise",
                    "pulls",
                    "right, %",
                ]);
            }
            table.row([
                figure.rule.to_owned(),
                format!("{:.0}", figure.mean_ttft.median * 1e3),
                format!("{:.3}", figure.of_recompute),
                format!("{:.3}", figure.of_oracle),
                format!("{:.2}", figure.p999.median),
                format!("{:.1}", figure.above_promise.max),
                format!("{:.0}", figure.pulls.median),
                percent(figure.accuracy),
            ]);
        }
        write!(f, "\n{table}")?;

        let mut table = Table::new(&["predictions", "recompute error, %", "unavoidable, %", "within P90, %"]);
        for figure in rules.iter().filter(|f| OURS.contains(&f.rule)) {
            table.row([
                format!("{}, {}: {}", figure.rule, figure.workload, figure.remote.name()),
                percent(figure.mape),
                percent(figure.noise),
                percent(figure.coverage),
            ]);
        }
        write!(f, "\n{table}")?;

        let mut table = Table::new(&["mark", "of", "bound", "worst", "met", "where"]);
        for target in &self.targets {
            let bound = match (target.at_least, target.at_most) {
                (Some(low), Some(high)) => format!("{low}..{high}"),
                (Some(low), None) => format!(">= {low}"),
                (None, high) => format!("<= {}", high.unwrap_or(f64::NAN)),
            };
            table.row([
                target.what.to_owned(),
                target.rule.to_owned(),
                bound,
                format!("{:.3}", target.found),
                if target.met { "yes" } else { "NO" }.to_owned(),
                target.at.clone(),
            ]);
        }
        write!(f, "\n{table}")?;
        let latency = &self.figures.latency;
        writeln!(f, "\nOne decision: p50 {:.0} ns, p99 {:.0} ns.", latency.p50_ns, latency.p99_ns)?;
        writeln!(
            f,
            "\nHow to read it: `kvtier` gives a late load up; `kvtier, racing` is for runtimes that can load and compute at \
             once. The oracle knows what each load will take and takes the shorter way; `oracle bound by 1.5x` does so \
             as far as it could without ever waiting longer than half of the recompute. \
             A choice is right if it was the shorter way, where one way was at least 30 % shorter. \
             `s above promise` is of the worst seed and is never above 0 where the promise is kept; K is 1 s."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Latency;

    fn figure(remote: Remote, rule: &'static str, of_oracle: f64, pulls: f64, coverage: f64) -> Figure {
        let sample = |x: f64| Sample { median: x, min: x, max: x };
        Figure {
            workload: "w".to_owned(),
            remote,
            rule,
            mean_ttft: sample(0.5),
            of_recompute: sample(0.5),
            of_oracle: sample(of_oracle),
            p999: sample(1.4),
            above_promise: sample(-3.0),
            pulls: sample(pulls),
            accuracy: Some(sample(0.99)),
            mape: Some(sample(0.03)),
            noise: Some(sample(0.02)),
            coverage: Some(sample(coverage)),
        }
    }

    #[test]
    fn marks_are_about_the_worst_of_ours_and_can_be_missed() {
        let rules = vec![
            figure(Remote::AsMeasured, "kvtier", 1.01, 10.0, 0.90),
            figure(Remote::Shifting, "kvtier", 1.06, 10.0, 0.87),
            figure(Remote::Shifting, "always load", 9.0, 10.0, 0.1),
            figure(Remote::AlwaysSlower, "kvtier", 1.0, 1.0, 0.5),
            figure(Remote::Hang, "kvtier", 3.0, 1.0, 0.5),
        ];
        let latency = Latency { p50_ns: 900.0, p99_ns: 2000.0, allocations: Some(0.0) };
        let summary = Summary::new(Figures { rules, latency }, vec![1]);
        let of_ours = |t: &&Target| t.rule == "kvtier";
        let mark = |what: &str| {
            summary.targets.iter().filter(of_ours).find(|t| t.what.starts_with(what)).expect(what)
        };
        assert!((mark("mean TTFT").found - 1.06).abs() < 1e-9 && !mark("mean TTFT").met);
        assert!(!mark("loads within").met && mark("loads within").at.contains("shifting"));
        assert!(!mark("pulls from").met);
        assert!(mark("p99.9").met && mark("seconds above").met && mark("one decision").met);
        assert!(summary.to_string().contains("NO"));
    }
}
