//! Stores: open, look, load, store, close.

use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kv_core::key::NamespaceSecret;
use kv_core::policy::BytesPerDay;
use kvtier_ffi::stats::StoreStats;
use kvtier_ffi::{Durability, Identity, Store, StoreConfig};

use crate::batch::{buffers, hand_out, keys, notify, submit, timeout};
use crate::constants::{DURABILITY_AT_CLOSE, DURABILITY_WRITE_BEHIND};
use crate::entry::{entry, watch_forks};
use crate::handle::{self, Entry};
use crate::status::{Failure, Status};
use crate::structs::{ABI_VERSION, give, not_null_array, out, read, write};
use crate::types::{BatchC, QueueHandle, StatsC, StoreConfigC, StoreHandle, TicketHandle};

/// Blocks of host memory if nothing is said.
const USUAL_SLOTS: u64 = 1024;
/// Header of a slot, and what its payload is rounded up to.
const PAGE: u64 = 4096;

/// # Safety
/// `from` is null or a zero-terminated string.
unsafe fn text(from: *const c_char, name: &str) -> Result<String, Failure> {
    if from.is_null() {
        return Ok(String::new());
    }
    // SAFETY: the caller's word.
    let text = unsafe { CStr::from_ptr(from) };
    text.to_str().map(str::to_owned).map_err(|_| Failure::argument(format!("{name} is not UTF-8")))
}

/// # Safety
/// The pointers of `raw` are null or as their documentation says.
unsafe fn config(raw: &StoreConfigC) -> Result<StoreConfig, Failure> {
    // SAFETY: the caller's word, for each of the four.
    let identity = unsafe {
        Identity {
            tenant: text(raw.tenant, "tenant")?,
            model: text(raw.model, "model")?,
            revision: text(raw.revision, "revision")?,
            layout: text(raw.layout, "layout")?,
        }
    };
    let block_bytes = usize::try_from(raw.block_bytes).unwrap_or(usize::MAX);
    let slot = raw.block_bytes.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX).saturating_add(PAGE);
    let host_bytes = if raw.host_bytes == 0 { slot.saturating_mul(USUAL_SLOTS) } else { raw.host_bytes };
    let mut config = StoreConfig::new(block_bytes, host_bytes, identity);
    // SAFETY: the caller's word.
    let path = unsafe { text(raw.nvme_path, "nvme_path") }?;
    config.nvme = match (path.is_empty(), raw.nvme_bytes) {
        (true, 0) => None,
        (true, _) => return Err(Failure::argument("nvme_bytes is set and nvme_path is not")),
        (false, 0) => return Err(Failure::argument("nvme_path is set and nvme_bytes is not")),
        (false, bytes) => Some((PathBuf::from(path), bytes)),
    };
    config.nvme_budget = (raw.nvme_bytes_per_day > 0).then_some(BytesPerDay(raw.nvme_bytes_per_day));
    if !raw.secret.is_null() {
        // SAFETY: the caller's word; bytes have no alignment.
        config.secret = Some(NamespaceSecret::new(unsafe { raw.secret.cast::<[u8; 32]>().read() }));
    }
    config.durability = match raw.durability {
        DURABILITY_WRITE_BEHIND => Durability::WriteBehind,
        DURABILITY_AT_CLOSE => Durability::AtClose,
        other => return Err(Failure::argument(format!("durability is {other}; use a KVTIER_DURABILITY_*"))),
    };
    if raw.reserved != 0 {
        return Err(Failure::new(Status::Unsupported, "reserved is not zero"));
    }
    Ok(config)
}

/// Opens a store. Maps and locks host memory at 1 to 4 GB/s, and takes over what the NVMe log holds: seconds for large
/// ones. `KVTIER_BUSY` if another store has the directory open.
///
/// # Safety
/// `config` is null or a configuration that `kvtier_init` has seen, with pointers as it says; `store` is null or
/// writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_store_open(config: *const StoreConfigC, store: *mut StoreHandle) -> Status {
    entry(|| {
        watch_forks();
        out(store, "store")?;
        // SAFETY: the caller's word.
        let config = unsafe { self::config(&read(config, "config")?) }?;
        let opened = Store::open(&config)?;
        let id = handle::insert(Entry::Store(Arc::new(opened)))?;
        // SAFETY: checked above.
        unsafe { give(store, StoreHandle { id }) }
    })
}

