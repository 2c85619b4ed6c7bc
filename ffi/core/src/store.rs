//! A store of opaque blocks of one size, named by the runtime's own keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kv_core::cost::{Balance, TokenRange};
use kv_core::index::NamespaceIndex;
use kv_core::key::{BlockKey, Extra, Namespace, NamespaceId};
use kv_core::layout::GroupIndex;
use kv_core::planner::PrefixQuote;
pub use kv_core::planner::Removal;
use kv_core::policy::PolicyKind;
use kv_core::tier::Tier;
use kv_core::units::{Epoch, Tokens};
use kv_cuda::DeviceChoice;
use kv_tiers::arena::Arena;
use kv_tiers::engine::{Engine, EngineConfig, EngineError};
use kv_tiers::nvme::{LogConfig, NvmeConfig};
use parking_lot::{Mutex, RwLock};

use crate::batch::{BatchError, Buffers, KeyBatch};
use crate::config::{Durability, LONGEST_TIMEOUT, StoreConfig, USUAL_TIMEOUT};
use crate::flow::Flow;
use crate::life::{self, Life, Lineage};
use crate::open::{OpenError, prepare, secret_of, slots};
use crate::pool::{Pool, PoolConfig, PoolError};
use crate::queue::TaskQueue;
use crate::slow::SlowStats;
use crate::stats::{Counters, StoreStats, add};
use crate::task::{KeyStatus, Operation, Permit, Task, Ticket};
use crate::work::{MOST_TASKS, WORKERS, WorkQueue, left};

/// Most blocks that one worker holds at a time.
const MOST_IN_GROUP: usize = 256;

/// NVMe writes in flight: keeps fast drives busy.
const WRITE_BACKS: u32 = 32;

/// Why an operation was not started. Nothing of the runtime was touched or will be.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// Too much is under way: collect tickets and try again.
    #[error(
        "{MOST_TASKS} operations are under way or not released: wait for some, release them, and try again"
    )]
    Busy,
    /// The store, or the pool, is closed.
    #[error("the store is closed")]
    Closed,
    /// Keys or buffers that make no sense.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A block that the pool does not have.
    #[error("block {block} is not in the pool of {num_blocks} blocks")]
    NoSuchBlock {
        /// The block named.
        block: u32,
        /// Blocks of the pool.
        num_blocks: u32,
    },
    /// There is no NVMe log to flush to.
    #[error("the store was opened without an NVMe directory, so nothing can be made durable")]
    NoLog,
    /// The pool belongs to another store.
    #[error("the pool was registered with another store")]
    OtherPool,
}

/// Where a key is. The numbers are part of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Presence {
    /// Nowhere.
    Absent = 0,
    /// In host memory.
    Host = 1,
    /// On NVMe.
    Nvme = 2,
}

/// What all submissions say.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The blocks, made by [`Store::keys`].
    pub keys: KeyBatch,
    /// The keys are one chain, first block first. Eviction then takes blocks from the end of the chain, a block is stored
    /// only if all before it are, and gets, onboards and pins end at the first block that is not there, but ask slow
    /// sources ([`StoreConfig::slow`]) as well. Without it each key stands by itself.
    pub chained: bool,
    /// How long it may take: 30 s if nothing is said, a day at most.
    pub timeout: Option<Duration>,
    /// Where to announce the end, and under which name.
    pub notify: Option<(Arc<TaskQueue>, u64)>,
}

impl Submission {
    /// Independent keys, the usual limit, no announcement.
    #[must_use]
    pub const fn of(keys: KeyBatch) -> Self {
        Self { keys, chained: false, timeout: None, notify: None }
    }
}

struct Inner {
    /// Taken out when the store is closed.
    engine: RwLock<Option<Engine>>,
    life: RwLock<Life>,
    work: WorkQueue,
    counters: Counters,
    has_log: bool,
    most_in_group: usize,
    pinned: Arc<AtomicUsize>,
    most_pinned: usize,
}

