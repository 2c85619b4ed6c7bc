//! One operation under way, as its submitter and as its worker see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kv_core::job::TransferError;
use kv_core::planner::Reasons;
use kv_cuda::LayerProgress;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::batch::{Buffers, KeyBatch};
use crate::flow::Pinned;
use crate::pool::Pool;
use crate::queue::{Finished, TaskQueue};

/// What became of one key. The numbers are part of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KeyStatus {
    /// The operation is under way.
    Pending = 0,
    /// Loaded, stored or pinned.
    Done = 1,
    /// A put, and the block was there already. Nothing was copied: a key names its bytes.
    Present = 2,
    /// Not in the store. For a put of a chain: a block before it is missing, so this one could not be found.
    Missing = 3,
    /// Its bytes could not be read or were not those that were stored. Counts as missing.
    Failed = 4,
    /// No room: everything is pinned or on its way.
    NoRoom = 5,
    /// Its time was over.
    TimedOut = 6,
    /// Cancelled before its turn.
    Cancelled = 7,
}

impl KeyStatus {
    /// The key was served, or is in the store.
    #[must_use]
    pub const fn is_done(self) -> bool {
        matches!(self, Self::Done | Self::Present)
    }
}

/// The whole batch in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Keys of the batch.
    pub keys: u32,
    /// Keys that are [done or present](KeyStatus::is_done).
    pub done: u32,
    /// Keys before the first that is not.
    pub prefix: u32,
}

/// A place among the operations that a store takes on. Freed with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Permit {
    _place: Arc<Place>,
}

