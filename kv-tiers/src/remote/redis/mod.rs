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
use std::time::Duration;

use super::backend::{Backend, Call};
use super::buffers::Buffers;
use super::client::{Client, remote_store};
use super::event_loop::EventLoop;
use super::{Limits, OpenError};
use dial::Dial;
use lanes::Lanes;

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
        let event_loop = EventLoop::start("kvtier-redis")?;
        let buffers = Arc::new(Buffers::default());
        let dial = Dial::new(&config, Arc::clone(&buffers))
            .map_err(|error| OpenError::Address(error.to_string()))?;
        let lanes = Arc::new(Lanes::new(dial));
        Ok(Self(Client::new(RedisBackend { event_loop, lanes, ttl: config.ttl }, config.limits, buffers)))
    }
}

remote_store!(RedisStore);

struct RedisBackend {
    event_loop: EventLoop,
    lanes: Arc<Lanes>,
    ttl: Duration,
}

impl Backend for RedisBackend {
    fn submit(&self, call: Call) {
        let Some(flight) = call.flight().cloned() else { return };
        let (lanes, ttl) = (Arc::clone(&self.lanes), self.ttl);
        self.event_loop.run(&flight, async move { ops::run(&lanes, call, ttl).await });
    }
}
