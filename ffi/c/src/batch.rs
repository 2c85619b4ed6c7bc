//! Batches: what callers name, checked, and the ticket that they get.

use std::sync::Arc;
use std::time::Duration;

use kvtier_ffi::{Buffers, KeyBatch, Run, Store, Submission, Ticket, batch};

use crate::constants::BATCH_CHAIN;
use crate::entry::entry;
use crate::handle::{self, Entry};
use crate::status::{Failure, Status};
use crate::structs::{array, give, out, read};
use crate::types::{BatchC, QueueHandle, RunC, TicketHandle};

/// # Safety
/// The pointers of `raw` are as their documentation says.
pub(crate) unsafe fn keys(store: &Store, raw: &BatchC) -> Result<KeyBatch, Failure> {
    if raw.num_keys > batch::MAX_KEYS as u64 {
        return Err(Failure::argument(format!(
            "{} keys; at most {} are taken",
            raw.num_keys,
            batch::MAX_KEYS
        )));
    }
    let most = batch::MAX_KEYS * batch::MAX_KEY_BYTES;
    if raw.key_ends.is_null() {
        let each = raw.key_bytes as usize;
        if raw.num_keys > 0 && !(1..=batch::MAX_KEY_BYTES).contains(&each) {
            let what = format!("key_bytes is {each}; it must be 1 to {}", batch::MAX_KEY_BYTES);
            return Err(Failure::argument(what));
        }
        // SAFETY: the caller's word: so many keys of so many bytes.
        let bytes = unsafe { array(raw.keys, raw.num_keys * each as u64, most, "keys") }?;
        return Ok(store.keys(bytes.chunks_exact(each.max(1)))?);
    }
    // SAFETY: the caller's word.
    let ends = unsafe { array(raw.key_ends, raw.num_keys, batch::MAX_KEYS, "key_ends") }?;
    // SAFETY: the caller's word: the last key ends there.
    let bytes = unsafe { array(raw.keys, ends.last().copied().unwrap_or(0), most, "keys") }?;
    let mut start = 0;
    let mut parts = Vec::with_capacity(ends.len());
    for (at, &end) in ends.iter().enumerate() {
        let end = end as usize;
        let part = bytes.get(start..end);
        parts.push(part.ok_or_else(|| Failure::argument(format!("key_ends decreases at key {at}")))?);
        start = end;
    }
    Ok(store.keys(parts.into_iter())?)
}

/// # Safety
/// The pointers of `raw` are as their documentation says.
unsafe fn submission(store: &Store, raw: &BatchC) -> Result<Submission, Failure> {
    if raw.flags & !BATCH_CHAIN != 0 {
        return Err(Failure::new(Status::Unsupported, format!("flags has unknown bits: {:#x}", raw.flags)));
    }
    // SAFETY: the caller's word.
    let keys = unsafe { keys(store, raw) }?;
    Ok(Submission {
        keys,
        chained: raw.flags & BATCH_CHAIN != 0,
        timeout: timeout(raw.timeout_ns),
        notify: notify(raw.queue, raw.tag)?,
    })
}

pub(crate) fn timeout(ns: u64) -> Option<Duration> {
    (ns > 0).then_some(Duration::from_nanos(ns))
}

pub(crate) fn notify(
    queue: QueueHandle,
    tag: u64,
) -> Result<Option<(Arc<kvtier_ffi::TaskQueue>, u64)>, Failure> {
    if queue.id == 0 { Ok(None) } else { Ok(Some((handle::queue(queue.id)?, tag))) }
}

/// # Safety
/// The pointers of `raw` are as their documentation says.
pub(crate) unsafe fn buffers(raw: &BatchC) -> Result<Buffers, Failure> {
    /// Runs of a batch: for the most keys, a K and a V for each of many layers.
    const MOST: usize = 1 << 27;
    // SAFETY: the caller's word.
    let runs = unsafe { array(raw.runs, raw.num_runs, MOST, "runs") }?;
    let run =
        |run: &RunC| Run { start: run.start.cast(), len: usize::try_from(run.len).unwrap_or(usize::MAX) };
    let runs = runs.iter().map(run).collect();
    if raw.run_counts.is_null() {
        return Ok(Buffers::even(runs, raw.num_keys as usize)?);
    }
    // SAFETY: the caller's word.
    let counts = unsafe { array(raw.run_counts, raw.num_keys, batch::MAX_KEYS, "run_counts") }?;
    Ok(Buffers::counted(runs, counts)?)
}

/// The common part of all that takes a batch and gives a ticket.
///
/// # Safety
/// `raw` is null or a batch with pointers as it says; `ticket` is null or writable.
pub(crate) unsafe fn submit(
    store: impl FnOnce() -> Result<Arc<Store>, Failure>,
    raw: *const BatchC,
    ticket: *mut TicketHandle,
    start: impl FnOnce(&Store, &BatchC, Submission) -> Result<Ticket, Failure>,
) -> Status {
    entry(|| {
        out(ticket, "ticket")?;
        let store = store()?;
        // SAFETY: the caller's word.
        let batch = unsafe { read(raw, "batch") }?;
        // SAFETY: the caller's word.
        let what = unsafe { submission(&store, &batch) }?;
        let started = start(&store, &batch, what)?;
        // SAFETY: checked above.
        unsafe { hand_out(started, ticket) }
    })
}

/// # Safety
/// `ticket` is writable.
pub(crate) unsafe fn hand_out(started: Ticket, ticket: *mut TicketHandle) -> Result<(), Failure> {
    let started = Arc::new(started);
    let id = handle::insert(Entry::Ticket(started.clone())).inspect_err(|_| {
        // Nobody would know when the memory may be used again.
        started.cancel();
        while started.wait(Duration::from_secs(1)).is_none() {}
    })?;
    // SAFETY: the caller's word.
    unsafe { give(ticket, TicketHandle { id }) }
}

/// Blocks of a pool that an operation names.
///
/// # Safety
/// The pointers of `raw` are as their documentation says.
pub(crate) unsafe fn blocks(raw: &BatchC) -> Result<Vec<u32>, Failure> {
    // SAFETY: the caller's word.
    Ok(unsafe { array(raw.blocks, raw.num_keys, batch::MAX_KEYS, "blocks") }?.to_vec())
}
