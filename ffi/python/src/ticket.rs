//! One operation under way, as Python sees it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::planner::Reasons;
use kv_cuda::driver::RuntimeStream;
use kvtier_ffi::KeyStatus;
use kvtier_ffi::task::LayerError;
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::{self, Invalid};
use crate::fork::Native;
use crate::owner::{self, Owners};
use crate::queue::Queue;

/// How soon a waiting thread sees a signal such as Ctrl-C.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Seconds of Python.
///
/// # Errors
/// [`Invalid`] when it is negative or not a number.
pub(crate) fn limit(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let duration = |seconds: f64| {
        if seconds == f64::INFINITY {
            return Ok(Duration::MAX);
        }
        Duration::try_from_secs_f64(seconds)
            .map_err(|error| Invalid::new_err(format!("timeout is {seconds}: {error}")))
    };
    seconds.map(duration).transpose()
}

/// Calls `step` with the interpreter released until it gives something or the limit is over. Runs signal handlers in
/// between.
fn wait<T: Send>(
    py: Python<'_>,
    limit: Option<Duration>,
    step: impl Fn(Duration) -> Option<T> + Sync,
) -> PyResult<Option<T>> {
    let end = limit.and_then(|limit| Instant::now().checked_add(limit));
    loop {
        let left = end.map_or(LOOK_UP, |end| end.saturating_duration_since(Instant::now()).min(LOOK_UP));
        if let Some(found) = py.detach(|| step(left)) {
            return Ok(Some(found));
        }
        py.check_signals()?;
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(None);
        }
    }
}

/// The members of `kvtier.KeyStatus`.
pub(crate) const STATUSES: [(&str, KeyStatus); 8] = [
    ("PENDING", KeyStatus::Pending),
    ("DONE", KeyStatus::Done),
    ("PRESENT", KeyStatus::Present),
    ("MISSING", KeyStatus::Missing),
    ("FAILED", KeyStatus::Failed),
    ("NO_ROOM", KeyStatus::NoRoom),
    ("TIMED_OUT", KeyStatus::TimedOut),
    ("CANCELLED", KeyStatus::Cancelled),
];

/// A whole batch in numbers.
#[pyclass(frozen, get_all, eq, module = "kvtier", name = "Summary")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Keys of the batch.
    keys: u32,
    /// Keys that were served or stored, or that were there already.
    done: u32,
    /// Keys before the first that was not.
    prefix: u32,
}

#[pymethods]
impl Summary {
    fn __repr__(&self) -> String {
        let Self { keys, done, prefix } = self;
        format!("Summary(keys={keys}, done={done}, prefix={prefix})")
    }
}

impl From<kvtier_ffi::Summary> for Summary {
    fn from(summary: kvtier_ffi::Summary) -> Self {
        let kvtier_ffi::Summary { keys, done, prefix } = summary;
        Self { keys, done, prefix }
    }
}

/// An operation under way. Its buffers belong to kvtier until it is done.
///
/// The buffers are kept alive and cannot be resized until then, also when the ticket is dropped or cancelled. A ticket
/// can be awaited in asyncio. It counts as under way for ``Busy`` until it is released or dropped.
///
/// >>> import kvtier
/// >>> page = bytearray(4096)
/// >>> with kvtier.Store(4096, 1 << 20) as store:
/// ...     ticket = store.get([b"absent"], page)
/// ...     ticket.wait(), kvtier.KeyStatus(ticket.statuses()[0]).name
/// (Summary(keys=1, done=0, prefix=0), 'MISSING')
#[pyclass(frozen, module = "kvtier", name = "Ticket")]
pub(crate) struct Ticket {
    /// Shared with threads that wait; taken out by a release.
    ticket: Native<Mutex<Option<Arc<kvtier_ffi::Ticket>>>>,
    owners: Mutex<Owners>,
}

impl Ticket {
    pub(crate) fn new(ticket: kvtier_ffi::Ticket, owners: Owners) -> Self {
        Self { ticket: Native::new(Mutex::new(Some(Arc::new(ticket)))), owners: Mutex::new(owners) }
    }

    fn inner(&self) -> PyResult<Arc<kvtier_ffi::Ticket>> {
        let ticket = self.ticket.get()?.lock().clone();
        ticket.ok_or_else(|| Invalid::new_err("the ticket was released"))
    }

    /// The operation is over: its memory is the caller's again.
    fn over(&self, summary: kvtier_ffi::Summary) -> Summary {
        drop(std::mem::take(&mut *self.owners.lock()));
        summary.into()
    }
}

#[pymethods]
impl Ticket {
    /// The result, or ``None`` while the operation is under way. Never waits.
    fn poll(&self) -> PyResult<Option<Summary>> {
        Ok(self.inner()?.poll().map(|summary| self.over(summary)))
    }

    /// True once the operation is over and its buffers may be used again.
    #[getter]
    fn done(&self) -> PyResult<bool> {
        Ok(self.poll()?.is_some())
    }

