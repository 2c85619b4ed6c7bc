//! The GPU: a pool of blocks in HBM and the engine that copies them.
//!
//! ```text
//! submit ─► queue ─► worker thread ─► Chooser: engine, kernel or staged?      (choose, cost, calibrate)
//!                        │            pieces of at most 4 MiB                  (piece)
//!                        ▼
//!            four Lanes: two ways, two urgencies; streams, slots, staging      (lane, launch)
//!                        │
//!                        ▼  events that have come to pass
//!                  CompletionSink
//! ```

mod calibrate;
mod choose;
mod config;
mod cost;
mod error;
mod lane;
mod launch;
mod method;
mod piece;
mod pool;
mod utility;
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use kv_core::Verified;
use kv_core::ids::{JobId, SlotId};
use kv_core::job::{CompletionSink, TransferError, Urgency};
use kv_core::layout::{Nest, Placement};
use parking_lot::{Condvar, Mutex};

pub use choose::{Candidate, Chooser, Explanation};
pub use config::{BadTuning, CopyTuning, CudaConfig, PoolMemory};
pub use cost::{Calibration, Cost, Curve, DirectionCosts};
pub use error::OpenError;
pub use launch::{Kernels, Side, Walk};
pub use method::{Method, Shape};

use crate::device::{BlockCopy, BlockDigest, Checks, Device, DeviceError, Direction};
use crate::driver::{
    Context, CudaError, Current, DevicePtr, Driver, Event, GpuInfo, NOT_READY, Registration, RuntimeStream,
    Submission,
};
use crate::layers::LayerProgress;
use crate::memory::HostMemory;
use lane::{Ground, Lane, SlotIndex, host_alignment, piece_bytes};
use piece::{Piece, layer_stages};
use pool::Pool;
use utility::Utility;
use worker::{LAYER_GROUP, Transfer, Worker};

/// A pool of KV blocks on an NVIDIA GPU.
///
/// Opening it loads the driver, registers the host memory and measures the device (about 50 ms). It takes
/// 40 MiB of device memory for staging, and one thread.
pub struct CudaDevice {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
    worker_id: ThreadId,
}

/// Copies of one call that go the same way.
struct Request {
    copies: Vec<BlockCopy>,
    direction: Direction,
    urgency: Urgency,
    /// What the runtime had queued when they were submitted.
    after: Vec<Event>,
    progress: Option<Arc<LayerProgress>>,
}

impl Request {
    fn refuse(self, sink: &dyn CompletionSink) {
        if let Some(progress) = self.progress {
            progress.fail(TransferError::Down);
        }
        for copy in self.copies {
            report(sink, copy.job, Err(TransferError::Down));
        }
    }
}

/// What the callers and the worker share. Dropped when both are gone: then the GPU uses none of it.
struct Shared {
    context: Arc<Context>,
    pool: Pool,
    scatter: Nest,
    host: Arc<dyn HostMemory>,
    registration: Registration,
    kernels: Kernels,
    utility: Mutex<Utility>,
    runtime_streams: Vec<RuntimeStream>,
    chooser: Mutex<Chooser>,
    events: EventPool,
    patience: Duration,
    sink: Arc<dyn CompletionSink>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    requests: Vec<Request>,
    closed: bool,
    /// Why the GPU is lost.
    lost: Option<CudaError>,
    /// Something was given up that the GPU may still touch: nothing is freed.
    abandoned: bool,
}

/// Events are made once and used again.
#[derive(Default)]
struct EventPool(Mutex<Vec<Event>>);

impl EventPool {
    fn take(&self, current: &Current) -> Result<Event, CudaError> {
        let spare = self.0.lock().pop();
        spare.map_or_else(|| Event::new(current), Ok)
    }

    fn give(&self, event: Event) {
        self.0.lock().push(event);
    }
}

