//! The store, as Python sees it.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kv_core::cost::{Balance, Quote};
use kv_core::key::{Extra, NamespaceSecret};
use kv_core::planner::PrefixQuote;
use kv_core::policy::BytesPerDay;
use kv_core::units::Nanos;
use kvtier_ffi::store::{CloseError, Presence, Removal};
use kvtier_ffi::{
    Durability, Identity, KeyBatch, RemoteUrl, SlowSources, StoreConfig, Submission, SubmitError,
};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffers::Blocks;
use crate::errors::{self, Invalid};
use crate::fork::{self, Native};
use crate::keys::{Keys, TakenKeys, block_key};
use crate::layout::{Arranged, Layout};
use crate::owner::{self, Owners};
use crate::pool::{Pool, Registration};
use crate::queue::Queue;
use crate::ticket::{self, Ticket};

/// Up to so many keys are hashed and looked up, a few microseconds, without releasing the interpreter: to get it back
/// from a busy thread can take 5 ms (`sys.getswitchinterval`).
const FEW_KEYS: usize = 64;

/// The members of `kvtier.Presence`.
pub(crate) const PRESENCES: [(&str, Presence); 3] =
    [("ABSENT", Presence::Absent), ("HOST", Presence::Host), ("NVME", Presence::Nvme)];

/// The members of `kvtier.Removal`.
pub(crate) const REMOVALS: [(&str, Removal); 3] =
    [("ABSENT", Removal::Absent), ("REMOVED", Removal::Removed), ("IN_USE", Removal::InUse)];

/// How long closing waits if nothing is said.
const CLOSE_SECONDS: f64 = 10.0;

/// A store of KV-cache blocks of one size, named by the runtime's own keys.
///
/// Host memory (``host_bytes``, pinned where there is a GPU) comes first, then an NVMe log of ``nvme_bytes`` in the
/// directory ``path``. ``tenant``, ``model``, ``revision`` and ``layout`` say which bytes are meant: stores that differ
/// in any of them never see each other's blocks. ``secret`` (32 bytes) makes the keys the tenant's own; without one, a
/// random one is kept beside the log. ``durability`` is ``"write_behind"`` (a cache) or ``"at_close"`` (closing writes
/// what only host memory has). ``nvme_bytes_per_day`` limits the wear of the drive. ``nvme_bytes`` may change from one
/// opening to the next: the log grows, or drops its last segments with what is in them.
///
/// With ``tokens_per_block``, loads of chains (``chained=True``) also ask ``remotes``: shared file systems
/// (``file:///directory``), Redis and Valkey (``redis://``, ``rediss://``); and with ``weigh_nvme`` they use NVMe only when
/// that is expected to beat recomputing, too. The choice learns from ``observed_prefill`` and starts from what is known
/// about ``model`` on ``gpu``. Blocks that are stored as a chain go to the remotes as well.
///
/// ``keys`` are a list of ``bytes`` or ``str`` of any length up to 4096; or one ``bytes`` of keys of 16 bytes each; or
/// an array, whose rows (items, if it has one dimension) are the keys; or ``Keys``. ``buffers`` are one contiguous
/// object for all blocks; or a list with an item for each key: an object with the buffer protocol, a tensor (torch or
/// DLPack), ``(address, length)``, or a list of those; or ``Runs``. Nothing is copied on the way.
///
/// Every operation returns a ``Ticket`` at once, or raises ``Busy`` when 1024 are under way. ``timeout`` is in seconds,
/// 30 if nothing is said. ``queue`` and ``tag`` announce the end in a ``Queue``.
///
/// >>> import kvtier
/// >>> with kvtier.Store(4096, 1 << 20, model="llama", revision="1") as store:
/// ...     page = bytearray(b"x" * 4096)
/// ...     stored = store.put([b"hash of the page"], page).wait().done
/// ...     page[:] = bytes(4096)
/// ...     found = store.exists([b"hash of the page", b"another"])
/// ...     loaded = store.get([b"hash of the page"], page).wait().done
/// >>> stored, list(found), loaded, page[:3]
/// (1, [1, 0], 1, bytearray(b'xxx'))
#[pyclass(frozen, module = "kvtier", name = "Store")]
pub(crate) struct Store(Native<Arc<kvtier_ffi::Store>>);

