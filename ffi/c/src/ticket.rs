//! Operations under way.

use std::time::Duration;

use kv_cuda::driver::RuntimeStream;
use kvtier_ffi::{Summary, Ticket};

use crate::entry::entry;
use crate::handle;
use crate::status::{Failure, Status};
use crate::structs::{ABI_VERSION, not_null_array, write};
use crate::types::{ResultC, TicketHandle};

fn result(summary: Summary) -> ResultC {
    let Summary { keys, done, prefix } = summary;
    let size = size_of::<ResultC>() as u32;
    ResultC { size, version: ABI_VERSION, keys: keys.into(), done: done.into(), prefix: prefix.into() }
}

/// # Safety
/// `to` is null or a result.
unsafe fn answer(to: *mut ResultC, summary: Summary) -> Result<(), Failure> {
    // SAFETY: the caller's word.
    if to.is_null() { Ok(()) } else { unsafe { write(to, &result(summary), "result") } }
}

/// `KVTIER_OK` and the result if the ticket is done: its memory is the caller's again. Else `KVTIER_PENDING`.
///
/// # Safety
/// `result` is null or a result that `kvtier_init` has seen.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_ticket_poll(ticket: TicketHandle, result: *mut ResultC) -> Status {
    entry(|| {
        let summary = handle::ticket(ticket.id)?.poll();
        let summary = summary.ok_or_else(|| Failure::new(Status::Pending, "the ticket is not done"))?;
        // SAFETY: the caller's word.
        unsafe { answer(result, summary) }
    })
}

/// Waits for the ticket, `timeout_ns` at most (a day if it is more): `KVTIER_OK` and the result, or
/// `KVTIER_TIMED_OUT`, and the operation goes on.
///
/// # Safety
/// `result` is null or a result that `kvtier_init` has seen.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_ticket_wait(
    ticket: TicketHandle,
    timeout_ns: u64,
    result: *mut ResultC,
) -> Status {
    entry(|| {
        let summary = handle::ticket(ticket.id)?.wait(Duration::from_nanos(timeout_ns));
        let summary = summary.ok_or_else(|| Failure::new(Status::TimedOut, "the ticket is not done yet"))?;
        // SAFETY: the caller's word.
        unsafe { answer(result, summary) }
    })
}

/// What became of each key, one of `KVTIER_KEY_*`, in the order of the batch. `count` is the batch's number of keys (1
/// for a flush).
///
/// # Safety
/// `statuses` has `count` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_ticket_statuses(
    ticket: TicketHandle,
    statuses: *mut u8,
    count: u64,
) -> Status {
    entry(|| {
        let found = handle::ticket(ticket.id)?;
        let width = found.width();
        if count != width as u64 {
            return Err(Failure::argument(format!("count is {count}; the ticket has {width} statuses")));
        }
        not_null_array(statuses, count, "statuses")?;
        for (at, status) in found.statuses().into_iter().enumerate() {
            // SAFETY: at < count, and the caller's word.
            unsafe { statuses.add(at).write(status as u8) };
        }
        Ok(())
    })
}

/// Asks for an early end. The ticket is not done before it says so, and its memory in use until then.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_ticket_cancel(ticket: TicketHandle) -> Status {
    entry(|| {
        handle::ticket(ticket.id)?.cancel();
        Ok(())
    })
}

/// Forgets a ticket that is done, and ends its pins. `KVTIER_BUSY` if it is not done: its memory is in use. A store
/// takes on 1024 operations whose tickets are not released.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_ticket_release(ticket: TicketHandle) -> Status {
    entry(|| handle::release_ticket(ticket.id))
}

fn layer(ticket: TicketHandle, wait: impl FnOnce(&Ticket) -> Result<(), Failure>) -> Status {
    entry(|| wait(&*handle::ticket(ticket.id)?))
}

/// For an onboard: waits until a layer is in all blocks that were found, so that a forward pass can start before the
/// last layer is there. `KVTIER_LOAD_FAILED` if it will not arrive.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_ticket_wait_layer(ticket: TicketHandle, layer: u32, timeout_ns: u64) -> Status {
    self::layer(ticket, |ticket| Ok(ticket.wait_layer(layer, Duration::from_nanos(timeout_ns))?))
}

/// The same on the GPU: work that is queued in `stream` (a `cudaStream_t` as a number) from now on waits for the layer.
/// The calling thread waits only until that layer's copy is queued. On `KVTIER_DEVICE_HOST` it waits for the layer.
///
/// # Safety
/// The stream exists, in the context of the pool's device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_ticket_hold_layer(
    ticket: TicketHandle,
    layer: u32,
    stream: u64,
    timeout_ns: u64,
) -> Status {
    self::layer(ticket, |ticket| {
        // SAFETY: the caller's word.
        let held =
            unsafe { ticket.hold_layer(layer, RuntimeStream(stream), Duration::from_nanos(timeout_ns)) };
        Ok(held?)
    })
}