/// Closes a store and its pool, cancels what is under way and waits until no memory of the caller is touched any more.
/// Transfers between memory and NVMe, and with `KVTIER_DURABILITY_AT_CLOSE` what is still to be written, get
/// `timeout_ns` (0: 30 s); `KVTIER_TIMED_OUT` if that was not enough. The store is closed in any case; its tickets
/// remain, to be released.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_store_close(store: StoreHandle, timeout_ns: u64) -> Status {
    entry(|| {
        let limit = if timeout_ns == 0 { Duration::from_secs(30) } else { Duration::from_nanos(timeout_ns) };
        Ok(handle::take_store(store.id)?.close(limit)?)
    })
}

/// Where each key of a batch is now, one of `KVTIER_AT_*`, and how many there are before the first that is nowhere.
/// Microseconds; pins and promises nothing. Only the keys of the batch are looked at.
///
/// # Safety
/// `batch` is null or a batch that `kvtier_init` has seen, with pointers as it says; `places` is null or has
/// `num_keys` writable bytes; `prefix` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_store_exists(
    store: StoreHandle,
    batch: *const BatchC,
    places: *mut u8,
    prefix: *mut u64,
) -> Status {
    entry(|| {
        let store = handle::store(store.id)?;
        // SAFETY: the caller's word.
        let keys = unsafe { keys(&store, &read(batch, "batch")?) }?;
        let found = store.exists(&keys)?;
        if !places.is_null() {
            for (at, presence) in found.iter().enumerate() {
                // SAFETY: at < num_keys, and the caller's word.
                unsafe { places.add(at).write(*presence as u8) };
            }
        }
        if !prefix.is_null() {
            out(prefix, "prefix")?;
            let there = found.iter().take_while(|at| **at != kvtier_ffi::store::Presence::Absent).count();
            // SAFETY: checked above.
            unsafe { give(prefix, there as u64)? };
        }
        Ok(())
    })
}

/// Takes the blocks of a batch out of host memory and NVMe, at once; `removals` gets one of `KVTIER_REMOVE_*` a key. No
/// purge: remote stores keep what they have, and until NVMe has written over a block, a restart may find it again.
///
/// # Safety
/// `batch` is null or a batch that `kvtier_init` has seen, with keys as it says; `removals` is null or has `num_keys`
/// writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_store_remove(
    store: StoreHandle,
    batch: *const BatchC,
    removals: *mut u8,
) -> Status {
    entry(|| {
        let store = handle::store(store.id)?;
        // SAFETY: the caller's word.
        let keys = unsafe { keys(&store, &read(batch, "batch")?) }?;
        let removed = store.remove(&keys)?;
        if !removals.is_null() {
            for (at, removal) in removed.iter().enumerate() {
                // SAFETY: at < num_keys, and the caller's word.
                unsafe { removals.add(at).write(*removal as u8) };
            }
        }
        Ok(())
    })
}

/// Nothing that was stored before is served any more by this store, also after a restart: for weights that were updated
/// in place, say. Operations under way may still end with blocks of before. If it fails, all is as it was.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_store_clear(store: StoreHandle) -> Status {
    entry(|| Ok(handle::store(store.id)?.clear()?))
}

/// Starts copying blocks out to the runs of a batch. A key that is `KVTIER_KEY_DONE` has exactly the bytes that were
/// stored; the memory of the others is as it was.
///
/// # Safety
/// `batch` is null or a batch that `kvtier_init` has seen, with pointers as it says. Until the ticket is done, its runs
/// are writable and nobody else reads or writes them. `ticket` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_store_get(
    store: StoreHandle,
    batch: *const BatchC,
    ticket: *mut TicketHandle,
) -> Status {
    // SAFETY: the caller's word.
    unsafe {
        submit(
            || handle::store(store.id),
            batch,
            ticket,
            |store, raw, what| Ok(store.get(what, buffers(raw)?)?),
        )
    }
}

