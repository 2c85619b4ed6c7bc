//! `kvtier bench reopen`.

use std::path::PathBuf;

use clap::value_parser;
use kvtier_benches::nvme::Reopen;

use super::{Output, Result};

/// How long an NVMe log of many small records takes to open again
///
/// Writes a log with records of 4 KiB, leaves its last segment open as a crash would, and opens it several times.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier bench reopen --dir /mnt/nvme\n  \
    kvtier bench reopen --records 100000 --openings 21 --json\n\n\
    A million records take 8.5 GB of disk while it runs.")]
pub(crate) struct Args {
    /// Where the log goes, in a directory of its own that is removed at the end; by default the current one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Records of the log
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = value_parser!(u32).range(1..=1 << 24))]
    records: u32,

    /// Times that it is opened; the figure is their median
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = value_parser!(u32).range(1..=1000))]
    openings: u32,

    /// Also keep the result as STEM.json and STEM.md
    #[arg(long, value_name = "STEM")]
    save: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let reopen = Reopen { records: args.records, openings: args.openings };
    let scratch = super::scratch(args.dir.as_deref(), reopen.disk_bytes())?;
    let reopened = reopen.measure(scratch.path(), &mut |what| output.progress(what))?;
    if let Some(stem) = &args.save {
        super::save(stem, "Reopening the NVMe log", &reopened)?;
    }
    output.result(&reopened)
}