/// See the module's head. Dropping it is [`Store::close`] without the report.
///
/// ```
/// use std::time::Duration;
/// use kvtier_ffi::{Buffers, Identity, KeyStatus, Run, Store, StoreConfig, Submission};
///
/// let identity = Identity { model: "llama".into(), revision: "1".into(), ..Identity::default() };
/// let store = Store::open(&StoreConfig::new(4096, 1 << 20, identity))?;
/// let mut page = vec![7_u8; 4096];
/// let run = Run { start: page.as_mut_ptr(), len: page.len() };
/// let batch = || store.keys([b"hash of the page".as_slice()].into_iter()).map(Submission::of);
///
/// // SAFETY: nobody uses the page until the ticket is done.
/// let put = unsafe { store.put(batch()?, Buffers::even(vec![run], 1)?)? };
/// assert_eq!(put.wait(Duration::from_secs(9)).map(|summary| summary.done), Some(1));
/// page.fill(0);
/// let run = Run { start: page.as_mut_ptr(), len: page.len() };
/// // SAFETY: as above.
/// let get = unsafe { store.get(batch()?, Buffers::even(vec![run], 1)?)? };
/// assert!(get.wait(Duration::from_secs(9)).is_some());
/// assert_eq!(get.statuses(), [KeyStatus::Done]);
/// assert_eq!(page, [7; 4096]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Store {
    inner: Arc<Inner>,
    lineage: Lineage,
    /// What keys of this store are told by, whatever life it is in.
    id: NamespaceId,
    /// Where the number of its life is kept.
    dir: Option<PathBuf>,
    arena: Arc<Arena>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    taken: Arc<AtomicUsize>,
    has_pool: Arc<AtomicBool>,
    pool: Mutex<std::sync::Weak<Pool>>,
    durability: Durability,
    has_log: bool,
}

impl Store {
    /// Maps the host memory and opens the log, which may take seconds for large ones.
    ///
    /// # Errors
    /// [`OpenError`]; nothing in a log is lost by it.
    pub fn open(config: &StoreConfig) -> Result<Self, OpenError> {
        let slots = slots(config)?;
        let (secret, nvme) = match &config.nvme {
            Some((dir, bytes)) => {
                let log =
                    prepare(dir).map_err(|source| OpenError::Directory { path: dir.clone(), source })?;
                let sizes = LogConfig::sized_in(&log, *bytes, config.block_bytes)
                    .map_err(kv_tiers::engine::OpenError::Nvme)?;
                (secret_of(config, Some(dir))?, Some(NvmeConfig::new(log, sizes)))
            }
            None => (secret_of(config, None)?, None),
        };
        let fingerprint = config.identity.fingerprint(config.block_bytes);
        let dir = config.nvme.as_ref().map(|(dir, _)| dir.as_path());
        let epoch = match dir {
            Some(dir) => life::kept_in(dir)
                .map_err(|source| OpenError::Directory { path: dir.join("epoch"), source })?,
            None => Epoch(0),
        };
        let slow = config.slow.as_ref().map(|slow| slow.open(&config.identity.model, fingerprint, dir));
        let opened = Engine::open(&EngineConfig {
            block_bytes: config.block_bytes,
            hbm: None,
            device: DeviceChoice::Host,
            host_slots: slots,
            nvme,
            policy: PolicyKind::default(),
            nvme_budget: config.nvme_budget,
            max_write_backs: WRITE_BACKS,
            slow: slow.transpose()?,
        })?;
        let lineage = Lineage { tenant: config.identity.tenant.clone(), fingerprint, secret };
        let id = Namespace::new(&lineage.tenant, fingerprint, &lineage.secret).id();
        let life = lineage.begin(epoch, &opened.engine)?;
        let arena = opened.engine.arena().clone();
        let inner = Arc::new(Inner {
            engine: RwLock::new(Some(opened.engine)),
            life: RwLock::new(life),
            work: WorkQueue::default(),
            counters: Counters::default(),
            has_log: config.nvme.is_some(),
            // Two groups for each worker take at most half of the memory.
            most_in_group: (slots as usize / (4 * WORKERS)).clamp(1, MOST_IN_GROUP),
            pinned: Arc::default(),
            most_pinned: slots as usize / 4,
        });
        let store = Self {
            inner: inner.clone(),
            lineage,
            id,
            dir: dir.map(Path::to_owned),
            arena,
            workers: Mutex::default(),
            taken: Arc::default(),
            has_pool: Arc::default(),
            pool: Mutex::default(),
            durability: config.durability,
            has_log: config.nvme.is_some(),
        };
        for _ in 0..WORKERS {
            let inner = inner.clone();
            let worker = std::thread::Builder::new().name("kvtier-store".into());
            store.workers.lock().push(worker.spawn(move || inner.serve())?);
        }
        Ok(store)
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.arena.payload_bytes()
    }