/// Stores that may be open, for the interpreter's exit.
static OPEN: Mutex<Vec<Native<Weak<kvtier_ffi::Store>>>> = Mutex::new(Vec::new());

impl Store {
    pub(crate) fn inner(&self) -> PyResult<&Arc<kvtier_ffi::Store>> {
        self.0.get()
    }

    /// Binds the keys and starts an operation.
    #[allow(clippy::too_many_arguments)] // what every submission has
    pub(crate) fn submit<F>(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        chained: bool,
        timeout: Option<f64>,
        queue: Option<&Bound<'_, Queue>>,
        tag: u64,
        owners: Owners,
        start: F,
    ) -> PyResult<Ticket>
    where
        F: FnOnce(&kvtier_ffi::Store, Submission) -> Result<kvtier_ffi::Ticket, SubmitError> + Send,
    {
        let keys = TakenKeys::take(keys)?;
        self.submit_taken(py, keys, chained, timeout, queue, tag, owners, start)
    }

    #[allow(clippy::too_many_arguments)] // as above
    fn submit_taken<F>(
        &self,
        py: Python<'_>,
        keys: TakenKeys,
        chained: bool,
        timeout: Option<f64>,
        queue: Option<&Bound<'_, Queue>>,
        tag: u64,
        owners: Owners,
        start: F,
    ) -> PyResult<Ticket>
    where
        F: FnOnce(&kvtier_ffi::Store, Submission) -> Result<kvtier_ffi::Ticket, SubmitError> + Send,
    {
        owner::sweep(py);
        let store = self.inner()?;
        let timeout = ticket::limit(timeout)?;
        let notify = queue.map(|queue| PyResult::Ok((queue.get().inner()?, tag))).transpose()?;
        let few = keys.len() <= FEW_KEYS;
        let go = || -> Result<_, Refusal> {
            let keys = keys.bind(store)?;
            Ok(start(store, Submission { keys, chained, timeout, notify })?)
        };
        let ticket = if few { go() } else { py.detach(go) }?;
        Ok(Ticket::new(ticket, owners))
    }
}

/// Why a submission was refused, before it is an exception.
enum Refusal {
    Keys(crate::keys::WrongKeys),
    Submit(SubmitError),
}

impl From<crate::keys::WrongKeys> for Refusal {
    fn from(wrong: crate::keys::WrongKeys) -> Self {
        Self::Keys(wrong)
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        Self::Submit(error)
    }
}

