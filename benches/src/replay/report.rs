//! What a replay found: one object for machines, one table for people.

use std::fmt;

use kv_core::planner::PlannerStats;
use kv_core::tier::{PerTier, Tier};
use serde::Serialize;

use super::real_run::RealTotals;
use super::{Replay, Workload};
use crate::report::Table;

/// A number of blocks for each tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Blocks {
    /// GPU memory, or its stand-in.
    pub hbm: u32,
    /// Pinned host RAM.
    pub host: u32,
    /// The NVMe log.
    pub nvme: u32,
}

impl Blocks {
    /// Of all tiers.
    #[must_use]
    pub fn total(self) -> u64 {
        u64::from(self.hbm) + u64::from(self.host) + u64::from(self.nvme)
    }
}

/// A count for each tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByTier {
    /// GPU memory, or its stand-in.
    pub hbm: u64,
    /// Pinned host RAM.
    pub host: u64,
    /// The NVMe log.
    pub nvme: u64,
}

impl From<PerTier<u64>> for ByTier {
    fn from(counts: PerTier<u64>) -> Self {
        Self { hbm: counts[Tier::Hbm], host: counts[Tier::Host], nvme: counts[Tier::Nvme] }
    }
}

/// Everything that differs from run to run on the same input.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Timing {
    /// Planner time per block asked for, policy included, from a run without bytes.
    pub planner_ns_per_block: f64,
    /// The whole replay: of the planner alone, or with making, moving and checking bytes.
    pub replay_seconds: f64,
    /// What requests waited for blocks to be brought up from lower tiers; 0 without bytes.
    pub load_wait_seconds: f64,
    /// The device that held the blocks of HBM; absent without bytes, and without HBM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_how: Option<String>,
    /// How the NVMe log did its I/O, and why; absent without bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvme_how: Option<String>,
}

/// See the module's head. Same input and seed: the same, but for `timing`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `virtual` or `real`.
    pub mode: &'static str,
    /// Eviction policy.
    pub policy: &'static str,
    /// What made the blocks' bytes, and the trace if it was generated.
    pub seed: u64,
    /// Capacity in blocks.
    pub capacity_blocks: Blocks,
    /// Bytes of one block.
    pub block_bytes: u64,
    /// Requests replayed.
    pub requests: u64,
    /// Lines of the trace that were malformed and left out.
    pub skipped_lines: u64,
    /// Blocks asked for.
    pub block_refs: u64,
    /// Different blocks asked for.
    pub unique_blocks: u64,
    /// Blocks that did not have to be computed.
    pub hit_blocks: u64,
    /// `hit_blocks / block_refs`.
    pub hit_rate: f64,
    /// Where the hits were found.
    pub hits_by_tier: ByTier,
    /// Hit rate of the exact offline optimum with the capacity of all tiers together.
    pub optimal_hit_rate: f64,
    /// `hit_rate / optimal_hit_rate`; 1 when nothing could have been hit.
    pub share_of_optimal: f64,
    /// Bytes written to NVMe, headers, padding and records written again included.
    pub nvme_writes_bytes: u64,
    /// Of those, records written again because their segment was reclaimed.
    pub nvme_rewritten_bytes: u64,
    /// Blocks that NVMe admission refused.
    pub nvme_refused_blocks: u64,
    /// Blocks that found no slot in the top tier and could not be cached: requests longer than it.
    pub no_room_blocks: u64,
    /// Blocks that a look-up found and that failed to load.
    pub lost_blocks: u64,
    /// Bytes of hits compared with what was stored; 0 without bytes.
    pub verified_bytes: u64,
    /// Hits whose bytes differed.
    pub mismatches: u64,
    /// Whether the run with bytes decided exactly as the one without; absent without bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_as_virtual: Option<bool>,
    /// What differs from run to run.
    pub timing: Timing,
}

impl Report {
    pub(super) fn new(
        replay: &Replay,
        workload: &Workload,
        stats: &PlannerStats,
        record_bytes: u64,
        optimal_hits: u64,
    ) -> Self {
        let mut report = Self {
            mode: "virtual",
            policy: replay.policy.name(),
            seed: replay.seed,
            capacity_blocks: replay.capacity,
            block_bytes: replay.block_bytes as u64,
            requests: stats.requests,
            skipped_lines: 0,
            block_refs: stats.block_refs,
            unique_blocks: workload.unique_blocks,
            hit_blocks: 0,
            hit_rate: 0.0,
            hits_by_tier: ByTier::default(),
            optimal_hit_rate: share(optimal_hits, stats.block_refs),
            share_of_optimal: 1.0,
            nvme_writes_bytes: 0,
            nvme_rewritten_bytes: 0,
            nvme_refused_blocks: 0,
            no_room_blocks: 0,
            lost_blocks: 0,
            verified_bytes: 0,
            mismatches: 0,
            same_as_virtual: None,
            timing: Timing::default(),
        };
        report.count(stats, record_bytes);
        report
    }

