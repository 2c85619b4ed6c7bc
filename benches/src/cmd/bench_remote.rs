//! `kvtier bench remote`.

use std::path::PathBuf;
use std::time::Duration;

use clap::value_parser;
use kvtier_benches::ByteSize;
use kvtier_benches::remote::Plan;

use super::{Output, Result, seconds};

/// Remote stores as a share of fio and of redis-benchmark, in the same run
///
/// A directory takes turns with fio (package fio), and a Redis server of the benchmark's own with redis-benchmark
/// (packages redis-server and redis-tools), with values of the same size and as many of them under way. Redis is
/// measured by a command that was built with the feature `redis`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo run --release --features redis -- bench remote\n  \
    kvtier bench remote --dir /mnt/share            that file system against fio\n  \
    kvtier bench remote --dir /dev/shm --sizes 2MiB  the store's own cost: no disk is waited for\n\n\
    Takes about 5 minutes as it is.")]
pub(crate) struct Args {
    /// Where the files go, in a directory of its own that is removed at the end; by default the current one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Bytes of a value, its header of 128 bytes included
    #[arg(long, value_delimiter = ',', default_values = ["64KiB", "512KiB", "2MiB"])]
    sizes: Vec<ByteSize>,

    /// Values under way: calls, connections, jobs
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(1..=64))]
    calls: u32,

    /// Pairs of measurements, store and limit, for each figure
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = value_parser!(u32).range(1..=1000))]
    pairs: u32,

    /// Seconds of one measurement
    #[arg(long, value_name = "S", default_value_t = 1.5, value_parser = seconds)]
    seconds: f64,

    /// Bytes of all different values of one measurement
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    set_size: ByteSize,

    /// Also keep the result as STEM.json and STEM.md
    #[arg(long, value_name = "STEM")]
    save: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let mut values = args.sizes.clone();
    values.sort_unstable();
    values.dedup();
    let plan = Plan {
        values,
        calls: args.calls,
        set_bytes: args.set_size,
        pairs: args.pairs,
        time: Duration::from_secs_f64(args.seconds),
    };
    plan.check()?;
    let scratch = super::scratch(args.dir.as_deref(), plan.disk_bytes())?;
    let summary = plan.measure(scratch.path(), &mut |what| output.progress(what))?;
    if let Some(stem) = &args.save {
        super::save(stem, "Remote stores and their limits", &summary)?;
    }
    output.result(&summary)
}
