//! Counters of a planner. Plain totals since it was built.

use crate::tier::PerTier;

/// See each field. Block counts unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlannerStats {
    /// Requests acquired.
    pub requests: u64,
    /// Blocks that requests asked for.
    pub block_refs: u64,
    /// Blocks found and made ready, by the tier they were found in.
    pub hits: PerTier<u64>,
    /// Blocks that came from remote stores for a request that waited for them.
    pub remote_hits: u64,
    /// Questions to remote stores what they have.
    pub remote_lookups: u64,
    /// Blocks that came from a remote store, probes included.
    pub remote_reads: u64,
    /// Blocks stored in a remote store.
    pub remote_writes: u64,
    /// Blocks that were not stored remotely because too many were waiting already, or because it failed.
    pub remote_writes_lost: u64,
    /// Requests whose slow loads were admitted.
    pub loads_admitted: u64,
    /// Requests that recompute what a slow source was asked, or could have been asked, for.
    pub loads_refused: u64,
    /// Loads that were given up at the deadline of the rule.
    pub loads_late: u64,
    /// Reads that nobody waited for, to measure a source.
    pub probes: u64,
    /// Blocks asked for that found no slot in the top tier, so that they cannot be cached.
    pub no_room: u64,
    /// Blocks promised by a look-up that failed to load or came after the deadline.
    pub lost: u64,
    /// Loads whose bytes were refused by verification.
    pub refused_loads: u64,
    /// Loads that failed for another reason.
    pub failed_loads: u64,
    /// Jobs completed, by kind: HBM to host.
    pub offloads: u64,
    /// Host to HBM.
    pub onboards: u64,
    /// NVMe to host.
    pub nvme_reads: u64,
    /// Host to NVMe, reinsertions included.
    pub nvme_writes: u64,
    /// Records written again because their segment was reclaimed.
    pub reinserted: u64,
    /// Slots that are never used again, because a transfer into them was left in doubt.
    pub given_up_slots: u64,
    /// Write-backs (offloads and NVMe writes) that failed.
    pub failed_writes: u64,
    /// Blocks that left each tier to make room.
    pub evictions: PerTier<u64>,
    /// Blocks that the runtime took out.
    pub removed: u64,
    /// Blocks that left host RAM while no other tier had them.
    pub lost_to_eviction: u64,
    /// Blocks that NVMe admission refused.
    pub admission_refused: u64,
    /// Completions for jobs that do not exist (any more).
    pub stale_completions: u64,
}
