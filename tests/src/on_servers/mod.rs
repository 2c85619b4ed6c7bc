//! Load or recompute on real servers: kvtier's engine and "always load" against a server behind a network that gets
//! worse, with real bytes; recomputing is sleeping for as long as a GPU would take.
//!
//! ```text
//! scenario   what the network does, and what happens to the server's values, after a healthy third
//! prompts    what is asked for, how long recomputing takes, and what the bytes must be
//! rules      kvtier's engine, and who always loads
//! report     the table
//! ```
//!
//! `cargo run --release -p kvtier-tests --bin rule-on-servers` runs it.

mod prompts;
mod report;
mod rules;
mod scenario;

pub use prompts::{BLOCK_BYTES, BLOCK_TOKENS, Prompt, Prompts};
pub use report::{Figure, Report};
pub use rules::{Served, always, kvtier};
pub use scenario::{Damage, SCENARIOS, Scenario};

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kv_core::cost::CREDIT;
use kv_tiers::remote::{RedisConfig, RedisStore, RemoteStore, S3Store, Servers};

use crate::proxy::Proxy;
use crate::redis_server::RedisServer;
use crate::s3_server::{self, S3Server};

/// A server behind a proxy.
pub struct Backend {
    name: &'static str,
    server: Server,
    proxy: Proxy,
}

enum Server {
    Redis(RedisServer),
    S3(S3Server),
}

impl Backend {
    /// A Redis.
    #[must_use]
    pub fn redis() -> Self {
        let server = RedisServer::start(&["--io-threads", "1"]);
        let proxy = Proxy::start(server.port(), 7);
        Self { name: "redis", server: Server::Redis(server), proxy }
    }

    /// An S3 server: `program` is this crate's `s3-server`.
    #[must_use]
    pub fn s3(program: &str) -> Self {
        let server = S3Server::start(program);
        let proxy = Proxy::start(server.port(), 7);
        Self { name: "s3", server: Server::S3(server), proxy }
    }

    fn connect(&self, port: u16) -> Arc<dyn RemoteStore> {
        let limits = kv_tiers::remote::Limits::default();
        match &self.server {
            Server::Redis(_) => {
                let servers = Servers::One(format!("redis://127.0.0.1:{port}"));
                let ttl = Duration::from_secs(86_400);
                Arc::new(
                    RedisStore::open(RedisConfig { servers, ttl, root_certificate: None, limits }).unwrap(),
                )
            }
            Server::S3(_) => Arc::new(S3Store::open(s3_server::config(port)).unwrap()),
        }
    }

    /// The way of the runtime under test.
    fn by_proxy(&self) -> Arc<dyn RemoteStore> {
        self.connect(self.proxy.port())
    }

    /// Without the proxy.
    fn direct(&self) -> Arc<dyn RemoteStore> {
        match &self.server {
            Server::Redis(server) => self.connect(server.port()),
            Server::S3(server) => self.connect(server.port()),
        }
    }

    /// Spoils every value, so that the server says to have everything and has nothing.
    fn spoil(&self) {
        match &self.server {
            Server::Redis(server) => {
                let script = b"for _,k in ipairs(redis.call('KEYS','*')) do redis.call('DEL',k) redis.call('SET',k,'junk') end return 1";
                server.command(&[b"EVAL", script, b"0"]);
            }
            Server::S3(server) => spoil_files(&server.files()),
        }
    }
}

/// Plays one scenario with both rules.
///
/// # Panics
/// When a wrong byte is accepted, or the ledger is overdrawn.
#[must_use]
pub fn play(backend: &Backend, scenario: &Scenario, prompts: &Prompts) -> Figure {
    prompts.store(&*backend.direct());
    let ours =
        run(backend, scenario, prompts, |before, after| kvtier(backend.by_proxy(), prompts, before, after));
    prompts.store(&*backend.direct());
    let theirs =
        run(backend, scenario, prompts, |before, after| always(&*backend.by_proxy(), prompts, before, after));
    let wanted = prompts.recompute(ours.waits.len());
    let promise = wanted.mul_f64(1.02) + Duration::from_nanos(CREDIT.0);
    Figure::new(backend.name, scenario, prompts, &ours, &theirs, wanted, promise)
}

fn run(
    backend: &Backend,
    scenario: &Scenario,
    prompts: &Prompts,
    rule: impl FnOnce(usize, &mut dyn FnMut()) -> Served,
) -> Served {
    backend.proxy.set(scenario.healthy);
    let third = prompts.len() / 3;
    let served = rule(third, &mut || {
        backend.proxy.set(scenario.then);
        if scenario.damage == Damage::Spoilt {
            backend.spoil();
        }
    });
    // What still flies must not meet the next one.
    backend.proxy.set(crate::proxy::Fault::None);
    backend.proxy.cut();
    served
}

fn spoil_files(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => spoil_files(&entry.path()),
            false => std::fs::write(entry.path(), "junk").unwrap(),
        }
    }
}