impl From<Refusal> for PyErr {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Keys(wrong) => wrong.into(),
            Refusal::Submit(error) => errors::submit(error),
        }
    }
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (
        block_bytes, host_bytes, *, path = None, nvme_bytes = None, nvme_bytes_per_day = None, tenant = "", model = "",
        revision = "", layout = "", secret = None, durability = "write_behind", tokens_per_block = None, gpu = "", weigh_nvme = false,
        remotes = Vec::new()
    ))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn new(
        py: Python<'_>,
        block_bytes: usize,
        host_bytes: u64,
        path: Option<PathBuf>,
        nvme_bytes: Option<u64>,
        nvme_bytes_per_day: Option<u64>,
        tenant: &str,
        model: &str,
        revision: &str,
        layout: &str,
        secret: Option<[u8; 32]>,
        durability: &str,
        tokens_per_block: Option<u32>,
        gpu: &str,
        weigh_nvme: bool,
        remotes: Vec<String>,
    ) -> PyResult<Self> {
        let identity = Identity {
            tenant: tenant.to_owned(),
            model: model.to_owned(),
            revision: revision.to_owned(),
            layout: layout.to_owned(),
        };
        let mut config = StoreConfig::new(block_bytes, host_bytes, identity);
        config.nvme = match (path, nvme_bytes) {
            (Some(path), Some(bytes)) => Some((path, bytes)),
            (None, None) => None,
            _ => return Err(Invalid::new_err("path and nvme_bytes belong together")),
        };
        config.nvme_budget = nvme_bytes_per_day.map(BytesPerDay);
        config.secret = secret.map(NamespaceSecret::new);
        config.durability = match durability {
            "write_behind" => Durability::WriteBehind,
            "at_close" => Durability::AtClose,
            other => {
                let text = format!("durability is {other:?}; it must be \"write_behind\" or \"at_close\"");
                return Err(Invalid::new_err(text));
            }
        };
        config.slow = match tokens_per_block {
            Some(0) => return Err(Invalid::new_err("tokens_per_block is 0")),
            Some(tokens_per_block) => {
                let remotes = remotes.into_iter().map(RemoteUrl).collect();
                Some(SlowSources { tokens_per_block, gpu: gpu.to_owned(), weigh_nvme, remotes })
            }
            None if remotes.is_empty() && !weigh_nvme => None,
            None => return Err(Invalid::new_err("remotes and weigh_nvme need tokens_per_block")),
        };
        fork::may_have_threads()?;
        let opened = py.detach(|| kvtier_ffi::Store::open(&config)).map_err(|error| errors::open(&error))?;
        let store = Arc::new(opened);
        let mut open = OPEN.lock();
        open.retain(|other| other.is_here() && other.strong_count() > 0);
        open.push(Native::new(Arc::downgrade(&store)));
        Ok(Self(Native::new(store)))
    }

    /// Bytes of one block.
    #[getter]
    fn block_bytes(&self) -> PyResult<usize> {
        Ok(self.inner()?.block_bytes())
    }

    /// Binds keys to the store's namespace once, for several uses.
    fn keys(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<Keys> {
        let (keys, store) = (TakenKeys::take(keys)?, self.inner()?);
        let batch = py.detach(|| keys.bind(store))?;
        Ok(Keys { batch, namespace: store.namespace_id() })
    }

    /// Names the full blocks of ``tokens`` (integers, or an array of 4-byte ones), for runtimes without hashes of their
    /// own. The KV also depends on ``lora`` (name and revision of an adapter) and ``salt``. ``parent`` is the last key of
    /// the blocks before; without it they are the first of the prompt.
    #[pyo3(signature = (tokens, tokens_per_block, *, parent = None, lora = None, salt = None))]
    fn token_keys(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        tokens_per_block: u32,
        parent: Option<&[u8]>,
        lora: Option<&[u8]>,
        salt: Option<&[u8]>,
    ) -> PyResult<Keys> {
        let store = self.inner()?;
        if tokens_per_block == 0 {
            return Err(Invalid::new_err("tokens_per_block is 0"));
        }
        let tokens = token_ids(tokens)?;
        let parent = parent.map(block_key).transpose()?;
        let extras: Vec<_> = lora.map(Extra::Lora).into_iter().chain(salt.map(Extra::Salt)).collect();
        let batch = py.detach(|| store.token_keys(tokens_per_block, &tokens, &extras, parent));
        Ok(Keys { batch, namespace: store.namespace_id() })
    }

    /// Where each key is now, one byte each: 0 nowhere, 1 in host memory, 2 on NVMe (``Presence``). Takes microseconds,
    /// pins and promises nothing.
    fn exists<'py>(&self, py: Python<'py>, keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let found = self.look_up(py, keys)?;
        Ok(PyBytes::new(py, &found))
    }

    /// How many keys are there before the first that is not.
    fn prefix(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        let found = self.look_up(py, keys)?;
        Ok(found.iter().take_while(|presence| **presence != 0).count())
    }

    /// Takes blocks out of host memory and NVMe, at once; one byte a key (``Removal``): 0 it was not there, 1 it is gone,
    /// 2 somebody reads, writes or pins it, and it stays. This is no purge: remote stores keep what they have, and until
    /// NVMe has written over a block, a restart may find it again.
    fn remove<'py>(&self, py: Python<'py>, keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let removed = self.of_each(py, keys, |store, keys| {
            Ok(store.remove(keys)?.into_iter().map(|removal| removal as u8).collect())
        })?;
        Ok(PyBytes::new(py, &removed))
    }

    /// Nothing that was stored before is served any more by this store, also after a restart: for weights that were
    /// updated in place, say. It takes no time: blocks of before leave as the least used. Operations under way may still
    /// end with them. ``Keys`` made before name nothing any more. Raises ``Unclean`` if it could not be noted beside the
    /// NVMe log; then all is as it was.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        let store = self.inner()?;
        py.detach(|| store.clear()).map_err(|error| errors::clear(&error))
    }

    /// Starts copying blocks out to ``buffers``, from NVMe by way of host memory. The bytes of a key that is ``DONE`` are
    /// those that were stored; the buffers of other keys are left as they were. With ``chained`` the keys are one chain,
    /// first block first: it ends at the first block that is not there, and remote stores are asked for the rest.
    #[pyo3(signature = (keys, buffers, *, chained = false, timeout = None, queue = None, tag = 0))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn get(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        buffers: &Bound<'_, PyAny>,
        chained: bool,
        timeout: Option<f64>,
        queue: Option<&Bound<'_, Queue>>,
        tag: u64,
    ) -> PyResult<Ticket> {
        let keys = TakenKeys::take(keys)?;
        let Blocks { buffers, owners } = Blocks::of(buffers, keys.len(), self.block_bytes()?, true)?;
        self.submit_taken(py, keys, chained, timeout, queue, tag, owners, |store, what| {
            // SAFETY: the ticket keeps the memory; that nobody else uses it meanwhile is the caller's part of the
            // agreement, as the documentation says.
            unsafe { store.get(what, buffers) }
        })
    }

    /// Starts copying blocks in from ``buffers``. A key that is there already is not copied again (``PRESENT``). With
    /// ``chained`` the keys are one chain, first block first: eviction takes blocks from its end, a block is stored only
    /// if all before it are, and a key whose buffer is ``None`` stands for a block that should be there already.
    #[pyo3(signature = (keys, buffers, *, chained = false, timeout = None, queue = None, tag = 0))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn put(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        buffers: &Bound<'_, PyAny>,
        chained: bool,
        timeout: Option<f64>,
        queue: Option<&Bound<'_, Queue>>,
        tag: u64,
    ) -> PyResult<Ticket> {
        let keys = TakenKeys::take(keys)?;
        let Blocks { buffers, owners } = Blocks::of(buffers, keys.len(), self.block_bytes()?, false)?;
        self.submit_taken(py, keys, chained, timeout, queue, tag, owners, |store, what| {
            // SAFETY: as in `get`.
            unsafe { store.put(what, buffers) }
        })
    }

    /// Starts bringing blocks to host memory; they stay there until the ticket is released. At most a quarter of the
    /// memory can be pinned. With ``chained`` the keys are one chain: NVMe and remote stores are asked for it if loading
    /// beats recomputing, and it ends at the first block that is not to be had. That is how to look up and fetch ahead.
    #[pyo3(signature = (keys, *, chained = false, timeout = None, queue = None, tag = 0))]
    fn pin(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        chained: bool,
        timeout: Option<f64>,
        queue: Option<&Bound<'_, Queue>>,
        tag: u64,
    ) -> PyResult<Ticket> {
        self.submit(py, keys, chained, timeout, queue, tag, Owners::new(), kvtier_ffi::Store::pin)
    }

    /// Starts writing all that is in host memory alone to NVMe, as far as the write budget allows, and makes it survive a
    /// power loss. Its ticket has one status: ``DONE``, ``TIMED_OUT`` when not all was written, or ``FAILED``.
    #[pyo3(signature = (*, timeout = None, queue = None, tag = 0))]
    fn flush(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        queue: Option<&Bound<'_, Queue>>,
        tag: u64,
    ) -> PyResult<Ticket> {
        let none = TakenKeys::Raw(Vec::new(), Vec::new());
        self.submit_taken(py, none, false, timeout, queue, tag, Owners::new(), |store, what| {
            store.flush(what.timeout, what.notify)
        })
    }

    /// Registers paged tensors of the runtime; see ``Pool``. ``tensors`` are in the order layer by layer, and K before V
    /// where they have their own. ``arrangement`` says how blocks lie in them: ``kv_outer`` (a tensor ``[2, B, ..]`` per
    /// layer), ``block_outer`` (``[B, 2, ..]`` or ``[B, ..]`` per layer), ``separate_kv`` (two tensors ``[B, ..]`` per
    /// layer), ``block_outermost`` (one tensor ``[B, layers, ..]``), or a tuple of strides in bytes: layer to layer and K
    /// to V (``None`` where each has its own tensor), block to block, token to token, head to head. ``device`` is the
    /// number of a GPU, for tensors given as ``(address, length)``; ``streams`` are those in which the runtime works on
    /// the tensors. A store has one pool at a time.
    #[pyo3(signature = (layout, tensors, *, num_blocks, arrangement = Arranged::Named("kv_outer".to_owned()), device = None, streams = Vec::new()))]
    #[pyo3(
        text_signature = "($self, layout, tensors, *, num_blocks, arrangement='kv_outer', device=None, streams=())"
    )]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn register(
        slf: &Bound<'_, Self>,
        layout: &Bound<'_, Layout>,
        tensors: Vec<Bound<'_, PyAny>>,
        num_blocks: u32,
        arrangement: Arranged,
        device: Option<u32>,
        streams: Vec<u64>,
    ) -> PyResult<Pool> {
        let layout = layout.get();
        Pool::register(slf, Registration { layout, tensors, num_blocks, arrangement, device, streams })
    }

    /// Totals since the opening, and what is in use now.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let store = self.inner()?;
        let (stats, slow) =
            py.detach(|| Ok((store.stats()?, store.slow_stats()?))).map_err(errors::submit)?;
        let dict = dict(py, &stats)?;
        dict.call_method1("update", (self::dict(py, &slow)?,))?;
        Ok(dict)
    }

    /// A pass of prefill over the tokens ``start..end`` of a prompt took so many ``seconds``. Owed once for every pass, also
    /// for those that follow a load: it is what the choice between loading and recomputing learns from. Does nothing
    /// without ``tokens_per_block``.
    fn observed_prefill(&self, py: Python<'_>, start: u32, end: u32, seconds: f64) -> PyResult<()> {
        let (store, took) = (self.inner()?, ticket::limit(Some(seconds))?.unwrap_or_default());
        py.detach(|| store.observed_prefill(start, end, took)).map_err(errors::submit)
    }

    /// What it would cost, in seconds, to serve a chain here, for routers that compare places: ``blocks`` that are here,
    /// ``recompute`` for all, ``expected`` and ``p90`` by the better way, and the same ``with_remote`` if the best remote
    /// store had the rest. Asks no remote store. ``None`` without ``tokens_per_block``.
    fn quote<'py>(&self, py: Python<'py>, keys: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (keys, store) = (TakenKeys::take(keys)?, self.inner()?);
        let quote = py.detach(|| Ok::<_, Refusal>(store.quote(&keys.bind(store)?)?))?;
        let part = |quote: &Quote| serde_json::json!({"recompute": quote.recompute, "expected": quote.expected, "p90": quote.p90});
        let all = |quote: PrefixQuote| {
            let mut all = part(&quote.here);
            all["blocks"] = quote.found.blocks.into();
            all["with_remote"] = quote.with_remote.as_ref().map(part).into();
            dict(py, &all)
        };
        quote.map(all).transpose()
    }

    /// The account behind "never worse than recomputing", in seconds: ``actual`` time spent, what ``recompute_only`` would
    /// have taken, and what is ``reserved`` for loads under way. ``None`` without ``tokens_per_block``.
    fn balance<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let store = self.inner()?;
        let balance = py.detach(|| store.balance()).map_err(errors::submit)?;
        let seconds = |nanos: Nanos| nanos.0 as f64 * 1e-9;
        let account = |balance: Balance| {
            let Balance { actual, recompute_only, reserved } = balance;
            let (actual, recompute, reserved) = (seconds(actual), seconds(recompute_only), seconds(reserved));
            dict(
                py,
                &serde_json::json!({"actual": actual, "recompute_only": recompute, "reserved": reserved}),
            )
        };
        balance.map(account).transpose()
    }

    /// Cancels what is under way and closes pool and log. When it returns, no buffer is touched any more. A second call
    /// does nothing. Raises ``Unclean`` when something did not end within ``timeout`` seconds; the log reopens all the
    /// same.
    #[pyo3(signature = (timeout = CLOSE_SECONDS))]
    #[pyo3(text_signature = "($self, timeout=10.0)")]
    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let store = self.inner()?;
        let limit = ticket::limit(Some(timeout))?.unwrap_or_default();
        let closed = py.detach(|| store.close(limit));
        owner::sweep(py);
        match closed {
            Ok(()) | Err(CloseError::Closed) => Ok(()),
            Err(error) => Err(errors::close(&error)),
        }
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py, CLOSE_SECONDS)
    }
}

