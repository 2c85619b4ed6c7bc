//! The Mooncake store against a real master and a real node that lends memory, over TCP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::TcpListener;
use std::time::Duration;

use kv_core::Mismatch;
use kv_tiers::remote::{
    InFlight, MooncakeConfig, MooncakeStore, OpenError, RemoteError, RemoteKey, RemoteStore, Swept,
};
use kvtier_tests::mooncake::Master;
use kvtier_tests::remote::{get, key, put, soon, within};

const LEN: usize = 100_000;

fn keys(namespace: u8, epoch: u64, n: u64) -> Vec<RemoteKey> {
    (0..n).map(|i| key(namespace, epoch, i)).collect()
}

#[test]
fn a_real_store_does_everything() {
    let master = Master::start();
    let _node = master.node(256 << 20);
    let store = MooncakeStore::open(master.config(9_000_000), soon()).unwrap();
    let blocks = keys(1, 0, 300);
    assert_eq!(store.exists(&blocks, soon()).wait(), vec![Ok(false); 300]);
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Err(RemoteError::Absent); 300]);
    assert_eq!(put(&store, &blocks, LEN, soon()), vec![Ok(()); 300]);
    assert_eq!(store.exists(&blocks, soon()).wait(), vec![Ok(true); 300]);
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Ok(()); 300]);
    assert_eq!(get(&store, &[blocks[0], blocks[1], blocks[0]], LEN, soon()), vec![Ok(()); 3]);
    assert_eq!(get(&store, &blocks[..1], LEN - 1, soon()), [Err(Mismatch::Length.into())]);
    assert_eq!(get(&store, &blocks[..1], LEN + 1, soon()), [Err(Mismatch::Length.into())]);
    for len in [1, 1 << 20, 9_000_000] {
        let others = keys(3, len as u64, 3);
        assert_eq!(put(&store, &others, len, soon()), vec![Ok(()); 3]);
        assert_eq!(get(&store, &others, len, soon()), vec![Ok(()); 3]);
        assert_eq!(store.delete(&others, soon()).wait(), vec![Ok(()); 3]);
        assert_eq!(get(&store, &others, len, soon()), vec![Err(RemoteError::Absent); 3]);
    }
    // Another value under a name that is there changes nothing, until it is deleted.
    assert_eq!(put(&store, &blocks[..1], 5000, soon()), [Ok(())]);
    assert_eq!(get(&store, &blocks[..1], LEN, soon()), [Ok(())]);
    assert_eq!(store.delete(&blocks[..10], soon()).wait(), vec![Ok(()); 10]);
    assert_eq!(store.delete(&blocks[..10], soon()).wait(), vec![Ok(()); 10]);
    assert_eq!(put(&store, &blocks[..1], 5000, soon()), [Ok(())]);
    assert_eq!(get(&store, &blocks[..1], 5000, soon()), [Ok(())]);

    let (older, newer, others) = (keys(1, 0x1F, 20), keys(1, 0x20, 20), keys(2, 0, 20));
    for blocks in [&older, &newer, &others] {
        assert_eq!(put(&store, blocks, 1000, soon()), vec![Ok(()); 20]);
    }
    let swept = store.sweep(blocks[0].namespace, older[0].epoch, soon()).wait();
    assert_eq!(swept, Ok(Swept { removed: 291 + 20, writers: 0 }));
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Err(RemoteError::Absent); 300]);
    assert_eq!(get(&store, &older, 1000, soon()), vec![Err(RemoteError::Absent); 20]);
    assert_eq!(get(&store, &newer, 1000, soon()), vec![Ok(()); 20]);
    assert_eq!(get(&store, &others, 1000, soon()), vec![Ok(()); 20]);
    assert_eq!(store.in_flight(), InFlight::default());
    assert_eq!(store.close(soon()), Ok(()));
}

/// Two clients of one store: what one has stored the other finds.
#[test]
fn blocks_are_shared() {
    let master = Master::start();
    let _node = master.node(64 << 20);
    let open = || MooncakeStore::open(master.config(LEN), soon()).unwrap();
    let (writer, reader) = (open(), open());
    let blocks = keys(1, 0, 100);
    assert_eq!(put(&writer, &blocks, LEN, soon()), vec![Ok(()); 100]);
    assert_eq!(writer.close(soon()), Ok(()));
    assert_eq!(get(&reader, &blocks, LEN, soon()), vec![Ok(()); 100]);
    assert_eq!(reader.close(soon()), Ok(()));
}

#[test]
fn a_store_without_memory_has_no_space() {
    let master = Master::start();
    let store = MooncakeStore::open(master.config(LEN), soon()).unwrap();
    let blocks = keys(1, 0, 3);
    assert_eq!(put(&store, &blocks, LEN, soon()), vec![Err(RemoteError::NoSpace); 3]);
    assert_eq!(store.counters().no_space, 3);
    assert_eq!(store.close(soon()), Ok(()));
}

/// The node that has the bytes is killed, then the master. Callers leave in time, with counted misses.
#[test]
fn what_dies_is_a_miss() {
    let mut master = Master::start();
    let node = master.node(64 << 20);
    let store = MooncakeStore::open(master.config(LEN), soon()).unwrap();
    let blocks = keys(1, 0, 50);
    assert_eq!(put(&store, &blocks, LEN, soon()), vec![Ok(()); 50]);
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Ok(()); 50]);
    let missed = |what| {
        let before = store.counters();
        let results = get(&store, &blocks, LEN, within(1000));
        let after = store.counters();
        println!("{what}: {:?}, misses {}", results[0], after.misses() - before.misses());
        assert!(results.iter().all(Result::is_err), "{what}: {results:?}");
        assert_eq!((after.hits, after.misses()), (before.hits, before.misses() + 50), "{what}");
    };
    drop(node);
    missed("no node");
    master.kill();
    missed("no master");
    // One that comes back knows nothing.
    master.start_again();
    let _node = master.node(64 << 20);
    while put(&store, &blocks, LEN, within(5000)) != vec![Ok(()); 50] {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Ok(()); 50]);
    assert_eq!(store.close(soon()), Ok(()));
}

#[test]
fn no_master_is_an_error_that_says_so() {
    let mut master = Master::start();
    master.kill();
    // With a port of our own it tries once.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = MooncakeConfig { hostname: format!("127.0.0.1:{port}"), ..master.config(LEN) };
    let error = MooncakeStore::open(config, soon()).err().unwrap();
    assert!(matches!(error, OpenError::Setup { call: "mooncake_store_setup", code: -600 }), "{error}");
    assert!(error.to_string().contains("is the master up"), "{error}");
}
