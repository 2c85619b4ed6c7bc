//! How a caller learns that its request can go on: by waiting, by polling, or by an eventfd.

use crate::sync::{Condvar, Mutex, lock, wait, wait_for};
use kv_core::planner::Ready;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The answer to one request, once it is there.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    answer: Mutex<Option<Ready>>,
    answered: Condvar,
    notify: Option<Notify>,
}

/// Where else the answer is to be announced.
#[derive(Clone, Debug)]
pub struct Notify {
    /// The queue.
    pub queue: Arc<CompletionQueue>,
    /// The caller's name for the request; comes back with the answer.
    pub tag: u64,
}

impl Ticket {
    pub(super) fn new(notify: Option<Notify>) -> Self {
        Self { notify, ..Self::default() }
    }

    pub(super) fn answer(&self, ready: Ready) {
        *lock(&self.answer) = Some(ready);
        self.answered.notify_all();
        if let Some(Notify { queue, tag }) = &self.notify {
            queue.push(Completion { tag: *tag, ready });
        }
    }

    pub(super) fn poll(&self) -> Option<Ready> {
        *lock(&self.answer)
    }

    pub(super) fn wait(&self) -> Ready {
        let mut answer = lock(&self.answer);
        loop {
            if let Some(ready) = *answer {
                return ready;
            }
            answer = wait(&self.answered, answer);
        }
    }

    pub(super) fn wait_until(&self, end: Instant) -> Option<Ready> {
        let mut answer = lock(&self.answer);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if answer.is_some() || left == Duration::ZERO {
                return *answer;
            }
            answer = wait_for(&self.answered, answer, left);
        }
    }
}

/// One answered request in a [`CompletionQueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As given in [`Notify`].
    pub tag: u64,
    /// The answer.
    pub ready: Ready,
}

/// Collects answers for an event loop. Its file descriptor is readable while answers are waiting, so it
/// can sit in `epoll`, `select` or an asyncio loop.
#[derive(Debug)]
pub struct CompletionQueue {
    waiting: Mutex<Vec<Completion>>,
    event: OwnedFd,
}

impl CompletionQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { waiting: Mutex::new(Vec::new()), event })
    }

    /// Takes all answers that are there, oldest first, and makes the descriptor quiet again.
    pub fn drain(&self, into: &mut Vec<Completion>) {
        let mut waiting = lock(&self.waiting);
        if !waiting.is_empty() {
            // Under the lock, so that the descriptor is quiet exactly while the queue is empty. It cannot
            // fail: the counter is not zero, and a descriptor that we own is not closed.
            let mut counter = [0; 8];
            let _read = rustix::io::read(&self.event, &mut counter);
        }
        into.append(&mut waiting);
    }

    fn push(&self, completion: Completion) {
        let mut waiting = lock(&self.waiting);
        waiting.push(completion);
        if waiting.len() == 1 {
            // Fails only at 2^64 - 2 unread events; we never have more than one.
            let _written = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;
    use kv_core::ids::RequestId;
    use kv_core::tier::PerTier;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(queue: &CompletionQueue) -> bool {
        let mut fds = [PollFd::new(queue, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn the_descriptor_is_readable_exactly_while_answers_wait() {
        let queue = Arc::new(CompletionQueue::new().unwrap());
        assert!(!readable(&queue));
        let ready = Ready {
            request: RequestId(1),
            ready: 2,
            granted: 3,
            hits: PerTier::default(),
            remote_hits: 0,
            lost: 0,
        };
        for tag in 0..3 {
            Ticket::new(Some(Notify { queue: queue.clone(), tag })).answer(ready);
        }
        assert!(readable(&queue));
        let mut got = Vec::new();
        queue.drain(&mut got);
        assert_eq!(got.iter().map(|c| c.tag).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(!readable(&queue));
        queue.drain(&mut got);
        assert_eq!(got.len(), 3);
        Ticket::new(Some(Notify { queue: queue.clone(), tag: 9 })).answer(ready);
        assert!(readable(&queue), "quiet once does not mean quiet for ever");
    }

    #[test]
    fn a_ticket_can_be_waited_for_with_and_without_a_limit() {
        let ticket = Arc::new(Ticket::default());
        assert_eq!(ticket.poll(), None);
        assert_eq!(ticket.wait_until(Instant::now() + Duration::from_millis(1)), None);
        let ready = Ready {
            request: RequestId(1),
            ready: 2,
            granted: 3,
            hits: PerTier::default(),
            remote_hits: 0,
            lost: 0,
        };
        let waiter = std::thread::spawn({
            let ticket = ticket.clone();
            move || ticket.wait()
        });
        ticket.answer(ready);
        assert_eq!(waiter.join().unwrap(), ready);
        assert_eq!(ticket.poll(), Some(ready));
        assert_eq!(ticket.wait_until(Instant::now()), Some(ready));
    }
}
