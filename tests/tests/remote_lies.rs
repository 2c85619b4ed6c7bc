//! Stores that lie: every kind of wrong bytes under a name, in bulk. None is accepted, and each is counted as what it is.
//!
//! `KVTIER_SOAK=1` reads ten times as much; `KVTIER_LIES_SEED=n` chooses other damage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kv_core::Mismatch;
use kv_tiers::remote::{
    FsStore, InFlight, Limits, RedisConfig, RedisStore, RemoteError, RemoteKey, RemoteStore, Servers,
};
use kvtier_benches::SplitMix64;
use kvtier_tests::redis_server::RedisServer;
use kvtier_tests::remote::{file_name, get, key, put, soaking, soon, string_name};

const LEN: usize = 256;
const HEADER: usize = 128;
const BLOCKS: usize = 2000;

/// What is behind a store, past which nobody looks.
trait Raw {
    fn read(&self, key: &RemoteKey) -> Vec<u8>;
    fn write(&self, values: &[(RemoteKey, Vec<u8>)]);
    /// What a value without a byte is.
    const EMPTY: RemoteError;
}

impl Raw for RedisServer {
    fn read(&self, key: &RemoteKey) -> Vec<u8> {
        self.string(&string_name(key, 0))
    }
    fn write(&self, values: &[(RemoteKey, Vec<u8>)]) {
        self.set_all(values.iter().map(|(key, value)| (string_name(key, 0), &value[..])));
    }
    const EMPTY: RemoteError = RemoteError::Absent;
}

impl Raw for &Path {
    fn read(&self, key: &RemoteKey) -> Vec<u8> {
        fs::read(self.join(file_name(key))).unwrap()
    }
    fn write(&self, values: &[(RemoteKey, Vec<u8>)]) {
        values.iter().for_each(|(key, value)| fs::write(self.join(file_name(key)), value).unwrap());
    }
    const EMPTY: RemoteError = RemoteError::NoRecord;
}

/// A good value spoilt, and what it must be taken for. `others`: good values of other names.
fn damaged<R: Raw>(rng: &mut SplitMix64, good: &[u8], others: [&[u8]; 4]) -> (Vec<u8>, RemoteError) {
    let mut value = good.to_vec();
    let at = rng.below(good.len() as u64) as usize;
    let by_place = |at| if at < HEADER { RemoteError::NoRecord } else { Mismatch::Checksum.into() };
    let error = match rng.below(8) {
        0 | 1 => {
            value[at] ^= 1 << rng.below(8);
            by_place(at)
        }
        2 => {
            // Several bytes, as from another write: the first of them is another one for sure.
            for byte in value[at..].iter_mut().take(40) {
                *byte = byte.wrapping_add(1);
            }
            by_place(at)
        }
        3 => {
            value.truncate(at);
            match at {
                0 => R::EMPTY,
                1..HEADER => RemoteError::NoRecord,
                _ => Mismatch::Length.into(),
            }
        }
        4 => {
            value.extend(vec![0; 1 + rng.below(5000) as usize]);
            Mismatch::Length.into()
        }
        5 => {
            value.fill_with(|| rng.below(256) as u8);
            RemoteError::NoRecord
        }
        6 => {
            // Another block's header before the right payload.
            value[..HEADER].copy_from_slice(&others[0][..HEADER]);
            Mismatch::Identity.into()
        }
        _ => {
            // Another block's, namespace's, epoch's or model's record, whole.
            value = others[rng.below(4) as usize].to_vec();
            Mismatch::Identity.into()
        }
    };
    (value, error)
}

