//! What `kvtier bench remote` prints.

use std::fmt;

use serde::Serialize;

use super::{Direction, Plan};
use crate::ByteSize;
use crate::report::{Machine, Sample, Table};

/// What a remote store must reach of its limit: kvtier's own target.
const TARGET_SHARE: f64 = 0.9;

/// One store, one size, one direction.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Which store.
    pub store: &'static str,
    /// Bytes of a value.
    pub value: ByteSize,
    /// Which way.
    pub direction: Direction,
    /// Who sets the limit, and what it does for one value.
    pub limit: &'static str,
    /// The store's rate, 10^9 bytes of values per second.
    pub kvtier_gb_per_second: Sample,
    /// The limit's.
    pub limit_gb_per_second: Sample,
    /// The store's rate as a share of the limit's, pair by pair.
    pub share_of_limit: Sample,
}

/// A whole run: what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    schema: &'static str,
    machine: Machine,
    calls: u32,
    pairs: u32,
    /// Of one measurement.
    seconds: f64,
    /// Of all values.
    set_bytes: ByteSize,
    target_share: f64,
    figures: Vec<Figure>,
}

impl Summary {
    pub(super) fn new(plan: &Plan, figures: Vec<Figure>) -> Self {
        Self {
            schema: "kvtier.bench.remote/1",
            machine: Machine::here(),
            calls: plan.calls,
            pairs: plan.pairs,
            seconds: plan.time.as_secs_f64(),
            set_bytes: plan.set_bytes,
            target_share: TARGET_SHARE,
            figures,
        }
    }

    /// What was measured.
    #[must_use]
    pub fn figures(&self) -> &[Figure] {
        &self.figures
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, calls, pairs, seconds, set_bytes, .. } = self;
        writeln!(f, "{machine}\n")?;
        writeln!(
            f,
            "Store and limit took turns, {pairs} times {seconds} s each, with {calls} values under way and {set_bytes} \
             of different values; median (min..max). A value is a record: a header of 128 bytes and the payload. \
             One thread offers and waits; gets are verified and copied to it, puts carry a checksum. A put to a \
             directory writes and syncs a new file, renames it over the old one and syncs the directory; fio writes and \
             syncs a new file. Gets from a directory come from the page cache on both \
             sides. redis-benchmark checks and keeps nothing.\n"
        )?;
        let titles = ["store", "value", "direction", "limit", "kvtier GB/s", "limit GB/s", "share", "target"];
        let mut table = Table::new(&titles);
        for figure in &self.figures {
            table.row([
                figure.store.to_owned(),
                figure.value.to_string(),
                figure.direction.to_string(),
                figure.limit.to_owned(),
                format!("{:.2}", figure.kvtier_gb_per_second),
                format!("{:.2}", figure.limit_gb_per_second),
                format!("{:.3}", figure.share_of_limit),
                format!(">= {TARGET_SHARE}"),
            ]);
        }
        write!(f, "{table}")
    }
}