impl Store {
    fn look_up(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
        self.of_each(py, keys, |store, keys| {
            Ok(store.exists(keys)?.into_iter().map(|presence| presence as u8).collect())
        })
    }

    /// What `ask` says of each key; at once, so that the interpreter is kept for few.
    fn of_each<F>(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, ask: F) -> PyResult<Vec<u8>>
    where
        F: FnOnce(&kvtier_ffi::Store, &KeyBatch) -> Result<Vec<u8>, SubmitError> + Send,
    {
        let (keys, store) = (TakenKeys::take(keys)?, self.inner()?);
        let few = keys.len() <= FEW_KEYS;
        let ask = || -> Result<Vec<u8>, Refusal> { Ok(ask(store, &keys.bind(store)?)?) };
        Ok(if few { ask() } else { py.detach(ask) }?)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.0.is_here() {
            let store: &Arc<kvtier_ffi::Store> = &self.0;
            // Not with the interpreter held: it may take seconds. What did not close cleanly is in the log.
            let closed =
                Python::attach(|py| py.detach(|| store.close(Duration::from_secs_f64(CLOSE_SECONDS))));
            if let Err(error @ CloseError::Engine(_)) = closed {
                tracing::warn!(%error, "a store was dropped and did not close cleanly");
            }
        }
    }
}

