//! Mooncake Store through its C library.
//!
//! ```text
//!   MooncakeStore ── calls ──► a few threads ── batches ──► libmooncake_store.so ──► master, other nodes' memory
//!                                   │                               │
//!                                   └── a lane each of the Staging ─┘   registered once
//! ```
//!
//! The library's calls block, and have no deadlines of their own. A call that hangs keeps its thread, its lane and
//! its permit until the library lets go of them; callers leave at their deadlines all the same. The library sees no
//! memory but the staging, from which and into which records are copied.
//!
//! What Mooncake is, and what follows from it:
//!
//! - A put of a name that is there *succeeds and changes nothing*. So a damaged value stays until it is deleted or
//!   evicted; the next put then replaces it.
//! - Tenants are names that clients give themselves, and the C API has none. The namespace is part of every name, and
//!   who may read a record is decided by its key, not by Mooncake.
//! - **Deleting and sweeping invalidate; they erase nothing.** The master forgets the names. The bytes stay in the
//!   memory or on the disk of the node that lent it until something else is written there, and a node that was down
//!   meanwhile may report its objects again when it comes back. A purge may count a sweep as the invalidation of a
//!   namespace, never as its physical removal.
//! - What somebody is writing cannot be deleted yet: such a delete fails, and a sweep passes over it. Epochs keep it
//!   from being found.
//! - How long a put takes does not grow evenly with its size (with TCP 1 MiB takes longer than 4 MiB), so nothing
//!   here assumes that it does.

#[allow(missing_docs, unreachable_pub, dead_code, non_camel_case_types)]
#[allow(clippy::undocumented_unsafe_blocks, clippy::too_many_arguments)]
#[rustfmt::skip]
mod bindings; // generated, with C's names
mod codes;
mod library;
mod names;
mod session;
mod staging;
mod work;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Instant;

use kv_core::key::NamespaceId;
use kv_core::units::Epoch;
use parking_lot::Mutex;

use super::backend::{Backend, Call};
use super::call::Pending;
use super::client::Client;
use super::pool::Pool;
use super::{
    InFlight, Limits, OpenError, PendingGet, PendingSweep, Put, RemoteCounters, RemoteError, RemoteKey,
    RemoteStore, Want,
};
use session::Session;

/// Threads, and lanes of the staging. Enough to keep a link busy with batches.
const THREADS: usize = 8;

/// What a [`MooncakeStore`] needs to know. Strings are what Mooncake understands by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MooncakeConfig {
    /// File of the library. Without one it is the one that `MOONCAKE_STORE_LIBRARY` names, or else
    /// `libmooncake_store.so` where the loader finds it.
    pub library: Option<PathBuf>,
    /// Address of the master: `host:port`.
    pub master: String,
    /// Where nodes find each other: `P2PHANDSHAKE`, or the address of a metadata server.
    pub metadata: String,
    /// Name or address under which other nodes reach this one. Without a port Mooncake takes a free one, and says
    /// only after some twenty attempts (90 s were seen) that there is no master.
    pub hostname: String,
    /// `tcp`, `rdma`, or another transport that the library was built with.
    pub protocol: String,
    /// Network devices for it, with commas between them; empty for TCP.
    pub devices: String,
    /// Bytes of this process's memory that are lent to the store. 0: it only uses what others lend.
    pub segment_bytes: u64,
    /// Bytes of the largest block. The store takes 16 times that much memory for its work: one lane for each of its 8
    /// threads, and the same inside the library. Larger blocks are [`RemoteError::TooLarge`].
    pub record_bytes: usize,
    /// What may be in flight.
    pub limits: Limits,
}

/// Blocks in Mooncake Store.
pub struct MooncakeStore {
    client: Client<MooncakeBackend>,
    /// Disconnected when the library's client has ended.
    ended: Mutex<Receiver<Infallible>>,
}

