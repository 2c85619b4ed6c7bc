//! The portable backend: threads that do one blocking job at a time.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use kv_core::job::{Job, TransferError};
use parking_lot::{Condvar, Mutex};

use super::queue::Queue;
use super::segments::Segments;
use super::sink::{CompletionSink, deliver};

/// A pool of I/O threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    segments: Arc<Segments>,
    sink: Arc<dyn CompletionSink>,
    state: Mutex<State>,
    /// There may be a job to start, or none will come any more.
    changed: Condvar,
}

struct State {
    queue: Queue,
    closing: bool,
}

impl Pool {
    /// Starts the threads: enough that `depth` write-backs leave a share for demand loads.
    pub(crate) fn start(
        segments: Arc<Segments>,
        depth: u32,
        sink: Arc<dyn CompletionSink>,
    ) -> io::Result<Self> {
        let state = Mutex::new(State { queue: Queue::new(depth, 0), closing: false });
        let shared = Arc::new(Shared { segments, sink, state, changed: Condvar::new() });
        let mut pool = Self { shared, threads: Vec::new() };
        for i in 0..depth + (depth / 4).max(1) {
            let shared = Arc::clone(&pool.shared);
            let thread =
                std::thread::Builder::new().name(format!("kvtier-nvme-{i}")).spawn(move || shared.work());
            match thread {
                Ok(thread) => pool.threads.push(thread),
                Err(e) if pool.threads.is_empty() => return Err(e),
                Err(e) => {
                    tracing::warn!("only {i} of the I/O threads: {e}");
                    break;
                }
            }
        }
        Ok(pool)
    }

    pub(crate) fn submit(&self, jobs: &[Job]) {
        let mut state = self.shared.state.lock();
        jobs.iter().for_each(|&job| state.queue.push(job));
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Ends the threads, after everything submitted if `drain`.
    pub(crate) fn stop(&mut self, drain: bool) {
        let mut state = self.shared.state.lock();
        state.closing = true;
        let abandoned = if drain { Vec::new() } else { state.queue.abandon() };
        drop(state);
        self.shared.changed.notify_all();
        for job in abandoned {
            deliver(&*self.shared.sink, job.id, Err(TransferError::Down));
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an I/O thread panicked");
            }
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop() {
                drop(state);
                let result = self.segments.execute(&job);
                deliver(&*self.sink, job.id, result);
                state = self.state.lock();
                state.queue.done(&job);
                self.changed.notify_all();
            } else if state.closing && state.queue.is_idle() {
                return;
            } else {
                self.changed.wait(&mut state);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop(false);
    }
}
