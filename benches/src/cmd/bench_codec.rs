//! `kvtier bench codec`.

use std::path::PathBuf;

use clap::value_parser;
use kvtier_benches::codec::{self, Summary};

use super::{Output, Result};

/// The lossless codec for KV: ratio, speed, and the links on which it pays
///
/// Normal data with the outlier channels of real keys, KV of a small trained model, noise and zeros, each in the
/// elements that runtimes cache. Beside it memcpy and, with the feature `peers`, zstd and lz4 with and without the
/// exponents split out.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier bench codec\n  \
    kvtier bench codec --mib 256 --rounds 21 --save benches/results/codec")]
pub(crate) struct Args {
    /// MiB of each kind of data; larger than the caches, or it measures those
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u32).range(1..=1 << 14))]
    mib: u32,

    /// Rounds; the figures are their medians
    #[arg(long, default_value_t = 7, value_parser = value_parser!(u32).range(1..=10_000))]
    rounds: u32,

    /// Also keep the result as STEM.json and STEM.md
    #[arg(long, value_name = "STEM")]
    save: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let mut figures = Vec::new();
    for data in codec::data((args.mib as usize) << 20) {
        output.progress(data.name);
        figures.extend(codec::measure(&data, args.rounds as usize)?);
    }
    let summary = Summary::new(figures, args.rounds as usize);
    if let Some(stem) = &args.save {
        super::save(stem, "The KV codec", &summary)?;
    }
    output.result(&summary)
}
