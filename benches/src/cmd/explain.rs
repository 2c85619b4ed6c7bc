//! `kvtier explain`.

use clap::value_parser;
use kv_core::cost::WhenLate;
use kvtier_benches::cost::{self, Remote, Which};

use super::bench_cost::TraceArg;
use super::{Output, Result};

/// Why one request of a trace loads or recomputes: every term in seconds, and the term that decides
///
/// Plays the trace against a simulated GPU and remote, as `bench cost` does, and prints one decision: what recomputing
/// and loading are expected to take, term by term, the ledger before and after, what decided, and what really happened.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier explain\n  \
    kvtier explain --trace conversation.jsonl --request 5000 --remote shifting-1x-8x\n  \
    kvtier explain --trace agent.jsonl:16 --request 300 --race --json")]
pub(crate) struct Args {
    /// The trace, JSON lines, with N tokens per block (512 if it does not say); without one, a generated trace
    #[arg(long, value_name = "FILE[:N]")]
    trace: Option<TraceArg>,

    /// Number of the request, from 0; by default the first that loads
    #[arg(long, value_name = "NUMBER")]
    request: Option<usize>,

    /// What the remote is like
    #[arg(long, value_name = "NAME", default_value = "as-measured", value_parser = remote)]
    remote: Remote,

    /// The runtime can go on loading while it recomputes
    #[arg(long)]
    race: bool,

    /// Makes the noise
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64))]
    seed: u64,
}

/// `as-measured` for "as measured", and so on.
fn remote(text: &str) -> std::result::Result<Remote, String> {
    let slug = |remote: &Remote| remote.name().replace([' ', '/'], "-");
    let mut all = Remote::all();
    all.find(|remote| slug(remote) == text).ok_or_else(|| {
        let names: Vec<_> = Remote::all().map(|remote| slug(&remote)).collect();
        format!("one of {}, please", names.join(", "))
    })
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let workload = match &args.trace {
        Some(trace) => trace.workload()?,
        None => cost::Workload::generated(),
    };
    let which = args.request.map_or(Which::FirstLoad, Which::Number);
    let when_late = if args.race { WhenLate::Race } else { WhenLate::GiveUp };
    output.result(&cost::explain(&workload, args.remote, args.seed, when_late, which)?)
}