impl MooncakeStore {
    /// Loads the library and connects to the master. The library stays loaded. What is not done at the deadline goes
    /// on behind the caller's back, and is undone as soon as it is done.
    ///
    /// # Errors
    /// [`OpenError`]: no library, no master, no threads.
    ///
    /// ```
    /// use kv_tiers::remote::{Limits, MooncakeConfig, MooncakeStore, OpenError};
    /// use std::time::{Duration, Instant};
    /// let config = MooncakeConfig {
    ///     library: Some("/nowhere/libmooncake_store.so".into()),
    ///     master: "127.0.0.1:50051".to_owned(),
    ///     metadata: "P2PHANDSHAKE".to_owned(),
    ///     hostname: "127.0.0.1".to_owned(),
    ///     protocol: "tcp".to_owned(),
    ///     devices: String::new(),
    ///     segment_bytes: 0,
    ///     record_bytes: 8 << 20,
    ///     limits: Limits::default(),
    /// };
    /// let error = MooncakeStore::open(config, Instant::now() + Duration::from_secs(60)).err();
    /// assert!(matches!(error, Some(OpenError::Library { .. })));
    /// ```
    pub fn open(config: MooncakeConfig, deadline: Instant) -> Result<Self, OpenError> {
        let pool = Pool::start(THREADS).map_err(OpenError::Threads)?;
        let (alive, ended) = channel();
        let (opened, ready) = channel();
        let limits = config.limits;
        let open = move || {
            // Nobody waits any more: then the session ends here.
            drop(opened.send(Session::open(&config, alive)));
        };
        thread::Builder::new().name("kvtier-mooncake".to_owned()).spawn(open).map_err(OpenError::Threads)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let session = ready.recv_timeout(left).map_err(|_| OpenError::Late)??;
        let backend = MooncakeBackend { pool, session: Some(Arc::new(session)) };
        Ok(Self { client: Client::new(backend, limits, Arc::default()), ended: Mutex::new(ended) })
    }

    /// Closes the store and waits until the library has ended its client, which dropping does not.
    ///
    /// # Errors
    /// [`RemoteError::Late`]: something hangs. It is ended if it ever returns; until then it keeps what it has.
    pub fn close(self, deadline: Instant) -> Result<(), RemoteError> {
        let Self { client, ended } = self;
        drop(client);
        let left = deadline.saturating_duration_since(Instant::now());
        match ended.into_inner().recv_timeout(left) {
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            Err(RecvTimeoutError::Timeout) => Err(RemoteError::Late),
            Ok(never) => match never {},
        }
    }
}

impl RemoteStore for MooncakeStore {
    fn exists(&self, keys: &[RemoteKey], deadline: Instant) -> Pending<bool> {
        self.client.exists(keys, deadline)
    }
    fn get(&self, wants: &[Want], deadline: Instant) -> PendingGet {
        self.client.get(wants, deadline)
    }
    /// A block that is there already is not written again, whatever is stored under its name.
    fn put(&self, puts: &[Put<'_>], deadline: Instant) -> Pending<()> {
        self.client.put(puts, deadline)
    }
    fn delete(&self, keys: &[RemoteKey], deadline: Instant) -> Pending<()> {
        self.client.delete(keys, deadline)
    }
    /// Invalidates, and erases nothing: the bytes stay on the nodes that hold them.
    fn sweep(&self, namespace: NamespaceId, up_to: Epoch, deadline: Instant) -> PendingSweep {
        self.client.sweep(namespace, up_to, deadline)
    }
    fn counters(&self) -> RemoteCounters {
        self.client.counters()
    }
    fn in_flight(&self) -> InFlight {
        self.client.in_flight()
    }
}

struct MooncakeBackend {
    pool: Pool,
    /// `None` only while it is dropped. Every piece of work has its own share.
    session: Option<Arc<Session>>,
}

impl Backend for MooncakeBackend {
    fn submit(&self, call: Call) {
        if let Some(session) = &self.session {
            self.pool.submit(work::tasks(session, call));
        }
    }
}

impl Drop for MooncakeBackend {
    /// Ending a client may take as long as any other call, so the last share is never dropped on a caller's thread.
    fn drop(&mut self) {
        let session = self.session.take();
        let end = thread::Builder::new().name("kvtier-mooncake".to_owned());
        if let Err(error) = end.spawn(move || drop(session)) {
            tracing::warn!(%error, "no thread to end a Mooncake client, which ends here");
        }
    }
}