impl CudaDevice {
    /// Opens a GPU with a pool of blocks, copied to and from `host`, that reports to `sink`.
    ///
    /// # Errors
    /// [`OpenError`]; on a machine without a driver [`OpenError::Driver`].
    pub fn open(
        placement: Placement,
        config: CudaConfig,
        host: Arc<dyn HostMemory>,
        sink: Arc<dyn CompletionSink>,
    ) -> Result<Self, OpenError> {
        let driver = Driver::load()?;
        let context = Context::new(driver, config.ordinal)?;
        let current = context.enter()?;
        let utility = Utility::new(&current, placement.layout().bytes_per_block())?;
        let pool = Pool::new(&current, utility.stream(), placement, config.pool)?;
        let registration = Registration::of(&current, &host)?;
        let kernels = Kernels::load(&current)?;
        let mut lanes = Vec::new();
        for direction in [Direction::ToDevice, Direction::ToHost] {
            for urgency in [Urgency::Demand, Urgency::WriteBack] {
                lanes.push(Lane::new(&current, direction, urgency)?);
            }
        }
        let tuning = config.tuning;
        let calibration = match tuning.calibration {
            Some(calibration) => calibration,
            None => calibrate::measure(&current, &kernels, tuning.max_ctas)?,
        };
        let scatter = pool.gather().swapped();
        let shared = Arc::new(Shared {
            context: Arc::clone(&context),
            pool,
            scatter,
            host,
            registration,
            kernels,
            utility: Mutex::new(utility),
            runtime_streams: config.runtime_streams,
            chooser: Mutex::new(Chooser::new(calibration, tuning.method)),
            events: EventPool::default(),
            patience: config.patience,
            sink,
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let worker = thread::Builder::new().name("kvtier-cuda".into()).spawn({
            let shared = Arc::clone(&shared);
            // Streams and events move to the thread that alone uses them.
            move || Worker::new(shared, lanes).run()
        });
        let worker = worker.map_err(OpenError::Thread)?;
        let worker_id = worker.thread().id();
        Ok(Self { shared, worker: Mutex::new(Some(worker)), worker_id })
    }

    /// The GPU.
    #[must_use]
    pub fn gpu(&self) -> &GpuInfo {
        self.shared.context.info()
    }

    /// First byte of a buffer of the pool, numbered as the placement numbers them.
    #[must_use]
    pub fn buffer(&self, index: u32) -> Option<DevicePtr> {
        self.shared.pool.buffer(index)
    }

    /// What was measured when the device was opened, or given.
    #[must_use]
    pub fn calibration(&self) -> Calibration {
        self.shared.chooser.lock().calibration().clone()
    }

    /// How `blocks` blocks would be copied now, and why.
    #[must_use]
    pub fn explain(&self, direction: Direction, urgency: Urgency, blocks: usize) -> Explanation {
        let shape = self.shared.shape(direction, urgency, blocks, Some(WIDEST), true);
        self.shared.chooser.lock().explain(&shape)
    }

    /// As [`Device::submit`], for copies that must wait for work queued in these streams of the runtime's
    /// instead of those of the configuration.
    ///
    /// # Safety
    /// As for [`Device::submit`]; and the streams exist, in this device's primary context.
    ///
    /// # Errors
    /// As for [`Device::submit`].
    pub unsafe fn submit_after(
        &self,
        copies: &[BlockCopy],
        urgency: Urgency,
        streams: &[RuntimeStream],
    ) -> Result<(), DeviceError> {
        self.shared.checks().copies(copies)?;
        let mut requests = Vec::new();
        for direction in [Direction::ToDevice, Direction::ToHost] {
            let copies: Vec<_> = copies.iter().filter(|copy| copy.direction == direction).copied().collect();
            if !copies.is_empty() {
                requests.push(self.shared.request(copies, direction, urgency, streams, None)?);
            }
        }
        self.shared.push(requests)
    }
}

impl Device for CudaDevice {
    fn placement(&self) -> &Placement {
        self.shared.pool.placement()
    }

    unsafe fn submit(&self, copies: &[BlockCopy], urgency: Urgency) -> Result<(), DeviceError> {
        // SAFETY: the caller's word; the configured streams are the configuration's.
        unsafe { self.submit_after(copies, urgency, &self.shared.runtime_streams) }
    }

    unsafe fn submit_by_layer(
        &self,
        copies: &[BlockCopy],
        urgency: Urgency,
    ) -> Result<Arc<LayerProgress>, DeviceError> {
        self.shared.checks().loads(copies)?;
        let layout = self.shared.pool.placement().layout();
        let stages = layer_stages(layout.layers(), layout.bytes_per_layer(), copies.len(), LAYER_GROUP);
        let progress = LayerProgress::new(stages.into_iter().map(|(layers, _)| layers).collect());
        if copies.is_empty() {
            progress.arrived(layout.layers());
            return Ok(progress);
        }
        let streams = &self.shared.runtime_streams;
        let arriving = Some(Arc::clone(&progress));
        let request =
            self.shared.request(copies.to_vec(), Direction::ToDevice, urgency, streams, arriving)?;
        self.shared.push(vec![request])?;
        Ok(progress)
    }

    fn zero(&self, blocks: &[SlotId]) -> Result<(), DeviceError> {
        self.shared.with_utility(blocks, |utility, current| utility.zero(current, &self.shared, blocks))
    }

    fn digest(&self, blocks: &[SlotId]) -> Result<Vec<BlockDigest>, DeviceError> {
        self.shared.with_utility(blocks, |utility, current| utility.digest(current, &self.shared, blocks))
    }

    fn upload(&self, block: SlotId, bytes: &[u8]) -> Result<(), DeviceError> {
        self.shared.checks().length(bytes.len())?;
        self.shared
            .with_utility(&[block], |utility, current| utility.upload(current, &self.shared, block, bytes))
    }

    fn download(&self, block: SlotId, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.shared.checks().length(bytes.len())?;
        self.shared
            .with_utility(&[block], |utility, current| utility.download(current, &self.shared, block, bytes))
    }

    fn close(&self) {
        self.shared.close_queue();
        if thread::current().id() == self.worker_id {
            return;
        }
        // Held while joining, so that a second caller also returns only when all is completed.
        let mut worker = self.worker.lock();
        if let Some(worker) = worker.take() {
            drop(worker.join());
        }
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        self.close();
        if self.shared.queue.lock().abandoned {
            std::mem::forget(Arc::clone(&self.shared));
        }
    }
}

impl Shared {
    fn checks(&self) -> Checks<'_> {
        Checks { placement: self.pool.placement(), host: &*self.host }
    }

    /// Whether the device takes calls.
    fn check_open(queue: &Queue) -> Result<(), DeviceError> {
        match &queue.lost {
            Some(error) => Err(DeviceError::Lost(error.clone())),
            None if queue.closed => Err(DeviceError::Closed),
            None => Ok(()),
        }
    }

    /// Checked copies that come after what the runtime has queued in `streams`. Starts nothing.
    fn request(
        &self,
        copies: Vec<BlockCopy>,
        direction: Direction,
        urgency: Urgency,
        streams: &[RuntimeStream],
        progress: Option<Arc<LayerProgress>>,
    ) -> Result<Request, DeviceError> {
        Self::check_open(&self.queue.lock())?;
        Ok(Request { copies, direction, urgency, after: self.after(streams)?, progress })
    }

    /// Queues the requests of one call: all or none.
    fn push(&self, requests: Vec<Request>) -> Result<(), DeviceError> {
        let mut queue = self.queue.lock();
        Self::check_open(&queue)?;
        queue.requests.extend(requests);
        self.changed.notify_one();
        Ok(())
    }

    /// An event behind what is queued in each stream now.
    fn after(&self, streams: &[RuntimeStream]) -> Result<Vec<Event>, CudaError> {
        if streams.is_empty() {
            return Ok(Vec::new());
        }
        let current = self.context.enter()?;
        let record = |&stream| {
            let event = self.events.take(&current)?;
            // SAFETY: whoever named the stream answers for it.
            unsafe { event.record_runtime(stream) }?;
            Ok(event)
        };
        streams.iter().map(record).collect()
    }

    /// What has been submitted since, and whether the device was closed. Waits for news: so long, or for
    /// ever.
    fn next_requests(&self, wait: Option<Duration>) -> (Vec<Request>, bool) {
        let mut queue = self.queue.lock();
        if queue.requests.is_empty() {
            match wait {
                None => {
                    while queue.requests.is_empty() && !queue.closed {
                        self.changed.wait(&mut queue);
                    }
                }
                Some(Duration::ZERO) => std::hint::spin_loop(),
                Some(pause) => drop(self.changed.wait_for(&mut queue, pause)),
            }
        }
        (std::mem::take(&mut queue.requests), queue.closed)
    }

    fn close_queue(&self) {
        self.queue.lock().closed = true;
        self.changed.notify_one();
    }

    fn go_down(&self, error: &CudaError) {
        self.queue.lock().lost.get_or_insert_with(|| error.clone());
    }

    /// Work outside of the lanes will not be waited for any more.
    fn abandon(&self, why: &DeviceError) {
        tracing::error!(error = %why, "the GPU does not finish: its memory is given up");
        let error = match why {
            DeviceError::Cuda(error) | DeviceError::Lost(error) => error.clone(),
            _ => CudaError { call: "cuEventQuery", code: NOT_READY, name: String::new() },
        };
        self.queue.lock().abandoned = true;
        self.go_down(&error);
    }

    fn choose(&self, shape: &Shape) -> Method {
        self.chooser.lock().choose(shape).0
    }

    fn shape_of(&self, request: &Request, whole_runs: bool) -> Shape {
        let host = host_alignment(&self.registration, request.copies.iter().map(|copy| copy.host));
        self.shape(request.direction, request.urgency, request.copies.len(), host, whole_runs)
    }

    /// `host` is how the host blocks are aligned, if the GPU sees each as one piece.
    fn shape(
        &self,
        direction: Direction,
        urgency: Urgency,
        blocks: usize,
        host: Option<usize>,
        whole_runs: bool,
    ) -> Shape {
        let placement = self.pool.placement();
        fitted(Shape {
            direction,
            blocks,
            block_bytes: placement.layout().bytes_per_block(),
            run_bytes: placement.fragment_bytes(),
            alignment: host.unwrap_or(1).min(self.pool.alignment()),
            mapped: host.is_some(),
            whole_runs,
            piece_bytes: piece_bytes(urgency),
        })
    }

    /// Queues a piece. An error comes with the event behind what was queued of it, if there could be one.
    fn queue_piece(
        &self,
        current: &Current,
        lane: &mut Lane,
        transfer: &mut Transfer,
        piece: &Piece,
        slot: &SlotIndex,
    ) -> Result<Arc<Event>, (Option<Arc<Event>>, CudaError)> {
        let done = Arc::new(self.events.take(current).map_err(|error| (None, error))?);
        let method = transfer.method;
        let mut queue = |lane: &mut Lane| {
            if transfer.started.is_none() {
                for event in transfer.request.after.drain(..) {
                    lane.wait(&event)?;
                    self.events.give(event);
                }
                let started = self.events.take(current)?;
                lane.mark_start(method, &started)?;
                transfer.started = Some(started);
            }
            let submission =
                if self.context.driver().has_batch_copies() { Submission::Batch } else { Submission::Loop };
            let ground = Ground {
                pool: &self.pool,
                scatter: &self.scatter,
                host: &*self.host,
                registration: &self.registration,
                kernels: &self.kernels,
                submission,
            };
            // SAFETY: the copies were submitted under the contract of `Device::submit` and are not completed
            // before the event below was seen; the slot is freed after that.
            unsafe { lane.submit(current, &ground, &transfer.request.copies, piece, method, slot) }
        };
        let queued = queue(lane);
        // Half of a piece may be in the other stream.
        let joined = if queued.is_err() { lane.join(method, slot) } else { Ok(()) };
        match (queued, joined.and_then(|()| lane.mark_done(method, &done))) {
            (Ok(()), Ok(())) => Ok(done),
            (Err(error), Ok(())) => Err((Some(done), error)),
            (_, Err(error)) => Err((None, error)),
        }
    }

    /// A piece is over: blocks of which it was the last are reported.
    fn end_piece(&self, transfer: &mut Transfer, piece: &Piece, error: Option<TransferError>) {
        for block in piece.blocks.clone() {
            if let Some(result) = transfer.end_piece_of(block, error) {
                let copy = &transfer.request.copies[block];
                let asked = copy.host.len;
                let result = match result {
                    None => Verified::by_status(copy.job, asked, asked).map_err(TransferError::from),
                    Some(error) => Err(error),
                };
                report(&*self.sink, copy.job, result);
            }
        }
    }

    /// Learns from a transfer that is over.
    fn end_transfer(&self, transfer: &mut Transfer, done: &Event) {
        let Some(started) = transfer.started.take() else { return };
        if transfer.succeeded()
            && let Ok(seconds) = done.seconds_since(&started)
        {
            self.chooser.lock().observe(&transfer.shape, transfer.method, seconds);
        }
        self.events.give(started);
    }

    /// Runs something on the utility stream and waits for it.
    fn with_utility<T>(
        &self,
        blocks: &[SlotId],
        work: impl FnOnce(&mut Utility, &Current) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        blocks.iter().try_for_each(|&block| self.checks().block(block))?;
        let mut utility = self.utility.lock();
        Self::check_open(&self.queue.lock())?;
        let current = self.context.enter()?;
        for event in self.after(&self.runtime_streams)? {
            utility.stream().wait(&event)?;
            self.events.give(event);
        }
        work(&mut utility, &current)
    }

    /// Waits for an event, but not for ever.
    fn wait(&self, event: &Event) -> Result<(), DeviceError> {
        let since = Instant::now();
        loop {
            match event.is_done() {
                Ok(true) => return Ok(()),
                Ok(false) if since.elapsed() < self.patience => thread::yield_now(),
                Ok(false) => return Err(DeviceError::Hung(self.patience)),
                Err(error) => {
                    if error.is_sticky() {
                        self.go_down(&error);
                    }
                    return Err(error.into());
                }
            }
        }
    }
}

impl Shape {
    /// Blocks in runs of `run_bytes` that lie well: every address suits the widest access. What a device
    /// makes of a transfer whose buffers were allocated as usual.
    #[must_use]
    pub fn well_laid(
        direction: Direction,
        urgency: Urgency,
        blocks: usize,
        block_bytes: usize,
        run_bytes: usize,
    ) -> Self {
        let alignment = 1 << (run_bytes | WIDEST).trailing_zeros();
        let piece_bytes = piece_bytes(urgency);
        fitted(Self {
            direction,
            blocks,
            block_bytes,
            run_bytes,
            alignment,
            mapped: true,
            whole_runs: true,
            piece_bytes,
        })
    }
}

/// Bytes of the widest access of a kernel.
const WIDEST: usize = 16;

/// A run larger than a piece is cut, and kernels walk whole runs only.
fn fitted(shape: Shape) -> Shape {
    Shape { whole_runs: shape.whole_runs && shape.run_bytes <= shape.piece_bytes, ..shape }
}

/// Tells the sink. One that panics harms nobody but itself.
fn report(sink: &dyn CompletionSink, job: JobId, result: Result<Verified, TransferError>) {
    if catch_unwind(AssertUnwindSafe(|| sink.complete(job, result))).is_err() {
        tracing::error!(?job, "the completion sink panicked");
    }
}
