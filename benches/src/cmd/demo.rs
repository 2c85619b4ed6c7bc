//! `kvtier demo`.

use std::fmt;
use std::time::Duration;

use clap::value_parser;
use kv_core::policy::PolicyKind;
use kv_core::units::Tokens;
use kv_cuda::DeviceChoice;
use kvtier_benches::generate::AgentTrace;
use kvtier_benches::replay::{Blocks, Replay, Report, Workload};
use serde::Serialize;

use super::{Output, Result, replay};

/// Replay a generated agent workload with real bytes through all three tiers, and check every byte
///
/// Makes a trace of coding-agent sessions from a seed, runs it through the engine with GPU memory (or a
/// stand-in where there is no GPU), pinned host memory and an NVMe log in a temporary directory, compares every block that is found with what
/// was stored, and says what that would have saved. Needs no GPU and no network.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier demo\n  \
    kvtier demo --seed 7 --sessions 400\n  \
    kvtier demo --json | jq .replay.hits_by_tier")]
pub(crate) struct Args {
    /// Makes the trace and the bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Sessions of the trace
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=100_000))]
    sessions: u32,

    /// Where GPU blocks are: auto (a GPU if there is one), cuda:N or host (memory that stands in for a GPU)
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,

    /// Where the NVMe log goes, in a directory of its own that is removed at the end
    #[arg(long, value_name = "DIR")]
    dir: Option<std::path::PathBuf>,
}

const BLOCK_TOKENS: u32 = 64;
/// Small, so that the demonstration fits any machine. Real ones are 100 times larger and load more efficiently.
const BLOCK_BYTES: usize = 32 << 10;
/// What the saving is reckoned with: prefill of an 8B model on one H100, in tokens per second. A round
/// figure on the high side of published ones, hence a saving on the low side.
const PREFILL_TOKENS_PER_SECOND: f64 = 20_000.0;

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let trace = AgentTrace {
        seed: args.seed,
        sessions: args.sessions,
        block_tokens: BLOCK_TOKENS,
        ..AgentTrace::default()
    };
    let workload = Workload::new(trace.requests().map(|r| r.request), Tokens(BLOCK_TOKENS));
    // GPU memory for the longest request, twice that of host memory, and most of the rest on NVMe: so that
    // every tier has work to do.
    let hbm = workload.arrivals.iter().map(|a| a.keys.len()).max().unwrap_or(0).max(1) as u32;
    let nvme = (workload.unique_blocks / 2) as u32;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("kvtier-demo-").tempdir_in(&parent).map_err(|e| {
        format!("cannot make a directory in {}: {e}; choose another with --dir", parent.display())
    })?;
    let replay = Replay {
        capacity: Blocks { hbm, host: 2 * hbm, nvme },
        policy: PolicyKind::default(),
        nvme_budget: None,
        block_bytes: BLOCK_BYTES,
        seed: args.seed,
        real: Some(dir.path().to_owned()),
        device: args.device,
    };
    let report = output
        .with_progress(workload.arrivals.len(), "requests", |progress| replay.run(&workload, progress))?;
    dir.close()?;
    let saved = Saving::of(&report);
    output.result(&Demo { sessions: args.sessions, block_tokens: BLOCK_TOKENS, saved, replay: &report })?;
    replay::check(&report)
}

/// What loading would have saved over computing everything, under the stated assumption.
#[derive(Clone, Copy, Serialize)]
struct Saving {
    prefill_tokens_per_second: f64,
    tokens_not_computed: u64,
    prefill_seconds_saved: f64,
}

impl Saving {
    fn of(report: &Report) -> Self {
        let tokens_not_computed = report.hit_blocks * u64::from(BLOCK_TOKENS);
        Self {
            prefill_tokens_per_second: PREFILL_TOKENS_PER_SECOND,
            tokens_not_computed,
            prefill_seconds_saved: tokens_not_computed as f64 / PREFILL_TOKENS_PER_SECOND,
        }
    }
}

#[derive(Serialize)]
struct Demo<'a> {
    sessions: u32,
    block_tokens: u32,
    saved: Saving,
    replay: &'a Report,
}

impl fmt::Display for Demo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} agent sessions in blocks of {} tokens\n", self.sessions, self.block_tokens)?;
        writeln!(f, "{}", self.replay)?;
        let Saving { prefill_tokens_per_second, tokens_not_computed, prefill_seconds_saved } = self.saved;
        writeln!(
            f,
            "Saved: {tokens_not_computed} tokens did not have to be computed. At {prefill_tokens_per_second:.0} \
             prefill tokens/s (an 8B model on an H100; our assumption) that is {prefill_seconds_saved:.1} s of GPU \
             time; requests waited {:.1?} for loads, here and with {} KiB blocks.\n",
            Duration::from_secs_f64(self.replay.timing.load_wait_seconds),
            self.replay.block_bytes >> 10,
        )?;
        writeln!(
            f,
            "Next: kvtier replay TRACE     your own request trace, with or without bytes\n      \
             kvtier bench nvme       this machine's disk against fio\n      \
             kvtier help             everything else"
        )
    }
}
