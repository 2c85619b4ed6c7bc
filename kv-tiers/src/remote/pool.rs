//! A few threads for calls that block. A thread that hangs in the kernel is lost until the kernel lets it go; when
//! all hang, callers leave at their deadlines and the permits bound what waits.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::call::Flight;

/// One piece of blocking work, and whom it is for.
pub(crate) struct Task {
    pub(crate) flight: Arc<Flight>,
    pub(crate) work: Box<dyn FnOnce() + Send>,
}

/// The threads. Dropping it forgets what has not begun and waits for nothing.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Task>,
    closing: bool,
}

impl Pool {
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        let pool = Self { shared: Arc::default() };
        for i in 0..threads {
            let shared = Arc::clone(&pool.shared);
            std::thread::Builder::new().name(format!("kvtier-remote-{i}")).spawn(move || shared.work())?;
        }
        Ok(pool)
    }

    /// Queues the tasks of one call.
    pub(crate) fn submit(&self, tasks: Vec<Task>) {
        if let Some(first) = tasks.first() {
            let shared = Arc::clone(&self.shared);
            first.flight.when_left(move || shared.forget());
        }
        let count = tasks.len();
        self.shared.state.lock().queue.extend(tasks);
        // A thread that is awake looks for more before it waits: one call is enough for each task, and waking all
        // threads for one costs more than to read a small block.
        for _ in 0..count {
            if !self.shared.changed.notify_one() {
                break;
            }
        }
    }
}

impl Shared {
    /// Drops the tasks that nobody waits for, and with them their buffers and permits.
    fn forget(&self) {
        let mut state = self.state.lock();
        let (wanted, forgotten) = state.queue.drain(..).partition(|task| task.flight.is_wanted());
        state.queue = wanted;
        drop(state);
        // Answers, which takes other locks.
        drop::<VecDeque<_>>(forgotten);
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(task) = state.queue.pop_front() {
                drop(state);
                let Task { flight, work } = task;
                let wanted = flight.is_wanted();
                drop(flight);
                if wanted {
                    work();
                }
                state = self.state.lock();
            } else if state.closing {
                return;
            } else {
                self.changed.wait(&mut state);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closing = true;
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        self.shared.changed.notify_all();
        drop(queue);
    }
}
