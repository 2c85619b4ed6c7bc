//! `kvtier gpu check`.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::value_parser;
use indicatif::{ProgressBar, ProgressStyle};
use kvtier_benches::gpu::check::{Check, Scale};

use super::super::{Output, Result};

/// Whether every kernel and every copy path is right on this GPU
///
/// Copies blocks in and out by every method, on layouts of runtimes and on drawn ones, permutes and reshards them,
/// erases and digests them, and after each case compares every byte of device and host memory, guard bands
/// included, with what the processor says it should be. Then order, priorities, refused calls and leaks.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier gpu check\n  \
    kvtier gpu check --quick\n  \
    kvtier gpu check --seed 4711 --cases 1    a case that failed, again\n  \
    kvtier gpu check --sanitizer              also under compute-sanitizer, where that is installed")]
pub(super) struct Args {
    /// Number of the GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,

    /// Seed of the first drawn case; each next case has the next seed
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,

    /// Drawn cases of each kind; by default 200, or 24 with --quick
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000))]
    cases: Option<u32>,

    /// Small blocks and pools: seconds
    #[arg(long)]
    quick: bool,

    /// Only copies to and from memory that kvtier did not allocate (torch tensors proper wait for a Python package)
    #[arg(long)]
    borrow: bool,

    /// Afterwards once more, quickly, under compute-sanitizer's memcheck and racecheck
    #[arg(long, conflicts_with = "json")]
    sanitizer: bool,
}

pub(super) fn run(args: &Args, output: &Output) -> Result<()> {
    let scale = if args.quick { Scale::Quick } else { Scale::Full };
    let cases = args.cases.unwrap_or(if args.quick { 24 } else { 200 });
    let check = Check { ordinal: args.device, seed: args.seed, cases, scale, only_borrowed: args.borrow };
    // Not before the first case: without a GPU there is nothing to show.
    let mut bar: Option<ProgressBar> = None;
    let report = check.run(&mut |over, all| {
        bar.get_or_insert_with(|| progress_bar(all)).set_position(over as u64);
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let report = report?;
    output.result(&report)?;
    match report.failures().len() {
        0 => {}
        failed => return Err(format!("{failed} cases of the check failed").into()),
    }
    if args.sanitizer { sanitize(args, output) } else { Ok(()) }
}

fn progress_bar(cases: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} cases, {eta} left");
    ProgressBar::new(cases as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Runs this command again under each tool.
fn sanitize(args: &Args, output: &Output) -> Result<()> {
    let Some(sanitizer) = on_path("compute-sanitizer") else {
        return Err(
            "compute-sanitizer is not on PATH; it comes with the CUDA toolkit (cuda-sanitizer-api)".into()
        );
    };
    let device = args.device.to_string();
    let seed = args.seed.to_string();
    for tool in ["memcheck", "racecheck"] {
        output.progress(format_args!("compute-sanitizer --tool {tool}, which takes minutes"));
        let status = Command::new(&sanitizer)
            .args(["--tool", tool, "--error-exitcode", "9"])
            .arg(std::env::current_exe()?)
            .args(["gpu", "check", "--quick", "--cases", "4", "--device", &device, "--seed", &seed])
            .status()?;
        if !status.success() {
            return Err(format!("compute-sanitizer's {tool} found errors ({status})").into());
        }
    }
    output.progress("compute-sanitizer found nothing.");
    Ok(())
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file: &PathBuf| Path::is_file(file))
}
