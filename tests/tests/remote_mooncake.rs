//! The Mooncake store against a library that does everything wrong.
//!
//! `KVTIER_MOONCAKE_SEED=n` chooses other faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use kv_core::Mismatch;
use kv_core::units::Epoch;
use kv_tiers::remote::{
    InFlight, Limits, MooncakeConfig, MooncakeStore, OpenError, RemoteError, RemoteKey, RemoteStore, Swept,
};
use kvtier_benches::SplitMix64;
use kvtier_tests::mooncake::{Fault, Stub};
use kvtier_tests::remote::{get, key, put, soon, within};

const LEN: usize = 3000;

fn open(stub: &Stub) -> MooncakeStore {
    MooncakeStore::open(stub.config(100_000), soon()).unwrap()
}

fn keys(namespace: u8, epoch: u64, n: u64) -> Vec<RemoteKey> {
    (0..n).map(|i| key(namespace, epoch, i)).collect()
}

fn name(key: &RemoteKey) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let RemoteKey { namespace, epoch, fingerprint, key } = key;
    let owner = format!("{}:{:016x}:{}", hex(&namespace.0), epoch.0, hex(&fingerprint.0));
    format!("kvtier:1:{owner}:{}", hex(&key.to_bytes()))
}

/// Everything that was in flight ends, in the end.
fn ends(store: &dyn RemoteStore) {
    while store.in_flight() != InFlight::default() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_is_stored_is_loaded() {
    let stub = Stub::new("round trip");
    let store = open(&stub);
    let blocks = keys(1, 0, 300);
    assert_eq!(store.exists(&blocks, soon()).wait(), vec![Ok(false); 300]);
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Err(RemoteError::Absent); 300]);
    assert_eq!(put(&store, &blocks, LEN, soon()), vec![Ok(()); 300]);
    assert_eq!(store.exists(&blocks, soon()).wait(), vec![Ok(true); 300]);
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Ok(()); 300]);
    assert_eq!(get(&store, &blocks[..1], LEN - 1, soon()), [Err(Mismatch::Length.into())]);
    assert_eq!(get(&store, &blocks[..1], LEN + 1, soon()), [Err(Mismatch::Length.into())]);
    // Blocks that fill a lane, and one that no lane has room for.
    let large = keys(2, 0, 20);
    assert_eq!(put(&store, &large, 100_000, soon()), vec![Ok(()); 20]);
    assert_eq!(get(&store, &large, 100_000, soon()), vec![Ok(()); 20]);
    assert_eq!(get(&store, &large[..1], 110_000, soon()), [Err(RemoteError::TooLarge)]);
    assert_eq!(put(&store, &large[..1], 110_000, soon()), [Err(RemoteError::TooLarge)]);
    // The library would fill only the last of these.
    assert_eq!(get(&store, &[blocks[0], blocks[1], blocks[0]], LEN, soon()), vec![Ok(()); 3]);
    assert_eq!(store.delete(&blocks[..40], soon()).wait(), vec![Ok(()); 40]);
    assert_eq!(store.delete(&blocks[..40], soon()).wait(), vec![Ok(()); 40]);
    let there = store.exists(&blocks, soon()).wait();
    assert_eq!(there.iter().filter(|there| **there == Ok(true)).count(), 260);
    let counters = store.counters();
    assert_eq!((counters.hits, counters.puts, counters.deletes), (300 + 20 + 3, 320, 80));
    assert_eq!((counters.absent, counters.wrong_length, counters.busy), (300 + 300 + 40, 2, 2));
    ends(&store);
    assert!(stub.registered() >= 8 * 100_000);
    assert_eq!(store.close(soon()), Ok(()));
    assert_eq!((stub.clients(), stub.registered(), Stub::misuse()), (0, 0, 0));
}

