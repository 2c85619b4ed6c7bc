//! Where an event loop learns which tickets are done.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use crate::task::Permit;

/// A ticket that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The caller's name for it.
    pub tag: u64,
    /// Keys that were served or stored.
    pub done: u32,
    /// Keys of the batch.
    pub keys: u32,
}

/// Collects finished tickets. Its descriptor is readable exactly while some wait, so it can sit in `epoll`,
/// `select` or an asyncio loop. One queue may serve several stores; a runtime that wants a descriptor per kind of
/// operation uses several queues.
#[derive(Debug)]
pub struct TaskQueue {
    /// Each with the place that it takes in its store, so that answers which nobody collects are bounded too.
    waiting: Mutex<VecDeque<(Finished, Permit)>>,
    event: OwnedFd,
}

impl TaskQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { waiting: Mutex::default(), event })
    }

    /// Takes at most `most` finished tickets, oldest first. The descriptor is quiet once none is left.
    pub fn drain(&self, most: usize) -> Vec<Finished> {
        let mut waiting = self.waiting.lock();
        let taken = most.min(waiting.len());
        if taken > 0 && taken == waiting.len() {
            // Under the lock, so that the descriptor tells the truth. It cannot fail: the counter is not zero.
            let mut counter = [0; 8];
            let _read = rustix::io::read(&self.event, &mut counter);
        }
        waiting.drain(..taken).map(|(finished, _)| finished).collect()
    }

    pub(crate) fn push(&self, finished: Finished, permit: Permit) {
        let mut waiting = self.waiting.lock();
        waiting.push_back((finished, permit));
        if waiting.len() == 1 {
            // Fails only at 2^64 - 2 unread events; there is never more than one.
            let _written = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

impl AsFd for TaskQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
