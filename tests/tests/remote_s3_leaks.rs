//! S3 behind a faulty network, in a process where nothing else opens sockets and starts threads.
//!
//! `KVTIER_PROXY_SEED=n` chooses other faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kv_tiers::remote::{Limits, S3Config, S3Store};
use kvtier_benches::SplitMix64;
use kvtier_tests::proxy::{Fault, Proxy};
use kvtier_tests::remote::{get, key, put, within};
use kvtier_tests::remote_faults::{ends, recovers};
use kvtier_tests::s3_server::{S3Server, config};

const SERVER: &str = env!("CARGO_BIN_EXE_s3-server");

fn seed() -> u64 {
    std::env::var("KVTIER_PROXY_SEED").map_or(1, |seed| seed.parse().expect("a number"))
}

fn open(port: u16, limits: Limits) -> S3Store {
    S3Store::open(S3Config { limits, ..config(port) }).unwrap()
}

/// Entries of a directory of `/proc/self`.
fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count()
}

/// Threads and sockets after five hundred faults are those after fifty.
#[test]
fn nothing_leaks_over_many_faults() {
    let server = S3Server::start(SERVER);
    let proxy = Proxy::start(server.port(), seed());
    let store = open(proxy.port(), Limits::default());
    let mut rng = SplitMix64::new(seed());
    let blocks: Vec<_> = (0..4).map(|i| key(1, 0, i)).collect();
    let mut after_few = None;
    while proxy.faults() < 500 {
        let most = rng.below(2000);
        proxy.set(match rng.below(5) {
            0 => Fault::Reset(most),
            1 => Fault::HalfOpen(most),
            2 => Fault::BlackHole(most),
            3 => Fault::Truncate(most),
            _ => Fault::Flip(most),
        });
        put(&store, &blocks, 500, within(10));
        get(&store, &blocks, 500, within(10));
        proxy.set(Fault::None);
        proxy.cut();
        ends(&store);
        recovers(&store);
        if proxy.faults() >= 50 && after_few.is_none() {
            after_few = Some((count("task"), count("fd")));
        }
    }
    recovers(&store);
    let (threads, files) = after_few.unwrap();
    let (threads_now, files_now) = (count("task"), count("fd"));
    println!(
        "threads {threads} -> {threads_now}, open files {files} -> {files_now}, {} connections",
        proxy.connections()
    );
    // A few lanes, each with its two ends and two copies in the proxy, may be open or closed. A leak of one in five
    // faults would be beyond this.
    assert!(threads_now <= threads + 60, "{threads} -> {threads_now}");
    assert!(files_now <= files + 60, "{files} -> {files_now}");
}