/// Epochs around every digit's boundary, matched by the regular expressions that Mooncake's master uses.
#[test]
fn a_sweep_takes_the_namespace_up_to_its_epoch_and_nothing_else() {
    let stub = Stub::new("sweep");
    let store = open(&stub);
    let mut rng = SplitMix64::new(7);
    let mut epochs = vec![0, 1, 9, 10, 15, 16, 17, 0x99, 0xA0, 0xFF, u64::MAX - 1, u64::MAX];
    for _ in 0..30 {
        let epoch = rng.next_u64() >> rng.below(64);
        epochs.extend([epoch.saturating_sub(1), epoch, epoch.saturating_add(1)]);
    }
    epochs.sort_unstable();
    epochs.dedup();
    let all: Vec<_> = epochs.iter().map(|&epoch| key(1, epoch, 0)).collect();
    let others: Vec<_> = epochs.iter().map(|&epoch| key(2, epoch, 0)).collect();
    put(&store, &others, 100, soon());
    for (i, &epoch) in epochs.iter().enumerate() {
        assert_eq!(put(&store, &all, 100, soon()), vec![Ok(()); all.len()]);
        let swept = store.sweep(all[0].namespace, Epoch(epoch), soon()).wait();
        assert_eq!(swept, Ok(Swept { removed: i as u64 + 1, writers: 0 }), "{epoch:x}");
        let left = store.exists(&all, soon()).wait();
        assert!(left.iter().zip(&epochs).all(|(left, &other)| *left == Ok(other > epoch)), "{epoch:x}");
    }
    assert_eq!(store.exists(&others, soon()).wait(), vec![Ok(true); others.len()]);
}

/// Each fault strikes every block of a call, and each is one counted miss.
#[test]
fn every_fault_is_a_counted_miss() {
    let stub = Stub::new("faults");
    let store = open(&stub);
    let blocks = keys(1, 0, 50);
    assert_eq!(put(&store, &blocks, LEN, soon()), vec![Ok(()); 50]);
    let miss = |fault, check: &dyn Fn(RemoteError) -> bool| {
        // Lanes are full of good records of the very same blocks.
        assert_eq!(get(&store, &blocks, LEN, soon()), vec![Ok(()); 50]);
        let (before, struck) = (store.counters(), stub.struck());
        stub.set(fault);
        for result in get(&store, &blocks, LEN, soon()) {
            assert!(check(result.unwrap_err()), "{fault:?}: {result:?}");
        }
        stub.set(Fault::None);
        assert!(stub.struck() > struck, "{fault:?} has not struck");
        let after = store.counters();
        assert_eq!((after.hits, after.misses()), (before.hits, before.misses() + 50), "{fault:?}");
    };
    let refused = |error| matches!(error, RemoteError::NoRecord | RemoteError::Refused(_));
    miss(Fault::Corrupt, &refused);
    miss(Fault::Truncate, &refused);
    miss(Fault::Swap, &|error| error == Mismatch::Identity.into());
    miss(Fault::Nothing, &|error| error == RemoteError::NoRecord);
    miss(Fault::TooMany, &|error| error == RemoteError::Server);
    for (code, expected) in [
        (-704, RemoteError::Absent),
        (-703, RemoteError::Absent),
        (-707, RemoteError::Absent),
        (-200, RemoteError::NoSpace),
        (-800, RemoteError::Unreachable),
        (-900, RemoteError::Unreachable),
        (-601, RemoteError::Denied),
        (-600, RemoteError::Server),
        (-1, RemoteError::Server),
        (i64::MIN, RemoteError::Server),
    ] {
        miss(Fault::Code(code), &|error| error == expected);
    }
    miss(Fault::CallCode(-1), &|error| error == RemoteError::Server);
    miss(Fault::CallCode(7), &|error| error == RemoteError::Server);
    // A lane holds the second half of a good record: then it is right, if it is the same block's, and else refused.
    stub.set(Fault::Half);
    get(&store, &blocks, LEN, soon());
    stub.set(Fault::None);

    // What is there by word only.
    let absent = keys(3, 0, 50);
    stub.set(Fault::LieExist);
    assert_eq!(store.exists(&absent, soon()).wait(), vec![Ok(true); 50]);
    assert_eq!(get(&store, &absent, LEN, soon()), vec![Err(RemoteError::Absent); 50]);
    stub.set(Fault::LosePut);
    assert_eq!(put(&store, &absent, LEN, soon()), vec![Ok(()); 50]);
    assert_eq!(get(&store, &absent, LEN, soon()), vec![Err(RemoteError::Absent); 50]);
    // A full store, and one that knows nobody.
    for (code, expected) in
        [(-200, RemoteError::NoSpace), (-101, RemoteError::NoSpace), (-704, RemoteError::Server)]
    {
        stub.set(Fault::Code(code));
        assert_eq!(put(&store, &absent, LEN, soon()), vec![Err(expected); 50]);
    }
    stub.set(Fault::Code(-703));
    assert_eq!(store.delete(&blocks[..3], soon()).wait(), [Err(RemoteError::Server); 3]);
    stub.set(Fault::Code(-900));
    assert_eq!(store.sweep(blocks[0].namespace, Epoch(0), soon()).wait(), Err(RemoteError::Unreachable));
    assert_eq!(store.exists(&blocks[..2], soon()).wait(), [Err(RemoteError::Unreachable); 2]);
    stub.set(Fault::None);
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Ok(()); 50]);
    assert_eq!(Stub::misuse(), 0);
}

