//! Queues of finished tickets.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use kvtier_ffi::TaskQueue;

use crate::entry::{entry, watch_forks};
use crate::handle::{self, Entry};
use crate::status::{Failure, Status};
use crate::structs::{give, not_null_array, out};
use crate::types::{CompletionC, QueueHandle};

/// Makes a queue. One may serve several stores; a runtime that wants a descriptor for each kind of operation makes
/// several.
///
/// # Safety
/// `queue` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_queue_open(queue: *mut QueueHandle) -> Status {
    entry(|| {
        watch_forks();
        out(queue, "queue")?;
        let made =
            TaskQueue::new().map_err(|error| Failure::new(Status::OutOfResources, error.to_string()))?;
        let id = handle::insert(Entry::Queue(Arc::new(made)))?;
        // SAFETY: checked above.
        unsafe { give(queue, QueueHandle { id }) }
    })
}

/// The queue's descriptor: readable (`poll`, `epoll`, asyncio) while finished tickets wait. Do not read or close it.
///
/// # Safety
/// `fd` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_queue_fd(queue: QueueHandle, fd: *mut i32) -> Status {
    entry(|| {
        out(fd, "fd")?;
        let found = handle::queue(queue.id)?;
        // SAFETY: checked above.
        unsafe { give(fd, found.as_fd().as_raw_fd()) }
    })
}

/// Takes finished tickets, oldest first, `capacity` at most. Does not wait.
///
/// # Safety
/// `completions` has `capacity` writable elements; `count` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_queue_drain(
    queue: QueueHandle,
    completions: *mut CompletionC,
    capacity: u64,
    count: *mut u64,
) -> Status {
    entry(|| {
        out(count, "count")?;
        not_null_array(completions, capacity, "completions")?;
        let found = handle::queue(queue.id)?;
        let taken = found.drain(usize::try_from(capacity).unwrap_or(usize::MAX));
        for (at, finished) in taken.iter().enumerate() {
            let completion = CompletionC { tag: finished.tag, done: finished.done, keys: finished.keys };
            // SAFETY: at < capacity, and the caller's word.
            unsafe { completions.add(at).write(completion) };
        }
        // SAFETY: checked above.
        unsafe { give(count, taken.len() as u64) }
    })
}

/// Closes a queue. Tickets that were to be announced there are done silently.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_queue_close(queue: QueueHandle) -> Status {
    entry(|| handle::take_queue(queue.id).map(drop))
}
