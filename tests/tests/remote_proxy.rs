//! Redis behind a network that does everything that networks do.
//!
//! `KVTIER_PROXY_SEED=n` chooses other faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use kv_tiers::remote::{Limits, RedisConfig, RedisStore, RemoteError, RemoteStore, Servers};
use kvtier_tests::proxy::{Fault, Proxy};
use kvtier_tests::redis_server::RedisServer;
use kvtier_tests::remote::{get, key, put, soon};
use kvtier_tests::remote_faults::{
    Storm, TIGHT, every_fault_is_a_miss, recovers, weather, what_hangs_is_bounded,
};

fn seed() -> u64 {
    std::env::var("KVTIER_PROXY_SEED").map_or(1, |seed| seed.parse().expect("a number"))
}

fn open(port: u16, limits: Limits) -> RedisStore {
    let servers = Servers::One(format!("redis://127.0.0.1:{port}"));
    let ttl = Duration::from_secs(1000);
    RedisStore::open(RedisConfig { servers, ttl, root_certificate: None, limits }).unwrap()
}

#[test]
fn no_fault_brings_wrong_bytes() {
    let (server, seed) = (RedisServer::start(&[]), seed());
    let proxy = Proxy::start(server.port(), seed);
    let store = open(proxy.port(), Limits::default());
    let storm = Storm { operations: 24_000, blocks: 400, broken_after: 300_000, patience: 60 };
    weather(&store, &proxy, seed, storm);
}

#[test]
fn a_fault_is_a_miss_and_the_store_recovers() {
    let server = RedisServer::start(&[]);
    let proxy = Proxy::start(server.port(), seed());
    every_fault_is_a_miss(&open(proxy.port(), Limits::default()), &proxy);
}

/// A store that has no connection yet makes several at once, and none of them is a failure for the others.
#[test]
fn the_first_calls_may_come_together() {
    let server = RedisServer::start(&[]);
    let proxy = Proxy::start(server.port(), seed());
    proxy.set(Fault::Delay(Duration::from_millis(20), Duration::ZERO));
    let store = open(proxy.port(), Limits::default());
    let calls: Vec<_> = (0..20).map(|n| store.exists(&[key(1, 0, n)], soon())).collect();
    for call in calls {
        assert_eq!(call.wait(), [Ok(false)]);
    }
    assert_eq!(proxy.connections(), 8);
}

#[test]
fn no_more_hangs_than_may() {
    let server = RedisServer::start(&[]);
    let proxy = Proxy::start(server.port(), seed());
    what_hangs_is_bounded(&open(proxy.port(), TIGHT), &proxy);
}

/// The server is killed in the middle of batches and comes back empty.
#[test]
fn a_restart_in_mid_batch_is_a_miss() {
    let mut server = RedisServer::start(&[]);
    let store = open(server.port(), Limits::default());
    let keys: Vec<_> = (0..50).map(|i| key(1, 0, i)).collect();
    for round in 0..3 {
        recovers(&store);
        assert_eq!(put(&store, &keys, 100_000, soon()), vec![Ok(()); 50]);
        assert_eq!(get(&store, &keys, 100_000, soon()), vec![Ok(()); 50]);
        let before = store.counters();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut missed = 0;
                while missed == 0 {
                    missed = get(&store, &keys, 100_000, soon()).iter().filter(|r| r.is_err()).count();
                }
            });
            std::thread::sleep(Duration::from_millis(5 * round));
            server.kill();
            reader.join().unwrap();
        });
        assert!(store.counters().unreachable > before.unreachable);
        let down = get(&store, &keys[..1], 100_000, Instant::now() + Duration::from_secs(60));
        assert_eq!(down, [Err(RemoteError::Unreachable)]);
        server.start_again();
    }
    recovers(&store);
    assert_eq!(get(&store, &keys[..1], 100_000, soon()), [Err(RemoteError::Absent)]);
}
