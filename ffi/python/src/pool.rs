//! Paged tensors of a runtime.

use std::ptr::NonNull;
use std::sync::Arc;

use kv_cuda::driver::RuntimeStream;
use kvtier_ffi::pool::{Pool as CorePool, PoolConfig, PoolDevice};
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::buffers::Memory;
use crate::errors::{self, Invalid};
use crate::fork::Native;
use crate::layout::{Arranged, Layout};
use crate::owner::Owners;
use crate::queue::Queue;
use crate::store::Store;
use crate::ticket::Ticket;

/// Paged tensors of a runtime, registered so that blocks go straight between them and pinned host memory.
///
/// Made by ``Store.register``. The tensors are kept until it is closed. From the start of an operation until its ticket
/// is done, its blocks are written by nobody but work queued in the pool's streams before it, and blocks being loaded
/// are read by nobody.
///
/// >>> import kvtier
/// >>> layout = kvtier.Layout(layers=2, kv_heads=1, head_dim=64, dtype="bf16", tokens_per_block=4)
/// >>> tensors = [bytearray(16 * layout.block_bytes // 2) for _ in range(2)]  # one per layer, 16 blocks
/// >>> with kvtier.Store(layout.block_bytes, 1 << 20) as store:
/// ...     with store.register(layout, tensors, num_blocks=16, arrangement="block_outer") as pool:
/// ...         saved = pool.offload([b"a", b"b"], [0, 1]).wait().done
/// ...         load = pool.onboard([b"a", b"b"], [14, 15])
/// ...         load.wait_layer(0)
/// ...         saved, load.wait().done
/// (2, 2)
#[pyclass(frozen, module = "kvtier", name = "Pool")]
pub(crate) struct Pool {
    store: Py<Store>,
    pool: Native<Arc<CorePool>>,
    owners: Mutex<Owners>,
}

/// What ``Store.register`` was called with.
pub(crate) struct Registration<'a, 'py> {
    pub(crate) layout: &'a Layout,
    pub(crate) tensors: Vec<Bound<'py, PyAny>>,
    pub(crate) num_blocks: u32,
    pub(crate) arrangement: Arranged,
    pub(crate) device: Option<u32>,
    pub(crate) streams: Vec<u64>,
}

impl Pool {
    pub(crate) fn register(store: &Bound<'_, Store>, what: Registration<'_, '_>) -> PyResult<Self> {
        let py = store.py();
        let Registration { layout, tensors, num_blocks, arrangement, mut device, streams } = what;
        let placement = arrangement.place(layout.0, num_blocks)?;
        if tensors.len() != placement.buffers() as usize {
            let text = format!("{} tensors; the arrangement has {}", tensors.len(), placement.buffers());
            return Err(Invalid::new_err(text));
        }
        let (mut buffers, mut owners) = (Vec::new(), Owners::new());
        for (at, tensor) in tensors.iter().enumerate() {
            let Memory { run, gpu, owner } = Memory::of(tensor, true)?;
            if run.len < placement.buffer_bytes() {
                let needed = placement.buffer_bytes();
                return Err(Invalid::new_err(format!(
                    "tensor {at} has {} bytes; {needed} are needed",
                    run.len
                )));
            }
            let is_pair = owner.is_none();
            if at == 0 && device.is_none() {
                device = gpu;
            }
            if !is_pair && gpu != device {
                return Err(Invalid::new_err(format!("tensor {at} is not on the device of the others")));
            }
            let start = NonNull::new(run.start)
                .ok_or_else(|| Invalid::new_err(format!("tensor {at} has no address")))?;
            buffers.push(start.expose_provenance().get());
            owners.extend(owner);
        }
        let device = match device {
            None => PoolDevice::Host,
            Some(ordinal) => {
                PoolDevice::Cuda { ordinal, streams: streams.into_iter().map(RuntimeStream).collect() }
            }
        };
        let native = store.get().inner()?;
        let registered = py.detach(|| {
            let start = |address: &usize| NonNull::new(std::ptr::with_exposed_provenance_mut(*address));
            let buffers = buffers.iter().filter_map(start).collect();
            // What keeps the tensors is kept by this object, and let go when the pool is closed: the engine might drop
            // it on a thread of its own, where the interpreter cannot be reached.
            let config = PoolConfig { placement, buffers, device, owner: Arc::new(()) };
            // SAFETY: the tensors were just measured and are kept until the pool is closed; the rest is the caller's
            // part of the agreement, as the documentation says.
            unsafe { native.register(config) }
        });
        let pool = Native::new(registered.map_err(|error| errors::pool(&error))?);
        Ok(Self { store: store.clone().unbind(), pool, owners: Mutex::new(owners) })
    }
}

#[pymethods]
impl Pool {
    /// Starts copying blocks of the pool into the store, ``blocks[i]`` under key ``i``.
    #[pyo3(signature = (keys, blocks, *, chained = false, timeout = None, queue = None, tag = 0))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn offload(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        blocks: Vec<u32>,
        chained: bool,
        timeout: Option<f64>,
        queue: Option<&Bound<'_, Queue>>,
        tag: u64,
    ) -> PyResult<Ticket> {
        let (store, pool) = (self.store.get(), self.pool.get()?);
        store.submit(py, keys, chained, timeout, queue, tag, Owners::new(), |store, what| {
            store.offload(what, pool, blocks)
        })
    }

    /// Starts copying blocks of the store into the pool, key ``i`` to ``blocks[i]``. They arrive layer by layer
    /// (``Ticket.wait_layer``) if they are at most 256 and at most a sixteenth of host memory. A block whose key is not
    /// ``DONE`` may hold anything. With ``chained`` the keys are one chain, as for ``Store.get``.
    #[pyo3(signature = (keys, blocks, *, chained = false, timeout = None, queue = None, tag = 0))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn onboard(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        blocks: Vec<u32>,
        chained: bool,
        timeout: Option<f64>,
        queue: Option<&Bound<'_, Queue>>,
        tag: u64,
    ) -> PyResult<Ticket> {
        let (store, pool) = (self.store.get(), self.pool.get()?);
        store.submit(py, keys, chained, timeout, queue, tag, Owners::new(), |store, what| {
            store.onboard(what, pool, blocks)
        })
    }

    /// Blocks in the pool.
    #[getter]
    fn num_blocks(&self) -> PyResult<u32> {
        Ok(self.pool.get()?.num_blocks())
    }

    /// Takes no more operations and returns when the last copy is over: the tensors are not touched any more.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let pool = self.pool.get()?;
        py.detach(|| pool.close());
        drop(std::mem::take(&mut *self.owners.lock()));
        Ok(())
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.pool.is_here() {
            Python::attach(|py| py.detach(|| self.pool.close()));
        } else {
            std::mem::forget(std::mem::take(&mut *self.owners.lock()));
        }
    }
}
