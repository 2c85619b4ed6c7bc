//! `kvtier gpu explain`.

use std::path::{Path, PathBuf};

use clap::{ValueEnum, value_parser};
use kv_core::job::Urgency;
use kv_cuda::Direction;
use kv_cuda::cuda::CopyTuning;
use kvtier_benches::ByteSize;
use kvtier_benches::gpu::calibration::Record;
use kvtier_benches::gpu::explain::{Explained, Transfer};

use super::super::{Output, Result};

/// How a transfer would be copied, and why
///
/// Predicts each method's time from what was measured on the GPU, or from a recorded measurement, for which no
/// GPU is needed. KVTIER_COPY_METHOD is followed.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier gpu explain --block 2MiB --fragment 4KiB --blocks 64\n  \
    kvtier gpu explain --block 2MiB --fragment 64KiB --blocks 8 --direction d2h --urgency write-back\n  \
    kvtier gpu explain --block 2MiB --fragment 4KiB --blocks 64 --calibration h200.json")]
pub(super) struct Args {
    /// Bytes of a block
    #[arg(long, value_name = "SIZE")]
    block: ByteSize,

    /// Bytes of its contiguous pieces in GPU memory; they fill the block
    #[arg(long, value_name = "SIZE")]
    fragment: ByteSize,

    /// Blocks that are copied together
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    blocks: u32,

    /// Which way
    #[arg(long, value_enum, default_value_t = Way::H2d)]
    direction: Way,

    /// What waits for it
    #[arg(long, value_enum, default_value_t = How::Demand)]
    urgency: How,

    /// What `kvtier gpu calibrate --json` printed, instead of measuring here
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,

    /// Number of the GPU to measure
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "calibration")]
    device: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    /// Host to device
    H2d,
    /// Device to host
    D2h,
}

#[derive(Clone, Copy, ValueEnum)]
enum How {
    /// A request waits for it
    Demand,
    /// Nobody waits for it
    WriteBack,
}

fn read(path: &Path) -> Result<Record> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Record::parse(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}

pub(super) fn run(args: &Args, output: &Output) -> Result<()> {
    let transfer = Transfer::new(args.block, args.fragment, args.blocks as usize)?;
    let record = match &args.calibration {
        Some(path) => read(path)?,
        None => Record::measure(args.device)?,
    };
    let direction = match args.direction {
        Way::H2d => Direction::ToDevice,
        Way::D2h => Direction::ToHost,
    };
    let urgency = match args.urgency {
        How::Demand => Urgency::Demand,
        How::WriteBack => Urgency::WriteBack,
    };
    let forced = CopyTuning::from_env()?.method;
    let calibration = record.calibration();
    output.result(&Explained::new(record.device, calibration, direction, urgency, transfer, forced))
}