/// Reads a store whose values are spoilt behind its back.
fn nothing_wrong_is_accepted<R: Raw>(store: &dyn RemoteStore, raw: &R) {
    let seed = std::env::var("KVTIER_LIES_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let mut rng = SplitMix64::new(seed);
    let keys =
        |namespace, epoch| (0..BLOCKS as u64).map(move |n| key(namespace, epoch, n)).collect::<Vec<_>>();
    let (blocks, foreign, old) = (keys(1, 1), keys(2, 1), keys(1, 0));
    let model = |key: &RemoteKey| RemoteKey { fingerprint: kv_core::key::Fingerprint([8; 16]), ..*key };
    let other_model: Vec<_> = blocks.iter().map(model).collect();
    let [blocks_raw, foreign, old, other_model] = [&blocks, &foreign, &old, &other_model].map(|keys| {
        keys.chunks(500).for_each(|keys| assert_eq!(put(store, keys, LEN, soon()), vec![Ok(()); keys.len()]));
        keys.iter().map(|key| raw.read(key)).collect::<Vec<_>>()
    });
    assert!(blocks_raw.iter().all(|value| value.len() == HEADER + LEN));
    let before = store.counters();
    let reads = if soaking() { 1_000_000 } else { 100_000 };
    let mut expected = BTreeMap::new();
    for _ in 0..reads / BLOCKS {
        let (mut spoilt, mut outcomes) = (Vec::new(), Vec::new());
        for n in 0..BLOCKS {
            // A fifth stays as it is: that must be served.
            outcomes.push(if rng.below(5) == 0 {
                Ok(())
            } else {
                // Swapped with a neighbour that is another block.
                let swapped = (n + 1 + rng.below(BLOCKS as u64 - 1) as usize) % BLOCKS;
                let others = [&blocks_raw[swapped], &foreign[n], &old[n], &other_model[n]].map(Vec::as_slice);
                let (value, error) = damaged::<R>(&mut rng, &blocks_raw[n], others);
                spoilt.push((n, value));
                Err(error)
            });
        }
        let write = |values: &mut dyn Iterator<Item = (usize, Vec<u8>)>| {
            raw.write(&values.map(|(n, value)| (blocks[n], value)).collect::<Vec<_>>());
        };
        let numbers: Vec<_> = spoilt.iter().map(|(n, _)| *n).collect();
        write(&mut spoilt.into_iter());
        for (keys, outcomes) in blocks.chunks(250).zip(outcomes.chunks(250)) {
            assert_eq!(get(store, keys, LEN, soon()), outcomes);
        }
        outcomes.iter().for_each(|outcome| *expected.entry(format!("{outcome:?}")).or_insert(0_u64) += 1);
        write(&mut numbers.into_iter().map(|n| (n, blocks_raw[n].clone())));
    }
    println!("seed {seed}: {reads} reads: {expected:?}");
    let after = store.counters();
    let of = |outcome: Result<(), RemoteError>| expected.get(&format!("{outcome:?}")).copied().unwrap_or(0);
    assert_eq!(after.hits - before.hits, of(Ok(())));
    assert_eq!(after.no_record, of(Err(RemoteError::NoRecord)));
    assert_eq!(after.wrong_identity, of(Err(Mismatch::Identity.into())));
    assert_eq!(after.wrong_length, of(Err(Mismatch::Length.into())));
    assert_eq!(after.wrong_checksum, of(Err(Mismatch::Checksum.into())));
    assert_eq!(after.absent, of(Err(RemoteError::Absent)));
    assert_eq!(after.hits + after.misses() - before.hits - before.misses(), reads as u64);
    assert_eq!(store.in_flight(), InFlight::default());
    // Everything is whole again, and served.
    assert_eq!(get(store, &blocks, LEN, soon()), vec![Ok(()); BLOCKS]);
}

#[test]
fn a_redis_that_lies_is_never_believed() {
    let server = RedisServer::start(&[]);
    let servers = Servers::One(format!("redis://127.0.0.1:{}", server.port()));
    let (ttl, limits) = (Duration::from_secs(1000), Limits::default());
    let store = RedisStore::open(RedisConfig { servers, ttl, root_certificate: None, limits }).unwrap();
    nothing_wrong_is_accepted(&store, &server);
}

#[test]
fn a_directory_that_lies_is_never_believed() {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    let store = FsStore::open(dir.path(), Limits::default()).unwrap();
    nothing_wrong_is_accepted(&store, &dir.path());
}
