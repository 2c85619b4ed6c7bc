//! Where an event loop learns which tickets are done.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use kvtier_ffi::TaskQueue;
use pyo3::prelude::*;

use crate::fork::Native;

/// Collects finished tickets for an event loop.
///
/// Its descriptor (an eventfd) is readable exactly while some wait, so it can sit in ``select``, ``epoll`` or an asyncio
/// loop. One queue may serve several stores; a runtime that wants a descriptor for each kind of operation uses several.
///
/// >>> import select, kvtier
/// >>> queue = kvtier.Queue()
/// >>> with kvtier.Store(4096, 1 << 20) as store:
/// ...     ticket = store.put([b"hash"], bytes(4096), queue=queue, tag=7)
/// ...     readable, _, _ = select.select([queue], [], [], 60)
/// ...     queue.drain()
/// [(7, 1, 1)]
#[pyclass(frozen, module = "kvtier", name = "Queue")]
pub(crate) struct Queue(Native<Arc<TaskQueue>>);

impl Queue {
    pub(crate) fn inner(&self) -> PyResult<Arc<TaskQueue>> {
        self.0.get().cloned()
    }
}

#[pymethods]
impl Queue {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self(Native::new(Arc::new(TaskQueue::new()?))))
    }

    /// The descriptor. It belongs to the queue: do not close it.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.0.get()?.as_fd().as_raw_fd())
    }

    /// At most ``most`` finished tickets, oldest first, as ``(tag, done, keys)``: keys that were served or stored, and
    /// all keys. The descriptor is quiet once none is left. What is not collected counts as under way for ``Busy``.
    #[pyo3(signature = (most = 1024))]
    fn drain(&self, most: usize) -> PyResult<Vec<(u64, u32, u32)>> {
        let finished = self.0.get()?.drain(most);
        Ok(finished.into_iter().map(|one| (one.tag, one.done, one.keys)).collect())
    }
}
