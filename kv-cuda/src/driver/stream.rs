//! Streams and events.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUevent, CUstream};

use super::context::log_failure;
use super::{Context, CudaError, Current, NOT_READY, call};

/// How the GPU orders streams that are ready at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamPriority {
    /// First.
    High,
    /// After others.
    Low,
}

/// A queue of work, ours.
pub struct Stream {
    context: Arc<Context>,
    raw: CUstream,
}

// SAFETY: stream handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// `CU_STREAM_NON_BLOCKING`: does not wait for the legacy default stream, on which runtimes compute.
const NON_BLOCKING: u32 = 1;

impl Stream {
    /// # Errors
    /// [`CudaError`].
    pub fn new(current: &Current, priority: StreamPriority) -> Result<Self, CudaError> {
        let driver = current.driver();
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: writes two ints.
        unsafe { call!(driver, cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest)) }?;
        let priority = match priority {
            StreamPriority::High => greatest,
            StreamPriority::Low => least,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: writes one handle, destroyed once, on drop.
        unsafe { call!(driver, cuStreamCreateWithPriority(&raw mut raw, NON_BLOCKING, priority)) }?;
        Ok(Self { context: Arc::clone(current.context()), raw })
    }

    /// Work queued from now on starts after `event`.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both handles are alive.
        unsafe { call!(self.context.driver(), cuStreamWaitEvent(self.raw, event.raw, 0)) }
    }

    /// Blocks until all queued work is done.
    ///
    /// # Errors
    /// What went wrong in that work, or [`CudaError`] of the call.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let current = self.context.enter()?;
        // SAFETY: the handle is alive.
        unsafe { call!(current.driver(), cuStreamSynchronize(self.raw)) }
    }

    /// Its handle as a number.
    #[must_use]
    pub fn handle(&self) -> RuntimeStream {
        RuntimeStream(self.raw.expose_provenance() as u64)
    }

    pub(crate) const fn raw(&self) -> CUstream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|current| {
            // SAFETY: ours, destroyed once. Work still queued runs to its end all the same.
            unsafe { call!(current.driver(), cuStreamDestroy_v2(self.raw)) }
        });
        log_failure(destroyed);
    }
}

/// A stream of the runtime's: `cudaStream_t` or `CUstream` as a number. 0 is the legacy default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RuntimeStream(pub u64);

impl RuntimeStream {
    pub(crate) fn raw(self) -> CUstream {
        ptr::with_exposed_provenance_mut(self.0 as usize)
    }
}

/// A point in a stream.
pub struct Event {
    context: Arc<Context>,
    raw: CUevent,
}

// SAFETY: event handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

/// `CU_EVENT_DEFAULT`: can be timed.
const TIMED: u32 = 0;

impl Event {
    /// # Errors
    /// [`CudaError`].
    pub fn new(current: &Current) -> Result<Self, CudaError> {
        let mut raw = ptr::null_mut();
        // SAFETY: writes one handle, destroyed once, on drop.
        unsafe { call!(current.driver(), cuEventCreate(&raw mut raw, TIMED)) }?;
        Ok(Self { context: Arc::clone(current.context()), raw })
    }

    /// Marks the end of what is queued in `stream` now.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both handles are alive.
        unsafe { call!(self.context.driver(), cuEventRecord(self.raw, stream.raw)) }
    }

    /// Marks the end of what the runtime has queued in its stream up to now.
    ///
    /// # Safety
    /// The stream exists, and belongs to this event's context.
    ///
    /// # Errors
    /// [`CudaError`].
    pub unsafe fn record_runtime(&self, stream: RuntimeStream) -> Result<(), CudaError> {
        // SAFETY: the caller answers for the stream.
        unsafe { call!(self.context.driver(), cuEventRecord(self.raw, stream.raw())) }
    }

    /// Lets a stream of the runtime's wait for this event.
    ///
    /// # Safety
    /// As for [`Event::record_runtime`].
    ///
    /// # Errors
    /// [`CudaError`].
    pub unsafe fn hold_runtime(&self, stream: RuntimeStream) -> Result<(), CudaError> {
        let current = self.context.enter()?;
        // SAFETY: the caller answers for the stream.
        unsafe { call!(current.driver(), cuStreamWaitEvent(stream.raw(), self.raw, 0)) }
    }

    /// Whether it has come to pass. Does not block.
    ///
    /// # Errors
    /// What went wrong in the work before it.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        let driver = self.context.driver();
        // SAFETY: the handle is alive.
        match unsafe { call!(driver, cuEventQuery(self.raw)) } {
            Ok(()) => Ok(true),
            Err(CudaError { code: NOT_READY, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Seconds from `start` to this event, both come to pass.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn seconds_since(&self, start: &Self) -> Result<f64, CudaError> {
        let mut milliseconds = 0f32;
        let driver = self.context.driver();
        // SAFETY: writes one float.
        unsafe { call!(driver, cuEventElapsedTime(&raw mut milliseconds, start.raw, self.raw)) }?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|current| {
            // SAFETY: ours, destroyed once; the driver allows it before the event has come to pass.
            unsafe { call!(current.driver(), cuEventDestroy_v2(self.raw)) }
        });
        log_failure(destroyed);
    }
}
