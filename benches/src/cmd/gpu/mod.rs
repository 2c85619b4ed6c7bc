//! `kvtier gpu`.

mod bench;
mod calibrate;
mod check;
mod explain;
mod info;

use clap::Subcommand;

use super::{Output, Result};

/// A real GPU: what it is, whether kvtier is right on it, how fast, and why it copies as it does
///
/// Works with any NVIDIA driver from CUDA 12.4 on; needs no CUDA toolkit. Without a subcommand it is `info`.
/// Exit code 3 says that there is no GPU that could be used, and what to do; 1 that something failed.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier gpu\n  \
    kvtier gpu check\n  \
    kvtier gpu bench --out gpu-results\n  \
    kvtier gpu explain --block 2MiB --fragment 4KiB --blocks 64")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Info(info::Args),
    Check(check::Args),
    Bench(bench::Args),
    Explain(explain::Args),
    Calibrate(calibrate::Args),
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    match &args.command {
        None => info::run(output),
        Some(Command::Info(_)) => info::run(output),
        Some(Command::Check(args)) => check::run(args, output),
        Some(Command::Bench(args)) => bench::run(args, output),
        Some(Command::Explain(args)) => explain::run(args, output),
        Some(Command::Calibrate(args)) => calibrate::run(args, output),
    }
}
