//! `kvtier gpu calibrate`.

use kvtier_benches::gpu::calibration::Record;

use super::super::{Output, Result};

/// What a device measures when it is opened: the figures that copies are chosen by
///
/// With --json it prints what `kvtier gpu explain --calibration` reads, also on a machine without a GPU.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier gpu calibrate\n  \
    kvtier gpu calibrate --json > h200.json")]
pub(super) struct Args {
    /// Number of the GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,
}

pub(super) fn run(args: &Args, output: &Output) -> Result<()> {
    output.result(&Record::measure(args.device)?)
}
