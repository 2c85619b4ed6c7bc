//! The run as people and scripts read it, with the targets beside the figures.

use std::fmt;

use serde::Serialize;

use super::{CHAIN, Figure, Figures, Operation};
use crate::report::{Machine, Sample, Table};

const KVTIER: &str = "kvtier";
const PEER: &str = "kvbm-logical";

/// One promise about a figure.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// Resident blocks.
    pub blocks: usize,
    /// What is promised, with its unit.
    pub what: &'static str,
    /// The promised bound.
    pub bound: f64,
    /// Whether larger is better; else smaller is.
    pub at_least: bool,
    /// The median found.
    pub found: f64,
    /// Whether the promise was kept.
    pub met: bool,
}

/// A whole run: what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Name of this form.
    schema: &'static str,
    machine: Machine,
    rounds: usize,
    blocks_per_batch: usize,
    #[serde(flatten)]
    figures: Figures,
    targets: Vec<Target>,
}

impl Summary {
    /// Puts figures and targets side by side.
    #[must_use]
    pub fn new(figures: Figures, rounds: usize) -> Self {
        let targets = targets(&figures);
        let machine = Machine::here();
        Self { schema: "kvtier.bench.index/1", machine, rounds, blocks_per_batch: CHAIN, figures, targets }
    }
}

impl Figures {
    fn sizes(&self) -> Vec<usize> {
        let mut sizes: Vec<_> = self.times.iter().map(|f| f.blocks).collect();
        sizes.dedup();
        sizes
    }

    fn time(&self, blocks: usize, contender: &str, operation: Operation) -> Option<Sample> {
        let same = |f: &&Figure| f.blocks == blocks && f.contender == contender && f.operation == operation;
        self.times.iter().find(same).map(|f| f.ns_per_block)
    }

    /// The peer's best variant, by median.
    fn peer(&self, blocks: usize, operation: Operation) -> Option<f64> {
        let of_peer =
            |f: &&Figure| f.blocks == blocks && f.operation == operation && f.contender.starts_with(PEER);
        self.times.iter().filter(of_peer).map(|f| f.ns_per_block.median).min_by(f64::total_cmp)
    }
}

/// The bounds are those of the design: one core, warm, batches of 256.
fn targets(figures: &Figures) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |blocks, what, at_least, bound, found: Option<f64>| {
        if let Some(found) = found {
            let met = if at_least { found >= bound } else { found <= bound };
            targets.push(Target { blocks, what, bound, at_least, found, met });
        }
    };
    for blocks in figures.sizes() {
        let ours = |operation| figures.time(blocks, KVTIER, operation).map(|s| s.median);
        add(blocks, "ns per matched block", false, 30.0, ours(Operation::Match));
        add(blocks, "M matched blocks/s", true, 20.0, ours(Operation::Match).map(|ns| 1e3 / ns));
        let memory = figures.memory.iter().find(|m| m.blocks == blocks && m.contender == KVTIER);
        add(blocks, "heap bytes per block", false, 96.0, memory.map(|m| m.bytes_per_block));
        let steady = memory.map(|m| m.steady_allocations_per_block);
        add(blocks, "allocations per block, steady state", false, 0.0, steady);
        for (operation, what) in [
            (Operation::MatchPin, "match + pin + unpin, times faster than the peer"),
            (Operation::Evict, "evict, times faster than the peer"),
            (Operation::Register, "register, times faster than the peer"),
        ] {
            let ratio = figures.peer(blocks, operation).zip(ours(operation)).map(|(peer, ours)| peer / ours);
            add(blocks, what, true, 3.0, ratio);
        }
    }
    targets
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        writeln!(
            f,
            "One core, warm, batches of {CHAIN}; ns per block: median (min..max) of {} rounds.",
            self.rounds
        )?;
        let figures = &self.figures;
        for blocks in figures.sizes() {
            let mut titles = vec![format!("{blocks} blocks"), "M matched/s".to_owned()];
            titles.extend(Operation::ALL.map(|o| o.name().to_owned()));
            titles.extend(["bytes/block".to_owned(), "allocations/block".to_owned()]);
            let mut table = Table::new(&titles.iter().map(String::as_str).collect::<Vec<_>>());
            let mut contenders: Vec<_> =
                figures.times.iter().filter(|t| t.blocks == blocks).map(|t| t.contender).collect();
            contenders.dedup();
            for contender in contenders {
                let time = |operation| figures.time(blocks, contender, operation);
                let text = |sample: Option<Sample>| sample.map_or("-".to_owned(), |s| s.to_string());
                let memory = figures.memory.iter().find(|m| m.blocks == blocks && m.contender == contender);
                let mut cells = vec![contender.to_owned()];
                let rate = time(Operation::Match).map(|ns| ns.inverse(1e3).median);
                cells.push(rate.map_or("-".to_owned(), |r| format!("{r:.1}")));
                cells.extend(Operation::ALL.map(|operation| text(time(operation))));
                cells.push(memory.map_or("-".to_owned(), |m| format!("{:.0}", m.bytes_per_block)));
                cells.push(
                    memory.map_or("-".to_owned(), |m| format!("{:.2}", m.steady_allocations_per_block)),
                );
                table.row(cells);
            }
            write!(f, "\n{table}")?;
        }
        let mut table = Table::new(&["target", "blocks", "bound", "found", "met"]);
        for target in &self.targets {
            table.row([
                target.what.to_owned(),
                target.blocks.to_string(),
                format!("{} {}", if target.at_least { ">=" } else { "<=" }, target.bound),
                format!("{:.1}", target.found),
                if target.met { "yes" } else { "NO" }.to_owned(),
            ]);
        }
        write!(f, "\n{table}")?;
        writeln!(
            f,
            "\nHow to read it: kvtier's pins are counters beside the index and its evictions do not choose a \
             victim. A match of {PEER} takes and drops a guard: `match` is of blocks held by others, \
             `match + pin + unpin` of blocks held by nobody. Its evictions choose their victim and are an \
             allocation from a full pool. Ratios are to the faster of its two variants. Allocations are \
             counted over one round of everything."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Memory;

    fn figure(contender: &'static str, operation: Operation, ns: f64) -> Figure {
        let ns_per_block = Sample { median: ns, min: ns, max: ns };
        Figure { blocks: 1000, contender, operation, ns_per_block }
    }

    #[test]
    fn targets_compare_with_the_faster_variant_and_can_be_missed() {
        let figures = Figures {
            times: vec![
                figure("kvtier", Operation::Match, 31.0),
                figure("kvtier", Operation::Register, 100.0),
                figure("kvbm-logical, lru", Operation::Register, 500.0),
                figure("kvbm-logical, lineage", Operation::Register, 290.0),
            ],
            memory: vec![Memory {
                blocks: 1000,
                contender: "kvtier",
                bytes_per_block: 96.0,
                build_allocations_per_block: 0.1,
                steady_allocations_per_block: 0.001,
            }],
        };
        let summary = Summary::new(figures, 9);
        let found = |what| summary.targets.iter().find(|t| t.what == what).expect(what);
        assert!(!found("ns per matched block").met);
        assert!(found("M matched blocks/s").met);
        assert!(found("heap bytes per block").met);
        assert!(!found("allocations per block, steady state").met);
        let register = found("register, times faster than the peer");
        assert!((register.found - 2.9).abs() < 1e-9 && !register.met);
        assert_eq!(summary.targets.len(), 5, "nothing is judged that was not measured");
        let text = summary.to_string();
        assert!(text.contains("NO") && text.contains("32.3"), "{text}");
    }
}