/// As Python's `json` reads it.
fn dict<'py>(py: Python<'py>, what: &impl serde::Serialize) -> PyResult<Bound<'py, PyAny>> {
    let text = serde_json::to_string(what).map_err(|error| Invalid::new_err(error.to_string()))?;
    py.import("json")?.call_method1("loads", (text,))
}

fn token_ids(tokens: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if let Some(view) = crate::view::View::of(tokens, false)?
        && view.row_bytes() == size_of::<u32>()
    {
        let (items, _) = view.bytes(tokens.py()).as_chunks();
        return Ok(items.iter().map(|item| u32::from_ne_bytes(*item)).collect());
    }
    tokens.try_iter()?.map(|token| token?.extract()).collect()
}

/// Closes every store that is still open: the interpreter is about to exit.
#[pyfunction]
pub(crate) fn close_all(py: Python<'_>) {
    let open: Vec<_> =
        OPEN.lock().iter().filter(|store| store.is_here()).filter_map(|store| store.upgrade()).collect();
    py.detach(|| {
        for store in open {
            if let Err(error @ CloseError::Engine(_)) = store.close(Duration::from_secs_f64(CLOSE_SECONDS)) {
                tracing::warn!(%error, "a store that was open at exit did not close cleanly");
            }
        }
    });
    owner::sweep(py);
}