    /// Waits for the end for at most ``timeout`` seconds, for ever without one (but every operation has a limit of its
    /// own). ``None`` when it is still under way.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Summary>> {
        let (ticket, limit) = (self.inner()?, limit(timeout)?);
        let found = match ticket.poll() {
            Some(summary) => Some(summary),
            None => wait(py, limit, |step| ticket.wait(step))?,
        };
        Ok(found.map(|summary| self.over(summary)))
    }

    /// What became of each key, one byte each: the numbers of ``KeyStatus``. All ``PENDING`` (0) while the operation is
    /// under way. A flush has one.
    fn statuses<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let statuses: Vec<u8> = self.inner()?.statuses().into_iter().map(|status| status as u8).collect();
        Ok(PyBytes::new(py, &statuses))
    }

    /// For each key whether it was served or stored, or was there already. All false while the operation is under way.
    fn served(&self) -> PyResult<Vec<bool>> {
        Ok(self.inner()?.statuses().into_iter().map(KeyStatus::is_done).collect())
    }

    /// The same as bits, key 0 in the lowest bit of the first byte.
    fn bitmap<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let statuses = self.inner()?.statuses();
        let byte = |eight: &[KeyStatus]| {
            eight.iter().rev().fold(0, |bits, status| bits << 1 | u8::from(status.is_done()))
        };
        Ok(PyBytes::new(py, &statuses.chunks(8).map(byte).collect::<Vec<_>>()))
    }

    /// Why a load of a chain used slow sources (NVMe, remote stores), or not: every term in seconds and the one that
    /// decided. ``None`` when none was asked about, or not yet.
    fn why(&self) -> PyResult<Option<String>> {
        let why = self.inner()?.why();
        Ok(why.map(|Reasons { nvme, remote }| {
            let parts = [("NVMe", nvme), ("remote", remote)].into_iter();
            parts.filter_map(|(name, part)| Some(format!("{name}: {}", part?))).collect()
        }))
    }

    /// Asks for an early end. The buffers are in use until the ticket is done all the same.
    fn cancel(&self) -> PyResult<()> {
        self.inner()?.cancel();
        Ok(())
    }

    /// Announces the end in ``queue`` under ``tag``, at once if it is over already.
    fn announce(&self, queue: &Bound<'_, Queue>, tag: u64) -> PyResult<()> {
        self.inner()?.announce(queue.get().inner()?, tag);
        Ok(())
    }

    /// Lets go of the ticket, and of the blocks that a ``pin`` holds. The operation goes on; its buffers are kept until
    /// it is over. Also the end of a ``with`` block.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.ticket.get()?;
        self.let_go(py);
        Ok(())
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.release(py)
    }

    /// Waits until a layer of an onboard is in all blocks that were found, so that a forward pass can start before the
    /// last layer is there. Raises ``LoadFailed`` when it will not arrive, ``Timeout`` after ``timeout`` seconds.
    #[pyo3(signature = (layer, timeout = None))]
    fn wait_layer(&self, py: Python<'_>, layer: u32, timeout: Option<f64>) -> PyResult<()> {
        let ticket = self.inner()?;
        let arrived = wait(py, limit(timeout)?, |step| match ticket.wait_layer(layer, step) {
            Err(LayerError::TimedOut) => None,
            other => Some(other),
        })?;
        arrived.unwrap_or(Err(LayerError::TimedOut)).map_err(errors::layer)
    }

    /// Lets work that is queued in a CUDA stream from now on wait for a layer, on the GPU. ``stream`` is the number that
    /// torch calls ``cuda_stream``; it must exist. The calling thread waits only until the copy of that layer is queued.
    #[pyo3(signature = (layer, stream, timeout = None))]
    fn hold_layer(&self, py: Python<'_>, layer: u32, stream: u64, timeout: Option<f64>) -> PyResult<()> {
        let ticket = self.inner()?;
        let hold = |step| {
            // SAFETY: the caller answers for the stream, as the documentation says.
            match unsafe { ticket.hold_layer(layer, RuntimeStream(stream), step) } {
                Err(LayerError::TimedOut) => None,
                other => Some(other),
            }
        };
        wait(py, limit(timeout)?, hold)?.unwrap_or(Err(LayerError::TimedOut)).map_err(errors::layer)
    }

    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let waiting = slf.py().import("kvtier._aio")?.call_method1("wait", (slf,))?;
        waiting.call_method0("__await__")
    }

    fn __repr__(&self) -> PyResult<String> {
        let ticket = self.ticket.get()?.lock().clone();
        Ok(match ticket.map(|ticket| ticket.poll()) {
            None => "<kvtier.Ticket, released>".to_owned(),
            Some(None) => "<kvtier.Ticket, under way>".to_owned(),
            Some(Some(summary)) => format!("<kvtier.Ticket, {} of {} done>", summary.done, summary.keys),
        })
    }
}

impl Ticket {
    fn let_go(&self, py: Python<'_>) {
        let Some(ticket) = self.ticket.lock().take() else { return };
        let owners = std::mem::take(&mut *self.owners.lock());
        if !owners.is_empty() && ticket.poll().is_none() {
            owner::abandon(Native::new(ticket), owners);
        } else {
            // Ends pins, which takes a lock of the engine.
            py.detach(|| drop(ticket));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.ticket.is_here() {
            Python::attach(|py| self.let_go(py));
        } else {
            // In a forked process no thread uses the memory, but nobody may look at the ticket either.
            std::mem::forget(std::mem::take(&mut *self.owners.lock()));
        }
    }
}