    fn count(&mut self, stats: &PlannerStats, record_bytes: u64) {
        self.hit_blocks = stats.hits.0.iter().sum();
        self.hit_rate = share(self.hit_blocks, self.block_refs);
        self.hits_by_tier = stats.hits.into();
        if self.optimal_hit_rate > 0.0 {
            self.share_of_optimal = self.hit_rate / self.optimal_hit_rate;
        }
        self.nvme_writes_bytes = stats.nvme_writes * record_bytes;
        self.nvme_rewritten_bytes = stats.reinserted * record_bytes;
        self.nvme_refused_blocks = stats.admission_refused;
        self.no_room_blocks = stats.no_room;
        self.lost_blocks = stats.lost;
    }

    /// Takes over what a run with bytes found; `expected` are the counters of the run without.
    pub(super) fn moved(&mut self, totals: &RealTotals, expected: &PlannerStats, record_bytes: u64) {
        self.mode = "real";
        self.count(&totals.stats, record_bytes);
        self.verified_bytes = totals.verified_bytes;
        self.mismatches = totals.mismatches;
        self.same_as_virtual = Some(totals.stats == *expected);
        self.timing.device_how.clone_from(&totals.device_how);
        self.timing.nvme_how.clone_from(&totals.nvme_how);
        self.timing.replay_seconds = totals.elapsed.as_secs_f64();
        self.timing.load_wait_seconds = totals.waited.as_secs_f64();
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, block_refs, unique_blocks, policy, mode, .. } = self;
        writeln!(
            f,
            "{requests} requests for {block_refs} blocks ({unique_blocks} different), policy {policy}, {mode}\n"
        )?;
        let mut tiers =
            Table::new(&["tier", "capacity, blocks", "hits, blocks", "of all asked for", "hits, MiB"]);
        let ByTier { hbm, host, nvme } = self.hits_by_tier;
        let capacity = self.capacity_blocks;
        let rows = [("hbm", capacity.hbm, hbm), ("host", capacity.host, host), ("nvme", capacity.nvme, nvme)];
        for (name, capacity, hits) in rows {
            let rate = percent(share(hits, self.block_refs));
            tiers.row([
                name.into(),
                capacity.to_string(),
                hits.to_string(),
                rate,
                mib(hits * self.block_bytes),
            ]);
        }
        let all = self.hit_blocks;
        tiers.row([
            "all".into(),
            capacity.total().to_string(),
            all.to_string(),
            percent(self.hit_rate),
            mib(all * self.block_bytes),
        ]);
        writeln!(f, "{tiers}")?;
        writeln!(
            f,
            "Share of the exact offline optimum ({}): {}",
            percent(self.optimal_hit_rate),
            percent(self.share_of_optimal)
        )?;
        writeln!(
            f,
            "NVMe writes: {} MiB, of which {} MiB written again at reclaim; {} blocks not admitted",
            mib(self.nvme_writes_bytes),
            mib(self.nvme_rewritten_bytes),
            self.nvme_refused_blocks
        )?;
        if self.no_room_blocks > 0 {
            writeln!(f, "{} blocks found no slot: requests longer than the top tier", self.no_room_blocks)?;
        }
        if self.skipped_lines > 0 {
            writeln!(f, "Malformed lines left out: {}", self.skipped_lines)?;
        }
        if let Some(device) = &self.timing.device_how {
            writeln!(f, "HBM: {device}")?;
        }
        if let Some(same) = self.same_as_virtual {
            writeln!(
                f,
                "Bytes verified: {} MiB in {:.2} s, mismatches: {}, failed loads: {}; decisions {} the run without bytes",
                mib(self.verified_bytes),
                self.timing.replay_seconds,
                self.mismatches,
                self.lost_blocks,
                if same { "same as" } else { "differ from" },
            )?;
        }
        writeln!(f, "Planner: {:.0} ns per block", self.timing.planner_ns_per_block)
    }
}
