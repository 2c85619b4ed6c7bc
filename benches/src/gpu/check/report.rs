//! What a check found.

use std::error::Error;
use std::fmt;

use serde::Serialize;

use super::{Check, Scale};
use crate::gpu::GpuError;
use crate::gpu::info::{DriverFacts, Gpu};
use crate::report::{Machine, Table};

/// The outcome of a check.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    schema: &'static str,
    version: &'static str,
    machine: Machine,
    driver: DriverFacts,
    gpu: Gpu,
    seed: u64,
    cases: u32,
    scale: &'static str,
    passed: bool,
    rows: Vec<Row>,
    failures: Vec<Failure>,
    /// Cases that were not run because there was no point any more.
    not_run: usize,
    not_covered: &'static [&'static str],
}

/// Cases of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Which part of the check.
    pub part: &'static str,
    /// The method or the kernel.
    pub what: String,
    /// Cases that passed.
    pub cases: u64,
    /// Bytes that they moved, erased or read.
    pub bytes: u64,
}

/// A case that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Which part of the check.
    pub part: &'static str,
    /// The case.
    pub case: String,
    /// With this seed, and one case, it happens again.
    pub seed: u64,
    /// What was found.
    pub error: String,
}

impl CheckReport {
    pub(super) fn new(check: Check, (driver, gpu): (DriverFacts, Gpu)) -> Self {
        Self {
            schema: "kvtier.gpu.check/1",
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine::here(),
            driver,
            gpu,
            seed: check.seed,
            cases: check.cases,
            scale: match check.scale {
                Scale::Quick => "quick",
                Scale::Full => "full",
            },
            passed: true,
            rows: Vec::new(),
            failures: Vec::new(),
            not_run: 0,
            not_covered: &[
                "torch tensors themselves: borrowed memory is cuMemAlloc's until there is a Python package",
                "memory of another process (CUDA IPC)",
            ],
        }
    }

    pub(super) fn passed(&mut self, part: &'static str, what: String, bytes: u64) {
        match self.rows.iter_mut().find(|row| row.part == part && row.what == what) {
            Some(row) => {
                row.cases += 1;
                row.bytes += bytes;
            }
            None => self.rows.push(Row { part, what, cases: 1, bytes }),
        }
    }

    pub(super) fn failed(&mut self, part: &'static str, case: &str, seed: u64, error: &GpuError) {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        self.passed = false;
        self.failures.push(Failure { part, case: case.to_owned(), seed, error: text });
    }

    pub(super) fn stopped(&mut self, not_run: usize) {
        self.not_run = not_run;
    }

    /// Cases that failed.
    #[must_use]
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// What passed.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { driver, gpu, seed, cases, scale, machine, .. } = self;
        writeln!(f, "{} (capability {}), {driver}", gpu.name, gpu.capability)?;
        writeln!(f, "kvtier {}, commit {}, {}\n", self.version, machine.commit, machine.cpu)?;
        writeln!(f, "{scale} check, seed {seed}, {cases} drawn cases of each kind\n")?;
        let mut table = Table::new(&["part: what", "passed", "MB"]);
        for row in &self.rows {
            let megabytes = format!("{:.1}", row.bytes as f64 / 1e6);
            table.row([format!("{}: {}", row.part, row.what), row.cases.to_string(), megabytes]);
        }
        writeln!(f, "{table}")?;
        for what in self.not_covered {
            writeln!(f, "not covered: {what}")?;
        }
        for Failure { part, case, seed, error } in &self.failures {
            writeln!(f, "\nFAILED: {part}, {case}: {error}")?;
            writeln!(f, "  again: kvtier gpu check --seed {seed} --cases 1{}", self.again())?;
        }
        if self.not_run > 0 {
            writeln!(f, "\n{} cases were not run after that.", self.not_run)?;
        }
        match self.failures.len() {
            0 => writeln!(f, "\nAll passed."),
            failures => writeln!(f, "\n{failures} cases failed."),
        }
    }
}

impl CheckReport {
    fn again(&self) -> &'static str {
        if self.scale == "quick" { " --quick" } else { "" }
    }
}