    /// Names blocks by the runtime's keys.
    ///
    /// # Errors
    /// [`BatchError`].
    pub fn keys<'a>(&self, keys: impl ExactSizeIterator<Item = &'a [u8]>) -> Result<KeyBatch, BatchError> {
        KeyBatch::wrap(&self.inner.life.read().chain, keys)
    }

    /// Names the full blocks of `tokens`, for runtimes without hashes of their own. `extras` are what else the KV depends
    /// on: an adapter, a salt, an image. `parent` is the last key of the blocks before; without it they are the first.
    #[must_use]
    pub fn token_keys(
        &self,
        tokens_per_block: u32,
        tokens: &[u32],
        extras: &[Extra<'_>],
        parent: Option<BlockKey>,
    ) -> KeyBatch {
        let chain = self.inner.life.read().owner.chain(GroupIndex(0), Tokens(tokens_per_block));
        KeyBatch::of(chain.keys(parent.unwrap_or(BlockKey::ROOT), tokens, extras).collect())
    }

    /// Public name of the namespace, whatever [`Store::clear`] does. Keys of a store are good for every store of the
    /// same namespace, but name nothing in one that was cleared since, or at another time.
    #[must_use]
    pub const fn namespace_id(&self) -> NamespaceId {
        self.id
    }

    /// Where each key is now. Takes microseconds, pins and promises nothing.
    ///
    /// # Errors
    /// [`SubmitError::Closed`].
    pub fn exists(&self, keys: &KeyBatch) -> Result<Vec<Presence>, SubmitError> {
        let engine = self.inner.engine.read();
        let engine = engine.as_ref().ok_or(SubmitError::Closed)?;
        let found: Vec<_> = engine
            .lookup_each(self.inner.namespace(), keys.as_slice())
            .into_iter()
            .map(|tier| match tier {
                None => Presence::Absent,
                Some(Tier::Nvme) => Presence::Nvme,
                Some(_) => Presence::Host,
            })
            .collect();
        add(&self.inner.counters.exists_keys, found.len());
        add(&self.inner.counters.exists_found, found.iter().filter(|at| **at != Presence::Absent).count());
        Ok(found)
    }

    /// Takes blocks out of host memory and NVMe, at once. A block that somebody reads, writes or pins stays. This is no
    /// purge: remote stores keep what they have, and until NVMe has written over a block, a restart may find it again.
    ///
    /// # Errors
    /// [`SubmitError::Closed`].
    pub fn remove(&self, keys: &KeyBatch) -> Result<Vec<Removal>, SubmitError> {
        self.engine(|engine| engine.remove(self.inner.namespace(), keys.as_slice()))
    }

    /// Nothing that was stored before is served any more by this store, also after a restart; for weights that were
    /// updated in place, say. It moves no bytes: blocks that were there leave as the least used. Operations under way may
    /// still end with blocks of before. Key batches made before name nothing any more.
    ///
    /// # Errors
    /// [`ClearError`]; all is as it was.
    pub fn clear(&self) -> Result<(), ClearError> {
        let engine = self.inner.engine.read();
        let engine = engine.as_ref().ok_or(ClearError::Closed)?;
        // Held from before it is kept: of two clearings at once, the later is the one that lasts.
        let mut life = self.inner.life.write();
        let epoch = life::another()?;
        let next = self.lineage.begin(epoch, engine)?;
        if let Some(dir) = &self.dir {
            life::keep_in(dir, epoch)?;
        }
        *life = next;
        Ok(())
    }

    /// Starts copying blocks out to buffers of the runtime, from NVMe by way of host memory. The bytes of a key that is
    /// [`KeyStatus::Done`] are those that were stored; the buffers of other keys are left as they were.
    ///
    /// # Safety
    /// Until the ticket is done, the buffers are writable and nobody else reads or writes them.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub unsafe fn get(&self, what: Submission, to: Buffers) -> Result<Ticket, SubmitError> {
        to.check(what.keys.len(), self.block_bytes(), false)?;
        self.submit(what, Operation::Get(to))
    }

    /// Starts copying blocks in from buffers of the runtime. A key that is there already is not copied again. With
    /// `chained`, keys without buffers stand for blocks that should be there already.
    ///
    /// # Safety
    /// Until the ticket is done, the buffers are readable and nobody writes them.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub unsafe fn put(&self, what: Submission, from: Buffers) -> Result<Ticket, SubmitError> {
        from.check(what.keys.len(), self.block_bytes(), what.chained)?;
        self.submit(what, Operation::Put(from))
    }

    /// Starts bringing blocks to host memory; they stay there until the ticket is dropped. At most a quarter of the
    /// memory can be pinned. With `chained` it asks slow sources as well, and ends at the first block that is not to be
    /// had: what a runtime looks up and fetches ahead in one go.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn pin(&self, what: Submission) -> Result<Ticket, SubmitError> {
        self.submit(what, Operation::Pin)
    }

    /// Starts writing all that is in host memory alone to NVMe, as far as the write budget allows, and makes it survive
    /// a power loss. Its ticket has one status: [`KeyStatus::Done`], [`KeyStatus::TimedOut`] when not all was written, or
    /// [`KeyStatus::Failed`].
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn flush(
        &self,
        timeout: Option<Duration>,
        notify: Option<(Arc<TaskQueue>, u64)>,
    ) -> Result<Ticket, SubmitError> {
        if !self.has_log {
            return Err(SubmitError::NoLog);
        }
        let keys = self.keys(std::iter::empty())?;
        self.submit(Submission { keys, chained: false, timeout, notify }, Operation::Flush)
    }

    /// Registers paged tensors of the runtime. A store has one pool at a time.
    ///
    /// # Safety
    /// The buffers are where and as large as the configuration says, for as long as its `owner` is kept. From the
    /// submission of an operation until its ticket is done, nobody but work queued in the configured streams before it
    /// writes its blocks, and nobody reads blocks that are being loaded. Streams exist until the pool is closed.
    ///
    /// # Errors
    /// [`PoolError`].
    pub unsafe fn register(&self, config: PoolConfig) -> Result<Arc<Pool>, PoolError> {
        let (pool, store) = (config.placement.layout().bytes_per_block(), self.block_bytes());
        if pool != store {
            return Err(PoolError::BlockBytes { pool, store });
        }
        let engine = self.inner.engine.read();
        if engine.is_none() {
            return Err(PoolError::Closed);
        }
        // SAFETY: the caller's word.
        let pool = unsafe { Pool::open(config, self.arena.clone(), &self.has_pool) }?;
        *self.pool.lock() = Arc::downgrade(&pool);
        Ok(pool)
    }

    /// Starts copying blocks of a pool into the store, `from[i]` under key `i`.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn offload(&self, what: Submission, pool: &Arc<Pool>, from: Vec<u32>) -> Result<Ticket, SubmitError> {
        self.check_pool(&what, pool, &from)?;
        self.submit(what, Operation::Offload(pool.clone(), from))
    }

    /// Starts copying blocks of the store into a pool, key `i` to `to[i]`. They arrive layer by layer if they all fit
    /// one turn (a sixteenth of host memory, 256 blocks at most), else block by block. A block whose key is not
    /// [`KeyStatus::Done`] may hold anything.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn onboard(&self, what: Submission, pool: &Arc<Pool>, to: Vec<u32>) -> Result<Ticket, SubmitError> {
        self.check_pool(&what, pool, &to)?;
        self.submit(what, Operation::Onboard(pool.clone(), to))
    }

    fn check_pool(&self, what: &Submission, pool: &Arc<Pool>, blocks: &[u32]) -> Result<(), SubmitError> {
        if !std::ptr::eq(self.pool.lock().as_ptr(), Arc::as_ptr(pool)) {
            return Err(SubmitError::OtherPool);
        }
        if pool.is_closed() {
            return Err(SubmitError::Closed);
        }
        if blocks.len() != what.keys.len() {
            return Err(BatchError::Count { found: blocks.len(), keys: what.keys.len() }.into());
        }
        let num_blocks = pool.num_blocks();
        match blocks.iter().find(|block| **block >= num_blocks) {
            Some(&block) => Err(SubmitError::NoSuchBlock { block, num_blocks }),
            None => Ok(()),
        }
    }

    fn submit(&self, what: Submission, operation: Operation) -> Result<Ticket, SubmitError> {
        let Some(permit) = Permit::take(&self.taken, MOST_TASKS) else {
            add(&self.inner.counters.busy, 1);
            return Err(SubmitError::Busy);
        };
        let deadline = Instant::now() + what.timeout.unwrap_or(USUAL_TIMEOUT).min(LONGEST_TIMEOUT);
        let task = Arc::new(Task::new(operation, what.keys, what.chained, deadline, what.notify, permit));
        if self.inner.work.push(task.clone()) { Ok(Ticket::new(task)) } else { Err(SubmitError::Closed) }
    }

    /// A pass of prefill over the tokens `start..end` of a prompt took `took`. Owed once for every pass: it is what the
    /// choice between loading and recomputing learns from. Without slow sources it does nothing.
    ///
    /// # Errors
    /// [`SubmitError::Closed`].
    pub fn observed_prefill(&self, start: u32, end: u32, took: Duration) -> Result<(), SubmitError> {
        self.engine(|engine| engine.observed_prefill(TokenRange::new(start, end), took))
    }

    /// What it would cost to serve a chain here, for routers. Asks no remote store; `None` without slow sources.
    ///
    /// # Errors
    /// [`SubmitError::Closed`].
    pub fn quote(&self, keys: &KeyBatch) -> Result<Option<PrefixQuote>, SubmitError> {
        self.engine(|engine| engine.quote(self.inner.namespace(), keys.as_slice()))
    }

    /// The account behind "never worse than recomputing"; `None` without slow sources.
    ///
    /// # Errors
    /// [`SubmitError::Closed`].
    pub fn balance(&self) -> Result<Option<Balance>, SubmitError> {
        self.engine(Engine::balance)
    }

    /// What slow sources have done.
    ///
    /// # Errors
    /// [`SubmitError::Closed`].
    pub fn slow_stats(&self) -> Result<SlowStats, SubmitError> {
        let stats = self.engine(Engine::stats)?;
        Ok(SlowStats {
            remote_reads: stats.remote_reads,
            remote_writes: stats.remote_writes,
            loads_admitted: stats.loads_admitted,
            loads_refused: stats.loads_refused,
            loads_late: stats.loads_late,
        })
    }

    fn engine<T>(&self, ask: impl FnOnce(&Engine) -> T) -> Result<T, SubmitError> {
        self.inner.engine.read().as_ref().map(ask).ok_or(SubmitError::Closed)
    }

    /// Counters so far, and what is in use now.
    ///
    /// # Errors
    /// [`SubmitError::Closed`].
    pub fn stats(&self) -> Result<StoreStats, SubmitError> {
        let engine = self.inner.engine.read();
        let engine = engine.as_ref().ok_or(SubmitError::Closed)?;
        let (planner, occupied) = (engine.stats(), engine.occupied());
        Ok(StoreStats {
            under_way: self.inner.work.len() as u64,
            host_slots: u64::from(self.arena.slots()),
            host_used: occupied[Tier::Host],
            nvme_used: occupied[Tier::Nvme],
            nvme_reads: planner.nvme_reads,
            nvme_writes: planner.nvme_writes,
            refused_loads: planner.refused_loads,
            failed_loads: planner.failed_loads,
            failed_writes: planner.failed_writes,
            lost_to_eviction: planner.lost_to_eviction,
            block_bytes: self.block_bytes() as u64,
            ..self.inner.counters.read()
        })
    }

    /// Cancels what is under way, and closes the pool and the log. When it returns, no buffer of the runtime is touched
    /// any more. With [`Durability::AtClose`], blocks that only host memory holds are written first, as long as `limit`
    /// allows.
    ///
    /// # Errors
    /// [`SubmitError::Closed`] the second time; an [`EngineError`] says what did not end in time, and the log reopens
    /// all the same.
    pub fn close(&self, limit: Duration) -> Result<(), CloseError> {
        let end = Instant::now() + limit.min(LONGEST_TIMEOUT);
        self.inner.work.close();
        for worker in std::mem::take(&mut *self.workers.lock()) {
            if worker.join().is_err() {
                tracing::error!("a worker of the store had panicked");
            }
        }
        if let Some(pool) = self.pool.lock().upgrade() {
            pool.close();
        }
        let engine = self.inner.engine.write().take().ok_or(CloseError::Closed)?;
        if self.durability == Durability::AtClose {
            engine.write_back_all();
            while engine.unwritten() > 0 && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1).min(left(end)));
            }
        }
        Ok(engine.shutdown(left(end).max(Duration::from_millis(100)))?)
    }
}