/// Starts copying blocks in from the runs of a batch. Keys that are there already are `KVTIER_KEY_PRESENT` and not
/// copied: a key names its bytes. Goes no faster than the NVMe log takes what it pushes out of host memory.
///
/// # Safety
/// `batch` is null or a batch that `kvtier_init` has seen, with pointers as it says. Until the ticket is done, its runs
/// are readable and nobody writes them. `ticket` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_store_put(
    store: StoreHandle,
    batch: *const BatchC,
    ticket: *mut TicketHandle,
) -> Status {
    // SAFETY: the caller's word.
    unsafe {
        submit(
            || handle::store(store.id),
            batch,
            ticket,
            |store, raw, what| Ok(store.put(what, buffers(raw)?)?),
        )
    }
}

/// Starts bringing blocks to host memory. They stay there until the ticket is released; a quarter of host memory at
/// most, the rest is `KVTIER_KEY_NO_ROOM`. A chain is looked for in slow sources as well.
///
/// # Safety
/// `batch` is null or a batch that `kvtier_init` has seen, with keys as it says; `ticket` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_store_pin(
    store: StoreHandle,
    batch: *const BatchC,
    ticket: *mut TicketHandle,
) -> Status {
    // SAFETY: the caller's word.
    unsafe { submit(|| handle::store(store.id), batch, ticket, |store, _, what| Ok(store.pin(what)?)) }
}

/// Starts writing what only host memory holds to NVMe, and makes it survive a power loss. Its ticket has one status:
/// done, timed out (not all is written), or failed. `timeout_ns` of 0 is 30 s. `queue` may be `{0}`.
///
/// # Safety
/// `ticket` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_store_flush(
    store: StoreHandle,
    timeout_ns: u64,
    queue: QueueHandle,
    tag: u64,
    ticket: *mut TicketHandle,
) -> Status {
    entry(|| {
        out(ticket, "ticket")?;
        let started = handle::store(store.id)?.flush(timeout(timeout_ns), notify(queue, tag)?)?;
        // SAFETY: checked above.
        unsafe { hand_out(started, ticket) }
    })
}

/// Counters of a store.
///
/// # Safety
/// `stats` is null or a struct that `kvtier_init` has seen.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_store_stats(store: StoreHandle, stats: *mut StatsC) -> Status {
    // SAFETY: the caller's word.
    entry(|| unsafe { write(stats, &stats_of(handle::store(store.id)?.stats()?), "stats") })
}

/// Counters of a store as one JSON object, zero-terminated. `needed` gets its bytes with the zero; `KVTIER_TOO_SMALL`
/// if `capacity` is less.
///
/// # Safety
/// `json` has `capacity` writable bytes; `needed` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_store_stats_json(
    store: StoreHandle,
    json: *mut c_char,
    capacity: u64,
    needed: *mut u64,
) -> Status {
    entry(|| {
        out(needed, "needed")?;
        not_null_array(json, capacity, "json")?;
        let stats = handle::store(store.id)?.stats()?;
        let mut text =
            serde_json::to_vec(&stats).map_err(|error| Failure::new(Status::Io, error.to_string()))?;
        text.push(0);
        // SAFETY: checked above.
        unsafe { give(needed, text.len() as u64)? };
        if (text.len() as u64) > capacity {
            return Err(Failure::new(Status::TooSmall, format!("{} bytes are needed", text.len())));
        }
        // SAFETY: there is room, and the caller's word.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), json.cast::<u8>(), text.len()) };
        Ok(())
    })
}

fn stats_of(stats: StoreStats) -> StatsC {
    let StoreStats {
        exists_keys,
        exists_found,
        load_keys,
        load_hits,
        load_failed,
        load_timed_out,
        store_keys,
        stored,
        present,
        no_room,
        cancelled,
        busy,
        under_way,
        host_slots,
        host_used,
        nvme_used,
        nvme_reads,
        nvme_writes,
        refused_loads,
        failed_loads,
        failed_writes,
        lost_to_eviction,
        block_bytes,
    } = stats;
    StatsC {
        size: size_of::<StatsC>() as u32,
        version: ABI_VERSION,
        exists_keys,
        exists_found,
        load_keys,
        load_hits,
        load_failed,
        load_timed_out,
        store_keys,
        stored,
        present,
        no_room,
        cancelled,
        busy,
        under_way,
        host_slots,
        host_used,
        nvme_used,
        nvme_reads,
        nvme_writes,
        refused_loads,
        failed_loads,
        failed_writes,
        lost_to_eviction,
        block_bytes,
    }
}
