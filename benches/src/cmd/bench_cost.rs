//! `kvtier bench cost`.

use std::path::{Path, PathBuf};

use clap::value_parser;
use kvtier_benches::cost::{self, Summary, Workload};
use kvtier_benches::trace::TraceReader;

use super::{Output, Result};

/// Load or recompute: kvtier's rule beside the rules that others ship, and an oracle
///
/// Plays the lengths and arrivals of traces against models of a GPU and of remote stores: as measured by others, slower,
/// congested, failing, lying and plotting. All rules meet the same noise. Times are simulated, so the run needs neither;
/// only the time of a decision is this machine's. Without --trace a generated trace is played.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier bench cost\n  \
    kvtier bench cost --trace conversation.jsonl --trace agent.jsonl:16 --json\n\n\
    A trace is FILE or FILE:N with N tokens per block, 512 if it does not say.")]
pub(crate) struct Args {
    /// A trace to play, JSON lines; may be given several times
    #[arg(long = "trace", value_name = "FILE[:N]")]
    traces: Vec<TraceArg>,

    /// How many seeds; figures are medians over them
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=1000))]
    seeds: u32,

    /// The first seed
    #[arg(long, default_value_t = 1)]
    first_seed: u32,

    /// Also keep the result as STEM.json and STEM.md
    #[arg(long, value_name = "STEM")]
    save: Option<PathBuf>,
}

/// A trace file and the tokens of its blocks.
#[derive(Clone, Debug)]
pub(super) struct TraceArg {
    path: PathBuf,
    block_tokens: u32,
}

impl std::str::FromStr for TraceArg {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let Some((path, tokens)) = text.rsplit_once(':') else {
            return Ok(Self { path: text.into(), block_tokens: 512 });
        };
        let tokens = tokens.parse().ok().filter(|n| (1..=1024).contains(n));
        let block_tokens = tokens.ok_or("after the colon: tokens per block, 1 to 1024")?;
        Ok(Self { path: path.into(), block_tokens })
    }
}

impl TraceArg {
    pub(super) fn workload(&self) -> Result<Workload> {
        let requests: std::result::Result<Vec<_>, _> = TraceReader::open(&self.path)?.collect();
        let name = Path::new(&self.path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Workload::new(&name, &requests?, self.block_tokens))
    }
}

/// The traces, or a generated one.
pub(super) fn workloads(traces: &[TraceArg]) -> Result<Vec<Workload>> {
    if traces.is_empty() {
        return Ok(vec![Workload::generated()]);
    }
    traces.iter().map(TraceArg::workload).collect()
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let workloads = workloads(&args.traces)?;
    let first = u64::from(args.first_seed);
    let seeds: Vec<u64> = (first..first + u64::from(args.seeds)).collect();
    let figures = cost::measure(&workloads, &seeds, |workload, remote| {
        output.progress(format_args!("{workload}: {}", remote.name()));
    })?;
    let summary = Summary::new(figures, seeds);
    if let Some(stem) = &args.save {
        super::save(stem, "Load or recompute", &summary)?;
    }
    output.result(&summary)
}
