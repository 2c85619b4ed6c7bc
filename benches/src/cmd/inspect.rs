//! `kvtier inspect`.

use std::fmt;
use std::path::PathBuf;

use kv_tiers::nvme::{self, Inspection};
use kvtier_benches::report::Table;
use serde::Serialize;

use super::{Output, Result};

/// Show what an NVMe log holds, without opening it for write
///
/// Segments, records, namespaces, damage and wear. Takes no lock, so the log may be in use; what is being
/// written at the moment may then look torn.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    kvtier inspect /mnt/nvme/kvtier\n  \
    kvtier inspect /mnt/nvme/kvtier --verify\n  \
    kvtier inspect /mnt/nvme/kvtier --json | jq .namespaces")]
pub(crate) struct Args {
    /// The log's directory
    dir: PathBuf,

    /// Also read every record and check its payload. Takes as long as reading the whole log
    #[arg(long)]
    verify: bool,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let mut seen = nvme::inspect(&args.dir)?;
    if args.verify {
        let segments = seen.segments.len();
        seen = output.with_progress(segments, "segments", |progress| nvme::scrub(&args.dir, progress))?;
    }
    output.result(&Shown(seen))
}

#[derive(Serialize)]
#[serde(transparent)]
struct Shown(Inspection);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inspection { payload_bytes, records_per_segment, segment_bytes, records, wear_bytes, .. } =
            self.0;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        writeln!(
            f,
            "{records} records of {payload_bytes} bytes in {} segments of {records_per_segment} records \
             ({:.2} GiB); written in its life: at most {:.2} GiB\n",
            self.0.segments.len(),
            gib(segment_bytes * self.0.segments.len() as u64),
            gib(wear_bytes),
        )?;
        let mut segments = Table::new(&["segment", "state", "generation", "records"]);
        for s in &self.0.segments {
            let state = format!("{:?}", s.state).to_lowercase();
            segments.row([s.segment.to_string(), state, s.generation.to_string(), s.records.to_string()]);
        }
        writeln!(f, "{segments}")?;
        let mut namespaces = Table::new(&["namespace", "records", "MiB", "epochs"]);
        for (id, n) in &self.0.namespaces {
            let epochs: Vec<_> =
                n.epochs.iter().map(|(epoch, records)| format!("{epoch}: {records}")).collect();
            let mib = format!("{:.1}", n.bytes as f64 / f64::from(1 << 20));
            namespaces.row([id.clone(), n.records.to_string(), mib, epochs.join(", ")]);
        }
        writeln!(f, "{namespaces}")?;
        match self.0.damaged.as_slice() {
            [] => writeln!(f, "No damage."),
            damaged => {
                writeln!(f, "Damaged places: {}", damaged.len())?;
                damaged.iter().try_for_each(|damage| writeln!(f, "  {damage}"))
            }
        }
    }
}
