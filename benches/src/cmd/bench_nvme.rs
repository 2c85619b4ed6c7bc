//! `kvtier bench nvme`.

use std::path::PathBuf;
use std::time::Duration;

use clap::value_parser;
use kvtier_benches::ByteSize;
use kvtier_benches::nvme::Plan;

use super::{Output, Result, seconds};

/// Reads and writes of the NVMe log as a share of fio, on the same files in the same run
///
/// The log verifies what it reads and checksums what it writes. It takes turns with fio at the same extent size
/// and queue depth, O_DIRECT, io_uring; each figure is the median of the pairs. A record is a header page of 4 KiB
/// and its payload, together exactly one extent. Without fio the limit is a loop of threads with pread and
/// pwrite, and the result says so.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier bench nvme --dir /mnt/nvme\n  \
    kvtier bench nvme --dir /mnt/nvme --sizes 2MiB --queue-depth 32 --pairs 15\n  \
    kvtier bench nvme --dir /mnt/nvme --log-size 64GiB --seconds 10   a drive with a large cache of its own\n\n\
    Takes about 3 minutes as it is. Rewrites the files many times: on a fast drive some hundred GB.")]
pub(crate) struct Args {
    /// Where the files go, in a directory of its own that is removed at the end; by default the current one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Extents: bytes of a record on disk and of one I/O, whole pages of 4 KiB
    #[arg(long, value_delimiter = ',', default_values = ["512KiB", "2MiB", "8MiB"])]
    sizes: Vec<ByteSize>,

    /// Records in flight
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(1..=1024))]
    queue_depth: u32,

    /// Pairs of measurements, log and limit, for each size and direction
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = value_parser!(u32).range(1..=1000))]
    pairs: u32,

    /// Seconds of one measurement
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,

    /// Disk space to use
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    log_size: ByteSize,

    /// Also keep the result as STEM.json and STEM.md
    #[arg(long, value_name = "STEM")]
    save: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let mut extents = args.sizes.clone();
    extents.sort_unstable();
    extents.dedup();
    let plan = Plan {
        extents,
        queue_depth: args.queue_depth,
        pairs: args.pairs,
        time: Duration::from_secs_f64(args.seconds),
        log_bytes: args.log_size,
    };
    plan.check()?;
    let scratch = super::scratch(args.dir.as_deref(), plan.disk_bytes())?;
    let summary = plan.measure(scratch.path(), &mut |what| output.progress(what))?;
    if let Some(stem) = &args.save {
        super::save(stem, "The NVMe log and its limit", &summary)?;
    }
    output.result(&summary)
}
