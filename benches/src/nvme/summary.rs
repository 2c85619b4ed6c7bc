//! What `kvtier bench nvme` prints.

use std::fmt;

use serde::Serialize;

use super::{Direction, Plan};
use crate::ByteSize;
use crate::report::{Machine, Sample, Table};

/// What the NVMe log must reach: kvtier's own target, for reads and for writes.
const TARGET_SHARE: f64 = 0.94;

/// One extent, one direction.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Bytes of a record, and of one I/O of the limit.
    pub extent: ByteSize,
    /// Which way.
    pub direction: Direction,
    /// The log's rate, 10^9 bytes on disk per second.
    pub kvtier_gb_per_second: Sample,
    /// The limit's.
    pub limit_gb_per_second: Sample,
    /// The log's rate as a share of the limit's, pair by pair.
    pub share_of_limit: Sample,
}

/// A whole run: what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    schema: &'static str,
    machine: Machine,
    /// Who set it.
    limit: String,
    /// How the log did its I/O.
    log: String,
    queue_depth: u32,
    pairs: u32,
    /// Of one measurement.
    seconds: f64,
    log_bytes: ByteSize,
    target_share: f64,
    figures: Vec<Figure>,
}

impl Summary {
    pub(super) fn new(plan: &Plan, limit: String, log: String, figures: Vec<Figure>) -> Self {
        Self {
            schema: "kvtier.bench.nvme/1",
            machine: Machine::here(),
            limit,
            log,
            queue_depth: plan.queue_depth,
            pairs: plan.pairs,
            seconds: plan.time.as_secs_f64(),
            log_bytes: plan.log_bytes,
            target_share: TARGET_SHARE,
            figures,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, limit, log, queue_depth, pairs, seconds, log_bytes, .. } = self;
        writeln!(f, "{machine}\n")?;
        writeln!(f, "Log: {log}. Limit: {limit}.\n")?;
        writeln!(
            f,
            "Log and limit took turns on the same {log_bytes} of files at queue depth {queue_depth}, {pairs} times \
             {seconds} s each; median (min..max). A record is a header page of 4 KiB and its payload, together one \
             extent; the limit moves extents of that size. Reads are random and verified, writes carry a checksum \
             and rewrite segments.\n"
        )?;
        let mut table = Table::new(&["extent", "direction", "kvtier GB/s", "limit GB/s", "share", "target"]);
        for figure in &self.figures {
            table.row([
                figure.extent.to_string(),
                figure.direction.to_string(),
                format!("{:.2}", figure.kvtier_gb_per_second),
                format!("{:.2}", figure.limit_gb_per_second),
                format!("{:.3}", figure.share_of_limit),
                format!(">= {TARGET_SHARE}"),
            ]);
        }
        write!(f, "{table}")
    }
}
