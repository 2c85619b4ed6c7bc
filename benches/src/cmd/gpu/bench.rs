//! `kvtier gpu bench`.

use std::path::PathBuf;

use clap::value_parser;
use kvtier_benches::ByteSize;
use kvtier_benches::gpu::bench::Bench;

use super::super::{Output, Result, save};

/// Copies between HBM and host memory, and within HBM, by every method, beside their limits
///
/// Rates by fragment for each method that is forced and for what kvtier chooses, beside one contiguous copy and beside
/// plain calls of the driver; permutes, digests and zeroing beside a copy within the GPU; latency of a small load
/// alone and behind write-backs; loads by layers; a matrix product beside copies; and, when torch can be imported,
/// the copies of other projects. Then the goals, and whether they are reached.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier gpu bench\n  \
    kvtier gpu bench --out gpu-h200 --rounds 15\n  \
    kvtier gpu bench --fragments 4KiB,64KiB --bytes 64MiB --no-peers --json\n\n\
    Takes some minutes as it is, and four times --bytes of host memory.")]
pub(super) struct Args {
    /// Number of the GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,

    /// Rounds; the figure is their median
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Bytes of a copy; more than the GPU's caches, or it measures those
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = at_least_a_block)]
    bytes: ByteSize,

    /// Contiguous pieces in GPU memory: powers of two
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = power_of_two,
          default_values = ["2KiB", "4KiB", "8KiB", "16KiB", "32KiB", "64KiB", "128KiB", "256KiB", "1MiB", "2MiB"])]
    fragments: Vec<ByteSize>,

    /// Rows and columns of the matrices that are multiplied beside copies: a multiple of 128
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = matrix)]
    matrix: u32,

    /// Leave the copies of other projects out
    #[arg(long)]
    no_peers: bool,

    /// Also keep the result as STEM.json and STEM.md
    #[arg(long, value_name = "STEM")]
    out: Option<PathBuf>,
}

fn size(text: &str) -> std::result::Result<ByteSize, String> {
    text.parse().map_err(|error: kvtier_benches::BadSize| error.to_string())
}

fn at_least_a_block(text: &str) -> std::result::Result<ByteSize, String> {
    let bytes = size(text)?;
    let fits = (4 << 20..=1 << 30).contains(&bytes.0);
    if fits { Ok(bytes) } else { Err("from 4MiB to 1GiB, please".to_owned()) }
}

fn power_of_two(text: &str) -> std::result::Result<ByteSize, String> {
    let bytes = size(text)?;
    let fits = bytes.0.is_power_of_two() && (16..=2 << 20).contains(&bytes.0);
    if fits { Ok(bytes) } else { Err("a power of two from 16 to 2MiB, please".to_owned()) }
}

fn matrix(text: &str) -> std::result::Result<u32, String> {
    let size =
        text.parse().ok().filter(|size: &u32| size.is_multiple_of(128) && (128..=32768).contains(size));
    size.ok_or_else(|| "a multiple of 128 up to 32768, please".to_owned())
}

pub(super) fn run(args: &Args, output: &Output) -> Result<()> {
    let mut fragments = args.fragments.clone();
    fragments.sort_unstable();
    fragments.dedup();
    let bench = Bench {
        ordinal: args.device,
        rounds: args.rounds as usize,
        bytes: args.bytes,
        fragments,
        matrix: args.matrix,
        peers: !args.no_peers,
    };
    let report = bench.run(&mut |what| output.progress(what))?;
    if let Some(stem) = &args.out {
        save(stem, "Copies of a GPU", &report)?;
    }
    output.result(&report)
}
