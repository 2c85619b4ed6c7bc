//! What a store has done. Plain totals since it was opened.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::task::KeyStatus;

/// See each field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoreStats {
    /// Keys asked for by `exists`, and those that were there.
    pub exists_keys: u64,
    /// Of them, there.
    pub exists_found: u64,
    /// Keys of gets, onboards and pins.
    pub load_keys: u64,
    /// Of them, served.
    pub load_hits: u64,
    /// Of them, not served because reading failed or the bytes were refused.
    pub load_failed: u64,
    /// Of them, not served in time.
    pub load_timed_out: u64,
    /// Keys of puts and offloads.
    pub store_keys: u64,
    /// Of them, copied in.
    pub stored: u64,
    /// Of them, there already.
    pub present: u64,
    /// Of them, refused for lack of room.
    pub no_room: u64,
    /// Keys of cancelled operations, of either way.
    pub cancelled: u64,
    /// Submissions refused because too much was under way.
    pub busy: u64,
    /// Operations that wait or run now.
    pub under_way: u64,
    /// Blocks that host memory can hold.
    pub host_slots: u64,
    /// Of them, in use now.
    pub host_used: u64,
    /// Blocks on NVMe now.
    pub nvme_used: u64,
    /// Blocks read from NVMe.
    pub nvme_reads: u64,
    /// Blocks written to NVMe.
    pub nvme_writes: u64,
    /// Blocks whose bytes were refused by verification.
    pub refused_loads: u64,
    /// Reads that failed for another reason.
    pub failed_loads: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Blocks that left their last tier to make room.
    pub lost_to_eviction: u64,
    /// Bytes of one block.
    pub block_bytes: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) exists_keys: AtomicU64,
    pub(crate) exists_found: AtomicU64,
    pub(crate) busy: AtomicU64,
    /// By [`KeyStatus`], of loads and of stores.
    loads: [AtomicU64; 8],
    stores: [AtomicU64; 8],
}

pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn count(&self, store: bool, statuses: &[KeyStatus]) {
        let by_status = if store { &self.stores } else { &self.loads };
        for status in statuses {
            add(&by_status[*status as usize], 1);
        }
    }

    pub(crate) fn read(&self) -> StoreStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let load = |status: KeyStatus| get(&self.loads[status as usize]);
        let store = |status: KeyStatus| get(&self.stores[status as usize]);
        StoreStats {
            exists_keys: get(&self.exists_keys),
            exists_found: get(&self.exists_found),
            load_keys: self.loads.iter().map(get).sum(),
            load_hits: load(KeyStatus::Done),
            load_failed: load(KeyStatus::Failed),
            load_timed_out: load(KeyStatus::TimedOut),
            store_keys: self.stores.iter().map(get).sum(),
            stored: store(KeyStatus::Done),
            present: store(KeyStatus::Present),
            no_room: store(KeyStatus::NoRoom),
            cancelled: load(KeyStatus::Cancelled) + store(KeyStatus::Cancelled),
            busy: get(&self.busy),
            ..StoreStats::default()
        }
    }
}
