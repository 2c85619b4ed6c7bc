//! `kvtier bench copy`.

use std::path::PathBuf;

use clap::value_parser;
use kvtier_benches::copy::{self, Geometry, Sides, Summary};

use super::{Output, Result};

/// Block copies between one page-first block and its scattered fragments, as a share of memcpy
///
/// Scatter loads a block into the runtime's layout, gather stores it from there. The limit, taken in the
/// same rounds, is memcpy of the same blocks. The plain routines run on one core; the HBM stand-in makes the same
/// copies on its own thread, by way of a device's queue and completions. No GPU is involved.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier bench copy\n  \
    kvtier bench copy --block 5242880 --fragments 16384,65536 --mib 512")]
pub(crate) struct Args {
    /// Bytes of one block
    #[arg(long, default_value_t = 4 << 20, value_parser = value_parser!(u32).range(1..))]
    block: u32,

    /// Bytes of one fragment; each size must divide the block. The block itself is always measured
    #[arg(long, value_delimiter = ',', default_values_t = [4 << 10, 64 << 10, 512 << 10, 2 << 20],
          value_parser = value_parser!(u32).range(1..))]
    fragments: Vec<u32>,

    /// MiB to copy per round; four times this much memory is used. Larger than the caches, or it measures those
    #[arg(long, default_value_t = 256, value_parser = value_parser!(u32).range(1..=1 << 20))]
    mib: u32,

    /// Rounds per fragment size; the figure is their median
    #[arg(long, default_value_t = 9, value_parser = value_parser!(u32).range(1..=10_000))]
    rounds: u32,

    /// Also keep the result as STEM.json and STEM.md
    #[arg(long, value_name = "STEM")]
    save: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let block = args.block as usize;
    let blocks = ((args.mib as usize) << 20).div_ceil(block);
    let mut sizes = args.fragments.clone();
    sizes.push(args.block);
    sizes.sort_unstable();
    sizes.dedup();
    // All of them before the first measurement, which may take long.
    let geometries: std::result::Result<Vec<_>, _> =
        sizes.iter().map(|fragment| Geometry::new(block, *fragment as usize, blocks)).collect();
    let mut figures = Vec::new();
    for geometry in geometries? {
        output.progress(format_args!("fragments of {} bytes", geometry.fragment));
        let mut sides = Sides::new(geometry)?;
        figures.extend(copy::measure(geometry, args.rounds as usize, &mut sides, &mut Sides::contenders()));
        sides.finish()?;
    }
    let summary = Summary::new(figures, args.rounds as usize);
    if let Some(stem) = &args.save {
        super::save(stem, "Block copies", &summary)?;
    }
    output.result(&summary)
}