/// Why a store was not cleared.
#[derive(Debug, thiserror::Error)]
pub enum ClearError {
    /// It is closed.
    #[error("the store is closed")]
    Closed,
    /// It could not be kept beside the log that it is cleared.
    #[error("the store is not cleared: it could not be noted beside its log")]
    Io(#[from] std::io::Error),
    /// It was cleared too often: 65,535 times.
    #[error("the store is not cleared")]
    Engine(#[from] EngineError),
}

/// Why closing did not go as it should.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// It was closed before.
    #[error("the store is closed")]
    Closed,
    /// Transfers that did not end, or bytes that could not be made durable.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Drop for Store {
    fn drop(&mut self) {
        match self.close(Duration::from_secs(10)) {
            Ok(()) | Err(CloseError::Closed) => {}
            Err(error) => tracing::warn!(%error, "a store was dropped and did not close cleanly"),
        }
    }
}

impl Inner {
    fn namespace(&self) -> NamespaceIndex {
        self.life.read().namespace
    }

    fn serve(&self) {
        while let Some(task) = self.work.take() {
            let engine = self.engine.read();
            let run = || match engine.as_ref() {
                None => (vec![KeyStatus::Cancelled; task.width()], Vec::new()),
                Some(engine) => Flow {
                    engine,
                    namespace: self.namespace(),
                    task: &task,
                    has_log: self.has_log,
                    most: self.most_in_group,
                    pinned: &self.pinned,
                    most_pinned: self.most_pinned,
                }
                .run(),
            };
            // A bug in one operation ends that operation.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            let (statuses, pins) =
                ended.unwrap_or_else(|_| (vec![KeyStatus::Failed; task.width()], Vec::new()));
            drop(engine);
            match task.operation {
                Operation::Flush => {}
                Operation::Put(_) | Operation::Offload(..) => self.counters.count(true, &statuses),
                _ => self.counters.count(false, &statuses),
            }
            // First, so that whoever learns of the end may submit again.
            self.work.done(&task);
            task.finish(statuses, pins);
        }
    }
}