/// A lease that ran out before all bytes had come is worth one more try.
#[test]
fn an_expired_lease_is_tried_once_more() {
    let stub = Stub::new("lease");
    let store = open(&stub);
    let blocks = keys(1, 0, 50);
    assert_eq!(put(&store, &blocks, LEN, soon()), vec![Ok(()); 50]);
    stub.set(Fault::LeaseOnce);
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Ok(()); 50]);
    assert_eq!(stub.struck(), 50);
}

/// The first writer of a name wins in Mooncake, so what somebody has damaged stays until it is deleted.
#[test]
fn a_damaged_value_stays_until_it_is_deleted() {
    let stub = Stub::new("damaged");
    let store = open(&stub);
    let blocks = keys(1, 0, 2);
    assert_eq!(put(&store, &blocks, LEN, soon()), [Ok(()), Ok(())]);
    let good = stub.read(&name(&blocks[0])).unwrap();
    assert_eq!(good.len(), LEN + 128);
    let expect = |value: &[u8], error: RemoteError| {
        stub.write(&name(&blocks[0]), value);
        assert_eq!(get(&store, &blocks, LEN, soon()), [Err(error), Ok(())]);
    };
    let mut flipped = good.clone();
    for bit in (0..good.len() * 8).step_by(61) {
        flipped[bit / 8] ^= 1 << (bit % 8);
        expect(&flipped, if bit / 8 < 128 { RemoteError::NoRecord } else { Mismatch::Checksum.into() });
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
    expect(b"", RemoteError::NoRecord);
    expect(&good[..100], RemoteError::NoRecord);
    expect(&good[..1000], Mismatch::Length.into());
    expect(&[&good[..], b"x"].concat(), Mismatch::Length.into());
    expect(&stub.read(&name(&blocks[1])).unwrap(), Mismatch::Identity.into());
    assert_eq!(put(&store, &blocks, LEN, soon()), [Ok(()), Ok(())]);
    assert_eq!(get(&store, &blocks, LEN, soon()), [Err(Mismatch::Identity.into()), Ok(())]);
    assert_eq!(store.delete(&blocks[..1], soon()).wait(), [Ok(())]);
    assert_eq!(put(&store, &blocks, LEN, soon()), [Ok(()), Ok(())]);
    assert_eq!(get(&store, &blocks, LEN, soon()), [Ok(()), Ok(())]);
}

/// Every fault in random order, with reads, writes and deletes of the same blocks; many operations; no wrong byte.
#[test]
fn no_fault_brings_wrong_bytes() {
    let seed = std::env::var("KVTIER_MOONCAKE_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let stub = Stub::new("many");
    let store = open(&stub);
    let mut rng = SplitMix64::new(seed);
    let faults = [
        Fault::None,
        Fault::Slow(Duration::from_millis(1)),
        Fault::Slow(Duration::from_millis(40)),
        Fault::Hang,
        Fault::Code(-704),
        Fault::Code(-707),
        Fault::Code(-800),
        Fault::CallCode(-1),
        Fault::Corrupt,
        Fault::Truncate,
        Fault::Swap,
        Fault::LieExist,
        Fault::Nothing,
        Fault::Half,
        Fault::TooMany,
        Fault::LeaseOnce,
        Fault::LosePut,
    ];
    let (mut operations, mut answered) = (0, 0);
    let mut struck = vec![0_u64; faults.len()];
    while operations < 24_000 || struck.contains(&0) {
        let n = rng.below(faults.len() as u64) as usize;
        let before = stub.struck();
        stub.set(faults[n]);
        for _ in 0..10 {
            let first = rng.below(400);
            let blocks: Vec<_> = (first..first + 40).map(|i| key(1, 0, i)).collect();
            let results = match rng.below(8) {
                0..3 => put(&store, &blocks, LEN, within(30)),
                3 => store.delete(&blocks[..5], within(30)).wait(),
                4 => store.exists(&blocks, within(30)).wait().into_iter().map(|r| r.map(drop)).collect(),
                _ => get(&store, &blocks, LEN, within(30)),
            };
            operations += results.len();
            answered += results.iter().filter(|result| result.is_ok()).count();
        }
        struck[n] += if n == 0 { 1 } else { stub.struck() - before };
        stub.set(Fault::None);
        ends(&store);
    }
    let counters = store.counters();
    println!(
        "seed {seed}: {operations} operations, {answered} good, {} answers struck; {counters:?}",
        stub.struck()
    );
    assert!(answered > operations / 10, "{answered} of {operations}: nothing is shown");
    for (what, count) in [
        ("no_record", counters.no_record),
        ("identity", counters.wrong_identity),
        ("length", counters.wrong_length),
        ("checksum", counters.wrong_checksum),
        ("late", counters.late),
        ("unreachable", counters.unreachable),
    ] {
        assert!(count > 0, "{what} was not met");
    }
    assert_eq!(Stub::misuse(), 0);
}

/// Threads of this process that do the store's work.
fn threads() -> usize {
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(entry.unwrap().path().join("comm")).unwrap_or_default()
    };
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .map(name)
        .filter(|name| name.starts_with("kvtier-remote") || name.starts_with("kvtier-moon"))
        .count()
}

/// A hung library fills its threads and the limits and no more; then calls are refused at once; and all of it
/// comes back.
#[test]
fn what_hangs_is_bounded() {
    let stub = Stub::new("hangs");
    let config = MooncakeConfig { limits: Limits { calls: 20, bytes: 1 << 20 }, ..stub.config(200_000) };
    let store = MooncakeStore::open(config, soon()).unwrap();
    let block = keys(1, 0, 1);
    assert_eq!(put(&store, &block, LEN, soon()), [Ok(())]);
    let registered = stub.registered();
    stub.set(Fault::Hang);
    // Long before the pool is reached by anybody else, callers leave.
    let start = Instant::now();
    for _ in 0..8 {
        assert_eq!(get(&store, &block, LEN, within(20)), [Err(RemoteError::Late)]);
    }
    assert!(start.elapsed() >= Duration::from_millis(160));
    while stub.hung() < 8 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(store.in_flight(), InFlight { calls: 8, bytes: 8 * (LEN as u64 + 128) });
    // What never begins is forgotten as soon as its caller has left.
    for _ in 0..1000 {
        drop(store.exists(&block, soon()));
        drop(put_pending(&store, &block[0]));
    }
    assert_eq!(store.in_flight().calls, 8);
    let payloads: Vec<_> = (0..100).map(|_| put_pending(&store, &block[0])).collect();
    assert_eq!(store.in_flight().calls, 20);
    assert_eq!(payloads.iter().filter(|call| call.is_done()).count(), 88);
    assert_eq!((stub.hung(), stub.registered()), (8, registered));
    // A purge knows that they may still write.
    drop(payloads);
    let sweep = store.sweep(block[0].namespace, Epoch(0), within(20));
    assert_eq!(sweep.wait(), Err(RemoteError::Late));
    stub.set(Fault::None);
    ends(&store);
    assert_eq!(get(&store, &block, LEN, soon()), [Ok(())]);
    assert_eq!(store.close(soon()), Ok(()));
}

fn put_pending(store: &MooncakeStore, key: &RemoteKey) -> kv_tiers::remote::Pending<()> {
    let identity = key.identity();
    let meta = kv_core::job::RecordMeta { identity, parent: kv_core::key::BlockKey::ROOT, depth: 0 };
    store.put(&[kv_tiers::remote::Put { meta, payload: &[7; LEN], elements: None }], soon())
}

/// Stores that are closed while the library hangs wait for nothing, keep what the library may still use, and let
/// go of it when it returns.
#[test]
fn closing_waits_for_nothing_that_hangs() {
    let stub = Stub::new("closing");
    for _ in 0..5 {
        let (first, second) = (open(&stub), open(&stub));
        let block = keys(1, 0, 1);
        assert_eq!(put(&first, &block, LEN, soon()), [Ok(())]);
        stub.set(Fault::Hang);
        let calls: Vec<_> = (0..20).map(|_| first.exists(&block, soon())).collect();
        while stub.hung() < 8 {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(first);
        assert_eq!(second.close(within(20)), Err(RemoteError::Late));
        assert_eq!(stub.clients(), 2);
        assert!(stub.registered() >= 2 * 8 * 100_000);
        stub.set(Fault::None);
        for call in calls {
            let answers = call.wait();
            assert!(matches!(answers[..], [Ok(true) | Err(RemoteError::Closed)]), "{answers:?}");
        }
        while stub.clients() > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(stub.registered(), 0);
    }
    assert_eq!(Stub::misuse(), 0);
}

/// Opening and closing, with calls that hang, leaves no thread behind.
#[test]
fn nothing_leaks_over_many_lives() {
    let stub = Stub::new("lives");
    let block = keys(1, 0, 1);
    for _ in 0..200 {
        let store = open(&stub);
        stub.set(Fault::Hang);
        get(&store, &block, LEN, within(1));
        stub.set(Fault::None);
        assert_eq!(store.close(soon()), Ok(()));
    }
    assert_eq!((stub.clients(), stub.registered()), (0, 0));
    // Each life has ten threads. Those of the other tests of this process come and go.
    assert!(threads() < 200, "{}", threads());
}

#[test]
fn an_opening_that_fails_says_what_to_do() {
    let stub = Stub::new("opening");
    let refused = |config, deadline| MooncakeStore::open(config, deadline).err().unwrap();
    let missing = MooncakeConfig { library: Some("/nowhere/lib.so".into()), ..stub.config(100) };
    let error = refused(missing, soon());
    assert!(matches!(&error, OpenError::Library { name, .. } if name == "/nowhere/lib.so"));
    assert!(error.to_string().contains("MOONCAKE_STORE_LIBRARY"), "{error}");
    // A library that is another's.
    let foreign = MooncakeConfig { library: Some("libc.so.6".into()), ..stub.config(100) };
    let error = refused(foreign, soon());
    assert!(
        matches!(&error, OpenError::Library { why, .. } if why.contains("mooncake_store_create")),
        "{error}"
    );
    let zero = MooncakeConfig { hostname: "a\0b".to_owned(), ..stub.config(100) };
    assert!(matches!(refused(zero, soon()), OpenError::Configuration("hostname")));
    let endless = MooncakeConfig { record_bytes: usize::MAX, ..stub.config(100) };
    assert!(matches!(refused(endless, soon()), OpenError::Configuration("record_bytes")));

    stub.set(Fault::CallCode(-900));
    let error = refused(stub.config(100), soon());
    assert!(matches!(error, OpenError::Setup { call: "mooncake_store_setup", code: -900 }), "{error}");
    stub.set(Fault::Hang);
    assert!(matches!(refused(stub.config(100), within(20)), OpenError::Late));
    assert_eq!(stub.hung(), 1);
    stub.set(Fault::None);
    // What had not failed, only been late, is undone.
    while stub.clients() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(stub.registered(), 0);
}
