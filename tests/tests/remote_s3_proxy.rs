//! S3 behind a network that does everything that networks do.
//!
//! `KVTIER_PROXY_SEED=n` chooses other faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use kv_tiers::remote::{Limits, RemoteError, RemoteStore, S3Config, S3Store};
use kvtier_tests::proxy::{Fault, Proxy};
use kvtier_tests::remote::{get, key, put, soon};
use kvtier_tests::remote_faults::{LEN, Storm, TIGHT, every_fault_is_a_miss, weather, what_hangs_is_bounded};
use kvtier_tests::s3_server::{S3Server, config};

const SERVER: &str = env!("CARGO_BIN_EXE_s3-server");

fn seed() -> u64 {
    std::env::var("KVTIER_PROXY_SEED").map_or(1, |seed| seed.parse().expect("a number"))
}

fn open(port: u16, limits: Limits) -> S3Store {
    S3Store::open(S3Config { limits, ..config(port) }).unwrap()
}

#[test]
fn no_fault_brings_wrong_bytes() {
    let (server, seed) = (S3Server::start(SERVER), seed());
    let proxy = Proxy::start(server.port(), seed);
    let store = open(proxy.port(), Limits::default());
    let storm = Storm { operations: 12_000, blocks: 200, broken_after: 20_000, patience: 300 };
    weather(&store, &proxy, seed, storm);
}

#[test]
fn a_fault_is_a_miss_and_the_store_recovers() {
    let server = S3Server::start(SERVER);
    let proxy = Proxy::start(server.port(), seed());
    every_fault_is_a_miss(&open(proxy.port(), Limits::default()), &proxy);
}

/// A fault that passes is not even noticed: it is asked again.
#[test]
fn a_connection_that_breaks_once_is_no_miss() {
    let server = S3Server::start(SERVER);
    let proxy = Proxy::start(server.port(), seed());
    let store = open(proxy.port(), Limits::default());
    let blocks: Vec<_> = (0..20).map(|i| key(1, 0, i)).collect();
    assert_eq!(put(&store, &blocks, LEN, soon()), vec![Ok(()); 20]);
    for _ in 0..20 {
        // Idle connections die unseen.
        proxy.cut();
        assert_eq!(get(&store, &blocks, LEN, soon()), vec![Ok(()); 20]);
    }
}

/// However many calls there are, there are no more connections than lanes.
#[test]
fn connections_are_bounded() {
    let server = S3Server::start(SERVER);
    let proxy = Proxy::start(server.port(), seed());
    proxy.set(Fault::Delay(Duration::from_millis(20), Duration::ZERO));
    let store = open(proxy.port(), Limits::default());
    let calls: Vec<_> =
        (0..60).map(|n| store.exists(&[key(1, 0, 2 * n), key(1, 0, 2 * n + 1)], soon())).collect();
    for call in calls {
        assert_eq!(call.wait(), [Ok(false), Ok(false)]);
    }
    assert_eq!(proxy.connections(), 32);
}

#[test]
fn no_more_hangs_than_may() {
    let server = S3Server::start(SERVER);
    let proxy = Proxy::start(server.port(), seed());
    what_hangs_is_bounded(&open(proxy.port(), TIGHT), &proxy);
}

/// The server is killed in the middle of batches and comes back.
#[test]
fn a_restart_in_mid_batch_is_a_miss() {
    let mut server = S3Server::start(SERVER);
    let store = open(server.port(), Limits::default());
    let keys: Vec<_> = (0..50).map(|i| key(1, 0, i)).collect();
    for round in 0..3 {
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
        assert_eq!(get(&store, &keys[..1], 100_000, soon()), [Err(RemoteError::Unreachable)]);
        server.start_again();
    }
    assert_eq!(get(&store, &keys, 100_000, soon()), vec![Ok(()); 50]);
}
