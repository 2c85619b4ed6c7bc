//! `kvtier replay`.

use std::path::PathBuf;

use clap::value_parser;
use kv_core::policy::{BytesPerDay, PolicyKind};
use kv_core::units::Tokens;
use kv_cuda::DeviceChoice;
use kvtier_benches::replay::{Blocks, Replay, Report, Workload};
use kvtier_benches::trace::TraceReader;

use super::{Output, Result};

/// Replay a recorded request trace through the planner, or with real bytes through the whole engine
///
/// A trace has one JSON object per line: {"timestamp": ms, "input_length": tokens, "output_length": tokens,
/// "hash_ids": [block ids of the prompt]}. Each request finds its longest cached prefix and then stores the rest.
/// The report says how many blocks did not have to be computed, and what share that is of the exact
/// offline optimum.
///
/// --virtual moves no bytes and takes well under a second. --real fills GPU memory (or a stand-in), pinned host
/// memory and an NVMe log in DIR with real bytes, one request at a time, and compares every block that is found
/// with what was stored. Both drive the same planner and come to the same hits.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier replay conversation.jsonl --host 10000\n  \
    kvtier replay conversation.jsonl --hbm 1000 --host 10000 --nvme 100000 --policy lru --json\n  \
    kvtier replay agent.jsonl --block-tokens 16 --real --dir /mnt/nvme/kvtier --block-bytes 262144 \\\n    \
        --hbm 500 --host 2000 --nvme 20000")]
pub(crate) struct Args {
    /// The trace, JSON lines
    trace: PathBuf,

    /// Tokens per block of the trace (Mooncake traces have 512)
    #[arg(long, default_value_t = 512, value_parser = value_parser!(u32).range(1..=1024))]
    block_tokens: u32,

    /// Blocks of GPU memory that kvtier manages
    #[arg(long, value_name = "BLOCKS", default_value_t = 0)]
    hbm: u32,

    /// Blocks of pinned host memory
    #[arg(long, value_name = "BLOCKS", default_value_t = 10_000)]
    host: u32,

    /// Blocks of the NVMe log
    #[arg(long, value_name = "BLOCKS", default_value_t = 0)]
    nvme: u32,

    /// Eviction policy of HBM and host memory: adaptive, lru, hit-reward or s3fifo
    #[arg(long, value_name = "NAME", default_value_t = PolicyKind::default())]
    policy: PolicyKind,

    /// NVMe writes allowed per day, in gigabytes (10^9 bytes); no limit if absent
    #[arg(long, value_name = "GB")]
    nvme_gb_per_day: Option<u32>,

    /// Move no bytes (the default)
    #[arg(long = "virtual", conflicts_with = "real")]
    virtual_: bool,

    /// Move real bytes and compare them
    #[arg(long, requires = "dir")]
    real: bool,

    /// Directory for the NVMe log of --real. A log that is there already is lost
    #[arg(long, value_name = "DIR", requires = "real")]
    dir: Option<PathBuf>,

    /// Where GPU blocks are: auto (a GPU if there is one), cuda:N or host (memory that stands in for a GPU)
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto, requires = "real")]
    device: DeviceChoice,

    /// Bytes of one block; without --real it only scales figures in bytes
    #[arg(long, value_name = "N", default_value_t = 256 << 10, value_parser = value_parser!(u32).range(1..=1 << 29))]
    block_bytes: u32,

    /// Makes the bytes of the blocks
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Leave malformed lines out and count them, instead of stopping at the first one
    #[arg(long)]
    skip_bad: bool,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let mut reader = TraceReader::open(&args.trace)?;
    if args.skip_bad {
        reader = reader.skip_bad();
    }
    let requests: std::result::Result<Vec<_>, _> = reader.by_ref().collect();
    let workload = Workload::new(requests?, Tokens(args.block_tokens));
    let replay = Replay {
        capacity: Blocks { hbm: args.hbm, host: args.host, nvme: args.nvme },
        policy: args.policy,
        nvme_budget: args.nvme_gb_per_day.map(|gb| BytesPerDay(u64::from(gb) * 1_000_000_000)),
        block_bytes: args.block_bytes as usize,
        seed: args.seed,
        real: args.real.then(|| args.dir.clone()).flatten(),
        device: args.device,
    };
    let mut report = output
        .with_progress(workload.arrivals.len(), "requests", |progress| replay.run(&workload, progress))?;
    report.skipped_lines = reader.skipped();
    output.result(&report)?;
    check(&report)
}

/// The replay went to its end; whether it kept its promises is another question.
pub(super) fn check(report: &Report) -> Result<()> {
    if report.mismatches > 0 {
        return Err(
            format!("{} blocks came back with other bytes than were stored", report.mismatches).into()
        );
    }
    Ok(())
}
