//! Redis, Valkey and whatever else speaks their protocol, alone or as a cluster.
//!
//! ```text
//! kvtier:1:<namespace>:<epoch>:<fingerprint>:{<key>}:<chunk>      a string of at most 4 MiB of the record
//! ```
//!
//! The braces keep a block's chunks on one node of a cluster. Chunk 0, which has the header, is written last; a block
//! of which any chunk is missing is absent.
//!
//! Calls are tasks of an event loop on two threads. Each uses one *lane*, a connection of its own for that time, so
//! that a call that is late or cancelled can be ended by closing its connection: nothing of it is then left in a
//! queue behind which others wait, and nothing answers somebody else's question.

mod dial;
mod lanes;
mod link;
mod ops;
mod request;
mod sweep;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::key::NamespaceId;
use kv_core::units::Epoch;
use tokio::runtime::{Builder, Runtime};

use super::backend::{Backend, Call};
use super::buffers::Buffers;
use super::call::Pending;
use super::client::Client;
use super::{
    InFlight, Limits, OpenError, PendingGet, PendingSweep, Put, RemoteCounters, RemoteKey, RemoteStore, Want,
};
use dial::Dial;
use lanes::Lanes;

/// Threads of the event loop: one parses while the other copies.
const THREADS: usize = 2;

/// Where the servers are.
#[derive(Clone, PartialEq, Eq)]
pub enum Servers {
    /// One server. `redis://[user][:password@]host[:port][/db]`, with TLS `rediss://`; `valkey` and `valkeys` too.
    One(String),
    /// A cluster: some of its nodes, from which the others are learned.
    Cluster(Vec<String>),
}

/// What a [`RedisStore`] needs to know. Addresses may hold passwords, so it is never printed.
#[derive(Clone)]
pub struct RedisConfig {
    /// Where.
    pub servers: Servers,
    /// After which time without being written again the server forgets a block.
    pub ttl: Duration,
    /// PEM of the authority that signed the servers' certificates; `None` for those that the system trusts.
    pub root_certificate: Option<Vec<u8>>,
    /// What may be in flight.
    pub limits: Limits,
}

/// Blocks in Redis.
pub struct RedisStore(Client<RedisBackend>);

impl RedisStore {
    /// Starts the event loop. Connections are made when they are needed, so a server that is down is no error here.
    ///
    /// # Errors
    /// An address or certificate that makes no sense, or no threads.
    ///
    /// ```
    /// use kv_tiers::remote::{Limits, RedisConfig, RedisStore, RemoteStore, Servers};
    /// let store = RedisStore::open(RedisConfig {
    ///     servers: Servers::One("redis://127.0.0.1:6379".to_owned()),
    ///     ttl: std::time::Duration::from_secs(86_400),
    ///     root_certificate: None,
    ///     limits: Limits::default(),
    /// })?;
    /// assert_eq!(store.counters().misses(), 0);
    /// # Ok::<(), kv_tiers::remote::OpenError>(())
    /// ```
    pub fn open(config: RedisConfig) -> Result<Self, OpenError> {
        // Somebody else in the process may have chosen another provider: then that one is used.
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("TLS is somebody else's choice in this process");
        }
        let buffers = Arc::new(Buffers::default());
        let dial = Dial::new(&config, Arc::clone(&buffers))
            .map_err(|error| OpenError::Address(error.to_string()))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            // Name resolution, the only blocking work.
            .max_blocking_threads(2)
            .thread_name("kvtier-redis")
            .enable_io()
            .enable_time()
            .build()
            .map_err(OpenError::Threads)?;
        let lanes = Arc::new(Lanes::new(dial));
        let backend = RedisBackend { runtime: Some(runtime), lanes, ttl: config.ttl };
        Ok(Self(Client::new(backend, config.limits, buffers)))
    }
}

impl RemoteStore for RedisStore {
    fn exists(&self, keys: &[RemoteKey], deadline: Instant) -> Pending<bool> {
        self.0.exists(keys, deadline)
    }
    fn get(&self, wants: &[Want], deadline: Instant) -> PendingGet {
        self.0.get(wants, deadline)
    }
    fn put(&self, puts: &[Put<'_>], deadline: Instant) -> Pending<()> {
        self.0.put(puts, deadline)
    }
    fn delete(&self, keys: &[RemoteKey], deadline: Instant) -> Pending<()> {
        self.0.delete(keys, deadline)
    }
    fn sweep(&self, namespace: NamespaceId, up_to: Epoch, deadline: Instant) -> PendingSweep {
        self.0.sweep(namespace, up_to, deadline)
    }
    fn counters(&self) -> RemoteCounters {
        self.0.counters()
    }
    fn in_flight(&self) -> InFlight {
        self.0.in_flight()
    }
}

struct RedisBackend {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    lanes: Arc<Lanes>,
    ttl: Duration,
}

impl Backend for RedisBackend {
    fn submit(&self, call: Call) {
        let (Some(flight), Some(runtime)) = (call.flight().cloned(), &self.runtime) else { return };
        let (lanes, ttl, deadline) = (Arc::clone(&self.lanes), self.ttl, flight.deadline());
        let task = runtime.spawn(async move {
            // What is not answered by then says so itself when it is dropped.
            let run = ops::run(&lanes, call, ttl);
            if tokio::time::timeout_at(deadline.into(), run).await.is_err() {
                tracing::debug!("a call to Redis was late");
            }
        });
        let task = task.abort_handle();
        flight.when_left(move || task.abort());
    }
}

impl Drop for RedisBackend {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
