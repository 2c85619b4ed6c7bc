//! The bounded queue of a store and the threads that serve it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use kv_core::key::BlockKey;
use parking_lot::{Condvar, Mutex};

use crate::task::{Operation, Task};

/// Operations that a store takes on, from the submission until ticket and announcement are gone.
pub(crate) const MOST_TASKS: usize = 1024;

/// Threads. Each copies at memory speed, so more would only take the memory bus from each other; one is kept free
/// of writes, so that a load never waits behind them.
pub(crate) const WORKERS: usize = 4;

#[derive(Default)]
pub(crate) struct WorkQueue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    loads: VecDeque<Arc<Task>>,
    stores: VecDeque<Arc<Task>>,
    running: Vec<Arc<Task>>,
    closed: bool,
}

fn is_store(task: &Task) -> bool {
    matches!(task.operation, Operation::Put(_) | Operation::Offload(..) | Operation::Flush)
}

impl WorkQueue {
    /// False when it is closed.
    pub(crate) fn push(&self, task: Arc<Task>) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        let queue = if is_store(&task) { &mut state.stores } else { &mut state.loads };
        queue.push_back(task);
        // Not `notify_one`: it might wake a worker that may not take this kind.
        self.changed.notify_all();
        true
    }

    /// The next operation; loads first. `None` when the queue is closed.
    pub(crate) fn take(&self) -> Option<Arc<Task>> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            let storing = state.running.iter().filter(|task| is_store(task)).count();
            let mut next = state.loads.pop_front();
            if next.is_none() && storing < WORKERS - 1 {
                next = state.stores.pop_front();
            }
            if let Some(task) = next {
                if !task.begin() {
                    continue;
                }
                state.running.push(task.clone());
                return Some(task);
            }
            self.changed.wait(&mut state);
        }
    }

    pub(crate) fn done(&self, task: &Arc<Task>) {
        let mut state = self.state.lock();
        state.running.retain(|other| !Arc::ptr_eq(other, task));
        self.changed.notify_all();
    }

    /// Takes no more, cancels what is running and what waits.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.running.iter().for_each(|task| task.cancel());
        let waiting: Vec<_> = state.loads.drain(..).collect();
        let waiting: Vec<_> = waiting.into_iter().chain(state.stores.drain(..)).collect();
        drop(state);
        self.changed.notify_all();
        for task in waiting {
            task.cancel();
        }
    }

    /// Operations that wait or run.
    pub(crate) fn len(&self) -> usize {
        let state = self.state.lock();
        let waiting = state.loads.iter().chain(&state.stores).filter(|task| !task.is_finished());
        waiting.count() + state.running.len()
    }
}

/// Keys of one turn: so many are pinned by one worker at a time.
pub(crate) fn groups(keys: &[BlockKey], most: usize) -> impl Iterator<Item = (usize, &[BlockKey])> {
    keys.chunks(most).scan(0, |first, group| {
        let start = *first;
        *first += group.len();
        Some((start, group))
    })
}

/// Time left until `end`.
pub(crate) fn left(end: Instant) -> std::time::Duration {
    end.saturating_duration_since(Instant::now())
}
