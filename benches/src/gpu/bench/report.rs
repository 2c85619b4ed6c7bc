//! All figures of a run.

use std::fmt;

use serde::Serialize;

use super::{Bench, Figure, Mark, Skipped, marks};
use crate::ByteSize;
use crate::gpu::info::{DriverFacts, Gpu};
use crate::report::{Machine, Sample, Table, today};

/// A whole run: what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    schema: &'static str,
    version: &'static str,
    date: String,
    machine: Machine,
    driver: DriverFacts,
    gpu: Gpu,
    rounds: usize,
    bytes: ByteSize,
    marks: Vec<Mark>,
    figures: Vec<Figure>,
    skipped: Vec<Skipped>,
}

impl BenchReport {
    pub(super) fn new(
        bench: &Bench,
        (driver, gpu): (DriverFacts, Gpu),
        figures: Vec<Figure>,
        skipped: Vec<Skipped>,
    ) -> Self {
        Self {
            schema: "kvtier.gpu.bench/1",
            version: env!("CARGO_PKG_VERSION"),
            date: today(),
            machine: Machine::here(),
            driver,
            gpu,
            rounds: bench.rounds,
            bytes: bench.bytes,
            marks: marks::of(&figures),
            figures,
            skipped,
        }
    }
}

/// One table for each piece of work that has a limit, one for the rest.
impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpu, driver, machine, version, date, rounds, bytes, .. } = self;
        writeln!(f, "{} (capability {}, {} SMs), {driver}", gpu.name, gpu.capability, gpu.multiprocessors)?;
        writeln!(f, "kvtier {version}, {date}, {machine}\n")?;
        writeln!(
            f,
            "Median (min..max) of {rounds} rounds of {bytes}. Rates are of bytes copied, from the call until the end is \
             known.\nThe limit is one contiguous copy of as many bytes in the same round.\n"
        )?;
        let mut table = Table::new(&["goal (worst case)", "measured", "at least", "verdict"]);
        for mark in &self.marks {
            let worst = mark.worst.as_ref().map(|worst| format!(" ({worst})")).unwrap_or_default();
            table.row([
                format!("{}{worst}", mark.goal),
                mark.measured.map_or_else(String::new, |value| format!("{value:.3}")),
                format!("{:.2}", mark.at_least),
                mark.verdict.to_owned(),
            ]);
        }
        writeln!(f, "{table}")?;
        let mut works: Vec<&str> = Vec::new();
        for figure in self.figures.iter().filter(|figure| figure.share.is_some()) {
            if !works.contains(&figure.work.as_str()) {
                works.push(&figure.work);
            }
        }
        for work in works {
            writeln!(f, "## {work}\n")?;
            let mut table = Table::new(&["contender", "fragment", "CTAs", "GB/s", "% of the limit"]);
            for figure in self.figures.iter().filter(|figure| figure.work == work) {
                table.row([
                    figure.contender.clone(),
                    figure.fragment.map_or_else(String::new, |fragment| fragment.to_string()),
                    figure.ctas.to_string(),
                    figure.value.to_string(),
                    figure.share.map_or_else(String::new, |share| format!("{:.1}", percent(share))),
                ]);
            }
            writeln!(f, "{table}")?;
        }
        writeln!(f, "## latencies, and copies beside a matrix product\n")?;
        let mut table = Table::new(&["what", "CTAs", "figure", "unit"]);
        for figure in self.figures.iter().filter(|figure| figure.share.is_none()) {
            let what = format!("{}, {}", figure.work, figure.contender);
            table.row([what, figure.ctas.to_string(), figure.value.to_string(), figure.unit.clone()]);
        }
        write!(f, "{table}")?;
        for Skipped { peer, why } in &self.skipped {
            write!(f, "\nnot measured: {peer}: {why}")?;
        }
        if self.skipped.is_empty() { Ok(()) } else { writeln!(f) }
    }
}

fn percent(share: Sample) -> Sample {
    Sample { median: share.median * 100.0, min: share.min * 100.0, max: share.max * 100.0 }
}
