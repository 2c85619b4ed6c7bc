//! `kvtier bench index`.

use std::path::PathBuf;

use clap::value_parser;
use kvtier_benches::index::{self, Figures, Plan, Summary};

use super::{Output, Result};

/// Prefix look-ups, pins, evictions and registrations, next to plain hash maps
///
/// Every contender holds the same blocks in chains of 256 and does the same operations on whole chains. They
/// take turns within each round; the figure is the median of the rounds. The plain maps are the limit:
/// they know no tiers, parents or leaves. With the cargo feature `peers`, kvbm-logical takes part as well.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier bench index\n  \
    kvtier bench index --blocks 65536,524288 --rounds 21\n  \
    cargo run --release --features peers -- bench index --save benches/results/index-2026-01-31\n\n\
    Sizes of 1048576 blocks need about 0.3 GB of memory, with the feature `peers` 2 GB.")]
pub(crate) struct Args {
    /// Resident blocks; several sizes are measured one after the other
    #[arg(long, value_delimiter = ',', default_values_t = [16_384, 131_072, 1_048_576],
          value_parser = value_parser!(u32).range(1..=1 << 26))]
    blocks: Vec<u32>,

    /// Rounds per size; the figure is their median
    #[arg(long, default_value_t = 9, value_parser = value_parser!(u32).range(1..=10_000))]
    rounds: u32,

    /// Also keep the result as STEM.json and STEM.md
    #[arg(long, value_name = "STEM")]
    save: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let mut figures = Figures::default();
    let mut sizes = args.blocks.clone();
    sizes.sort_unstable();
    sizes.dedup();
    for blocks in sizes {
        index::measure(&mut figures, Plan::new(blocks as usize, args.rounds as usize), |round| {
            output.progress(format_args!("{blocks} blocks: round {round} of {}", args.rounds));
        })?;
    }
    let summary = Summary::new(figures, args.rounds as usize);
    if let Some(stem) = &args.save {
        super::save(stem, "Prefix index", &summary)?;
    }
    output.result(&summary)
}