#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Permit {
    /// `None` when `most` places are taken.
    pub(crate) fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let free = |n: usize| (n < most).then_some(n + 1);
        taken.fetch_update(Ordering::AcqRel, Ordering::Relaxed, free).ok()?;
        Some(Self { _place: Arc::new(Place(taken.clone())) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What is to be done.
pub(crate) enum Operation {
    Get(Buffers),
    Put(Buffers),
    /// Bring to host memory and keep there until the ticket is dropped.
    Pin,
    /// From blocks of a runtime's pool.
    Offload(Arc<Pool>, Vec<u32>),
    /// To blocks of a runtime's pool.
    Onboard(Arc<Pool>, Vec<u32>),
    /// Write back and make durable what is in host memory.
    Flush,
}

pub(crate) struct Task {
    pub(crate) operation: Operation,
    pub(crate) keys: KeyBatch,
    /// The keys are one chain, first block first.
    pub(crate) chained: bool,
    pub(crate) deadline: Instant,
    cancelled: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    permit: Permit,
}

#[derive(Default)]
struct State {
    /// A worker has it: from then on only the worker ends it.
    begun: bool,
    finished: bool,
    statuses: Vec<KeyStatus>,
    /// Where to announce the end.
    notify: Vec<(Arc<TaskQueue>, u64)>,
    /// A layered load that has been started.
    layers: Option<Arc<LayerProgress>>,
    /// Why slow sources were used, or not.
    why: Option<Reasons>,
    /// Blocks that stay pinned.
    pins: Vec<Pinned>,
}

impl Task {
    pub(crate) fn new(
        operation: Operation,
        keys: KeyBatch,
        chained: bool,
        deadline: Instant,
        notify: Option<(Arc<TaskQueue>, u64)>,
        permit: Permit,
    ) -> Self {
        let state = Mutex::new(State { notify: notify.into_iter().collect(), ..State::default() });
        Self {
            operation,
            keys,
            chained,
            deadline,
            cancelled: AtomicBool::new(false),
            state,
            changed: Condvar::new(),
            permit,
        }
    }

    /// Why the worker should stop, if it should.
    pub(crate) fn stopped(&self) -> Option<KeyStatus> {
        if self.cancelled.load(Ordering::Acquire) {
            Some(KeyStatus::Cancelled)
        } else {
            (Instant::now() >= self.deadline).then_some(KeyStatus::TimedOut)
        }
    }

    /// Statuses that it will have: one for each key, one for a flush.
    pub(crate) fn width(&self) -> usize {
        if matches!(self.operation, Operation::Flush) { 1 } else { self.keys.len() }
    }

    /// Asks for an early end: at once, unless a worker has it.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.end_unless_begun(KeyStatus::Cancelled);
    }

    /// A worker takes it. False if it has ended while it waited for one.
    pub(crate) fn begin(&self) -> bool {
        let mut state = self.state.lock();
        state.begun = true;
        !state.finished
    }

    /// Workers may all wait for a disk that hangs: what none of them has ends without them.
    fn end_unless_begun(&self, why: KeyStatus) {
        let state = self.state.lock();
        if !state.begun && !state.finished {
            self.end(state, vec![why; self.width()], Vec::new());
        }
    }

    fn expire(&self) {
        if Instant::now() >= self.deadline {
            self.end_unless_begun(KeyStatus::TimedOut);
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.state.lock().finished
    }

    pub(crate) fn layers_started(&self, layers: Arc<LayerProgress>) {
        self.state.lock().layers = Some(layers);
        self.changed.notify_all();
    }

    pub(crate) fn decided(&self, why: Reasons) {
        self.state.lock().why = Some(why);
    }

    /// The last thing that happens to a task: from here on nothing of the runtime is touched.
    pub(crate) fn finish(&self, statuses: Vec<KeyStatus>, pins: Vec<Pinned>) {
        self.end(self.state.lock(), statuses, pins);
    }

    fn end(&self, mut state: MutexGuard<'_, State>, statuses: Vec<KeyStatus>, pins: Vec<Pinned>) {
        let summary = summary(&statuses);
        state.statuses = statuses;
        state.pins = pins;
        state.finished = true;
        // Before anybody can see that it is done: who has waited for a ticket finds it in the queue.
        for (queue, tag) in std::mem::take(&mut state.notify) {
            self.announce(&queue, tag, summary);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn announce(&self, queue: &TaskQueue, tag: u64, summary: Summary) {
        let finished = Finished { tag, done: summary.done, keys: summary.keys };
        queue.push(finished, self.permit.clone());
    }
}

fn summary(statuses: &[KeyStatus]) -> Summary {
    let done = |status: &&KeyStatus| status.is_done();
    Summary {
        keys: statuses.len() as u32,
        done: statuses.iter().filter(done).count() as u32,
        prefix: statuses.iter().take_while(done).count() as u32,
    }
}

/// Why a layer cannot be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    /// The time was over. The load goes on.
    #[error("the layer has not arrived in time")]
    TimedOut,
    /// It will not arrive: the load failed, was cancelled, or found nothing to load.
    #[error("the layer will not arrive: {0}")]
    Failed(TransferError),
    /// The ticket's operation is not an onboard.
    #[error("only an onboard arrives layer by layer")]
    NotALoad,
}

/// The submitter's side of an operation. Dropping it lets the operation go on, and ends a pin.
#[must_use = "a ticket says when the buffers may be used again"]
pub struct Ticket(Arc<Task>);

/// The pins end here and not with the task, of which a worker may have a reference for a moment longer.
impl Drop for Ticket {
    fn drop(&mut self) {
        let pins = std::mem::take(&mut self.0.state.lock().pins);
        drop(pins);
    }
}

impl Ticket {
    pub(crate) fn new(task: Arc<Task>) -> Self {
        Self(task)
    }

    /// The result, if the operation is over: its buffers are the runtime's again.
    #[must_use]
    pub fn poll(&self) -> Option<Summary> {
        self.0.expire();
        let state = self.0.state.lock();
        state.finished.then(|| summary(&state.statuses))
    }

    /// Waits for the end for at most `limit`.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> Option<Summary> {
        let end = Instant::now() + limit.min(crate::config::LONGEST_TIMEOUT);
        loop {
            self.0.expire();
            let mut state = self.0.state.lock();
            if state.finished {
                return Some(summary(&state.statuses));
            }
            let now = Instant::now();
            if now >= end {
                return None;
            }
            // What is still queued at its deadline ends then; what is not, soon after.
            let due = if state.begun || now >= self.0.deadline { end } else { end.min(self.0.deadline) };
            let _ended = self.0.changed.wait_until(&mut state, due);
        }
    }

    /// What became of each key; [`KeyStatus::Pending`] while the operation is under way.
    #[must_use]
    pub fn statuses(&self) -> Vec<KeyStatus> {
        let state = self.0.state.lock();
        if state.finished { state.statuses.clone() } else { vec![KeyStatus::Pending; self.0.width()] }
    }

    /// Number of statuses: of keys in the batch, or 1 for a flush.
    #[must_use]
    pub fn width(&self) -> usize {
        self.0.width()
    }

    /// Why slow sources were used, or not; `None` if none was asked about.
    #[must_use]
    pub fn why(&self) -> Option<Reasons> {
        self.0.state.lock().why
    }

    /// Announces the end in one more queue, at once if it is over already.
    pub fn announce(&self, queue: Arc<TaskQueue>, tag: u64) {
        let mut state = self.0.state.lock();
        if state.finished {
            self.0.announce(&queue, tag, summary(&state.statuses));
        } else {
            state.notify.push((queue, tag));
        }
    }

    /// Asks for an early end. The buffers are in use until the ticket is done all the same.
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Waits until a layer of an onboard is in all blocks that were found, so that a forward pass can start before
    /// the last layer is there. Which blocks were found is known when the ticket is done.
    ///
    /// # Errors
    /// [`LayerError`].
    pub fn wait_layer(&self, layer: u32, limit: Duration) -> Result<(), LayerError> {
        let end = Instant::now() + limit.min(crate::config::LONGEST_TIMEOUT);
        match self.layers(end)? {
            None => Ok(()),
            Some(layers) => match layers.wait_until(layer, end) {
                Some(arrived) => arrived.map_err(LayerError::Failed),
                None => Err(LayerError::TimedOut),
            },
        }
    }

    /// Lets work that is queued in a stream of the runtime from now on wait for a layer, on the GPU. The calling
    /// thread waits only until the copy of that layer is queued. On a device without streams it waits for the layer.
    ///
    /// # Safety
    /// The stream exists, in the context of the pool's device.
    ///
    /// # Errors
    /// [`LayerError`].
    pub unsafe fn hold_layer(
        &self,
        layer: u32,
        stream: kv_cuda::driver::RuntimeStream,
        limit: Duration,
    ) -> Result<(), LayerError> {
        let end = Instant::now() + limit.min(crate::config::LONGEST_TIMEOUT);
        match self.layers(end)? {
            None => Ok(()),
            // SAFETY: the caller answers for the stream.
            Some(layers) => match unsafe { layers.hold_until(layer, stream, end) } {
                Some(held) => held.map_err(LayerError::Failed),
                None => Err(LayerError::TimedOut),
            },
        }
    }

    /// The layered load, once it was started; `None` when the operation ended well without one.
    fn layers(&self, end: Instant) -> Result<Option<Arc<LayerProgress>>, LayerError> {
        if !matches!(self.0.operation, Operation::Onboard(..)) {
            return Err(LayerError::NotALoad);
        }
        let mut state = self.0.state.lock();
        loop {
            if let Some(layers) = &state.layers {
                return Ok(Some(layers.clone()));
            }
            if state.finished {
                let arrived = state.statuses.iter().any(|status| status.is_done());
                return if arrived { Ok(None) } else { Err(LayerError::Failed(TransferError::Down)) };
            }
            if self.0.changed.wait_until(&mut state, end).timed_out()
                && !state.finished
                && state.layers.is_none()
            {
                return Err(LayerError::TimedOut);
            }
        }
    }
}
