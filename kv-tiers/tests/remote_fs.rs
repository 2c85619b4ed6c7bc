//! A shared directory as a remote store: many writers, damage of every kind, full and vanished directories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kv_core::ids::JobId;
use kv_core::job::RecordMeta;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::{Bytes, Epoch};
use kv_core::{Mismatch, Verified};
use kv_tiers::codec::Elements;
use kv_tiers::remote::{
    FsStore, InFlight, Limits, OpenError, Put, RemoteError, RemoteKey, RemoteStore, Swept, Want,
};

/// Nothing here is meant to be late.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

fn open(dir: &Path) -> FsStore {
    FsStore::open(dir, Limits::default()).unwrap()
}

fn key(namespace: u8, epoch: u64, n: u64) -> RemoteKey {
    // Spread as real keys are.
    let spread = u128::from(n).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    RemoteKey {
        namespace: NamespaceId([namespace; 16]),
        epoch: Epoch(epoch),
        fingerprint: Fingerprint([7; 16]),
        key: BlockKey::from_bytes(spread.to_le_bytes()),
    }
}

/// Bytes that say whose they are and are not the same everywhere.
fn payload(key: &RemoteKey, len: usize) -> Vec<u8> {
    let seed = key.key.low() ^ key.epoch.0 ^ u64::from(key.namespace.0[0]) << 56;
    (0..len as u64).map(|i| (seed.wrapping_add(i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn meta(key: &RemoteKey) -> RecordMeta {
    RecordMeta { identity: key.identity(), parent: BlockKey::ROOT, depth: 0 }
}

fn put(store: &FsStore, key: &RemoteKey, len: usize) -> Result<(), RemoteError> {
    let payload = payload(key, len);
    store.put(&[Put { meta: meta(key), payload: &payload, elements: None }], soon()).wait()[0]
}

/// The block's bytes, if they were verified. Wrong ones end the test.
fn get(store: &FsStore, key: &RemoteKey, len: usize) -> Result<(), RemoteError> {
    let mut into = vec![0xEE; len];
    let want = Want { key: *key, payload_bytes: len };
    let verified: Verified =
        store.get(&[want], soon()).wait_into(&mut [(JobId(1), &mut into)]).pop().unwrap()?;
    assert_eq!(verified.job(), JobId(1));
    assert_eq!(into, payload(key, len), "wrong bytes");
    Ok(())
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn file_of(dir: &Path, key: &RemoteKey) -> PathBuf {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let epoch = dir.join("kvtier-1").join(hex(&key.namespace.0)).join(format!("{:016x}", key.epoch.0));
    files(&epoch).into_iter().find(|p| p.ends_with(hex(&key.key.to_bytes()))).expect("the block's file")
}

#[test]
fn what_was_put_is_there_for_another_store_and_can_be_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (open(dir.path()), open(dir.path()));
    let keys: Vec<_> = (0..100).map(|n| key(1, 0, n)).collect();
    let payloads: Vec<_> = keys.iter().map(|k| payload(k, 1000)).collect();
    let puts: Vec<_> =
        keys.iter().zip(&payloads).map(|(k, p)| Put { meta: meta(k), payload: p, elements: None }).collect();
    assert_eq!(there.exists(&keys, soon()).wait(), vec![Ok(false); 100]);
    assert_eq!(here.put(&puts, soon()).wait(), vec![Ok(()); 100]);
    assert_eq!(there.exists(&keys, soon()).wait(), vec![Ok(true); 100]);

    let wants: Vec<_> = keys.iter().map(|&key| Want { key, payload_bytes: 1000 }).collect();
    let mut memory = vec![vec![0; 1000]; 100];
    let mut into: Vec<_> =
        memory.iter_mut().enumerate().map(|(i, m)| (JobId(i as u64), &mut m[..])).collect();
    for (i, verified) in there.get(&wants, soon()).wait_into(&mut into).into_iter().enumerate() {
        assert_eq!(verified.unwrap().job(), JobId(i as u64));
    }
    assert_eq!(memory, payloads);
    assert_eq!((there.counters().hits, there.counters().bytes_in), (100, 100_000));
    assert_eq!((here.counters().puts, there.counters().absent), (100, 100));

    assert_eq!(there.delete(&keys[..50], soon()).wait(), vec![Ok(()); 50]);
    assert_eq!(there.delete(&keys[..50], soon()).wait(), vec![Ok(()); 50]);
    assert_eq!(get(&here, &keys[0], 1000), Err(RemoteError::Absent));
    assert_eq!(get(&here, &keys[50], 1000), Ok(()));
    assert_eq!((here.in_flight(), there.in_flight()), (InFlight::default(), InFlight::default()));
}

/// Writers and readers of the same few blocks, from several stores, as several nodes would be.
#[test]
fn many_writers_and_readers_of_the_same_blocks_never_see_wrong_bytes() {
    let dir = tempfile::tempdir_in(memory()).unwrap();
    let stores: Vec<_> = (0..3).map(|_| open(dir.path())).collect();
    let (threads, rounds, batch) = (6_u64, 600_u64, 32_u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let stores = &stores;
            scope.spawn(move || {
                let store = &stores[thread as usize % stores.len()];
                for round in 0..rounds {
                    let keys: Vec<_> =
                        (0..batch).map(|i| key(1, 0, (round * 7 + thread * 3 + i) % 97)).collect();
                    let payloads: Vec<_> = keys.iter().map(|k| payload(k, 512)).collect();
                    match (round + thread) % 8 {
                        0 | 1 => {
                            let puts = keys.iter().zip(&payloads);
                            let puts: Vec<_> = puts
                                .map(|(k, p)| Put { meta: meta(k), payload: p, elements: None })
                                .collect();
                            assert!(store.put(&puts, soon()).wait().iter().all(Result::is_ok));
                        }
                        2 => assert!(store.delete(&keys[..4], soon()).wait().iter().all(Result::is_ok)),
                        _ => {
                            let wants: Vec<_> =
                                keys.iter().map(|&key| Want { key, payload_bytes: 512 }).collect();
                            let mut memory = vec![vec![0; 512]; keys.len()];
                            let mut into: Vec<_> =
                                memory.iter_mut().map(|m| (JobId(0), &mut m[..])).collect();
                            let results = store.get(&wants, soon()).wait_into(&mut into);
                            for ((result, got), right) in results.iter().zip(&memory).zip(&payloads) {
                                match result {
                                    Ok(_) => assert_eq!(got, right, "wrong bytes"),
                                    Err(error) => assert_eq!(*error, RemoteError::Absent),
                                }
                            }
                        }
                    }
                }
            });
        }
    });
    let all: Vec<_> = stores.iter().map(RemoteStore::counters).collect();
    let hits: u64 = all.iter().map(|c| c.hits).sum();
    let operations: u64 = all.iter().map(|c| c.hits + c.puts + c.deletes + c.absent).sum();
    println!("{operations} operations, {hits} verified");
    assert!(operations >= 100_000, "{operations}");
    assert!(hits > operations / 3, "{hits} of {operations}");
    assert_eq!(all.iter().map(|c| c.misses() - c.absent).sum::<u64>(), 0);
    assert_eq!(files(&dir.path().join("kvtier-1/tmp")), Vec::<PathBuf>::new());
}

/// tmpfs where there is one: what is tested is not the disk.
fn memory() -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() { shm } else { std::env::temp_dir() }
}

/// Every kind of damage to files, in random order among good reads, each a miss of the right kind.
#[test]
fn damaged_swapped_and_foreign_files_are_counted_misses() {
    let dir = tempfile::tempdir_in(memory()).unwrap();
    let store = open(dir.path());
    let blocks: Vec<_> = (0..20).map(|n| key(1, 0, n)).collect();
    let (other_namespace, other_epoch) = (key(2, 0, 0), key(1, 1, 0));
    for block in blocks.iter().chain([&other_namespace, &other_epoch]) {
        put(&store, block, 300).unwrap();
    }
    let path = |block| file_of(dir.path(), block);
    let victim = path(&blocks[0]);
    let good = fs::read(&victim).unwrap();
    let foreign: Vec<_> =
        [&blocks[1], &other_namespace, &other_epoch].map(|block| fs::read(path(block)).unwrap()).into();

    let mut before = store.counters();
    let mut check = |bytes: &[u8], expect: Result<(), RemoteError>, what: &str| {
        fs::write(&victim, bytes).unwrap();
        assert_eq!(get(&store, &blocks[0], 300), expect, "{what}");
        let after = store.counters();
        match expect {
            Ok(()) => assert_eq!(after.hits, before.hits + 1),
            Err(_) => {
                assert_eq!((after.hits, after.refused()), (before.hits, before.refused() + 1), "{what}")
            }
        }
        before = after;
    };
    let mut flipped = good.clone();
    for bit in 0..good.len() * 8 {
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = if bit / 8 < 128 { RemoteError::NoRecord } else { Mismatch::Checksum.into() };
        check(&flipped, Err(error), "flipped");
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
    for len in 0..good.len() {
        let error = if len < 128 { RemoteError::NoRecord } else { Mismatch::Length.into() };
        check(&good[..len], Err(error), "cut");
    }
    for longer in [1, 300, 100_000] {
        check(&[&good[..], &vec![0; longer]].concat(), Err(Mismatch::Length.into()), "longer");
    }
    for bytes in &foreign {
        check(bytes, Err(Mismatch::Identity.into()), "swapped");
    }
    check(&vec![0; good.len()], Err(RemoteError::NoRecord), "zeros");
    check(&good, Ok(()), "whole again");
    let before = before.refused();
    assert_eq!(get(&store, &blocks[0], 301), Err(Mismatch::Length.into()));

    // What is no file at all.
    fs::remove_file(&victim).unwrap();
    fs::create_dir(&victim).unwrap();
    assert_eq!(get(&store, &blocks[0], 300), Err(RemoteError::NoRecord));
    assert_eq!(store.exists(&blocks[..1], soon()).wait(), [Ok(false)]);
    assert!(put(&store, &blocks[0], 300).is_err());
    fs::remove_dir(&victim).unwrap();
    symlink(path(&blocks[1]), &victim).unwrap();
    assert_eq!(get(&store, &blocks[0], 300), Err(RemoteError::NoRecord));
    fs::remove_file(&victim).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &victim, rustix::fs::Mode::RUSR).unwrap();
    assert_eq!(get(&store, &blocks[0], 300), Err(RemoteError::NoRecord));
    assert_eq!(store.counters().refused(), before + 4);
    // A put replaces it.
    put(&store, &blocks[0], 300).unwrap();
    assert_eq!(get(&store, &blocks[0], 300), Ok(()));
}

#[test]
fn a_sweep_takes_the_namespace_up_to_its_epoch_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blocks: Vec<_> =
        (0..3).flat_map(|epoch| (0..10).map(move |n| key(1, epoch, n))).chain([key(2, 0, 0)]).collect();
    for block in &blocks {
        put(&store, block, 100).unwrap();
    }
    let tmp = dir.path().join("kvtier-1/tmp");
    let left_over =
        |namespace: &str, epoch: u64| tmp.join(format!("{}-{epoch:016x}-abc-0", namespace.repeat(16)));
    for path in [left_over("01", 1), left_over("01", 2), left_over("02", 0)] {
        fs::write(path, "plain text of a killed writer").unwrap();
    }
    assert_eq!(
        store.sweep(NamespaceId([1; 16]), Epoch(1), soon()).wait(),
        Ok(Swept { removed: 21, writers: 0 })
    );
    for block in &blocks {
        let gone = block.namespace == NamespaceId([1; 16]) && block.epoch <= Epoch(1);
        assert_eq!(get(&store, block, 100), if gone { Err(RemoteError::Absent) } else { Ok(()) });
    }
    assert_eq!(files(&tmp), [left_over("01", 2), left_over("02", 0)]);
    assert_eq!(
        store.sweep(NamespaceId([1; 16]), Epoch(1), soon()).wait(),
        Ok(Swept { removed: 0, writers: 0 })
    );
    assert_eq!(
        store.sweep(NamespaceId([9; 16]), Epoch(1), soon()).wait(),
        Ok(Swept { removed: 0, writers: 0 })
    );
}

#[test]
fn left_overs_go_after_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let tmp = dir.path().join("kvtier-1/tmp");
    let (old, new) = (tmp.join("old"), tmp.join("new"));
    fs::write(&old, "").unwrap();
    fs::write(&new, "").unwrap();
    let then = std::time::SystemTime::now() - Duration::from_secs(2 * 3600);
    fs::File::options().write(true).open(&old).unwrap().set_modified(then).unwrap();
    drop(open(dir.path()));
    assert_eq!(files(&tmp), [new]);
}

#[test]
fn a_vanished_directory_is_an_error_and_is_not_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("share");
    assert!(matches!(FsStore::open(&root, Limits::default()), Err(OpenError::Directory { .. })));
    fs::create_dir(&root).unwrap();
    let store = open(&root);
    put(&store, &key(1, 0, 0), 100).unwrap();

    // What is below the root may go at any time.
    fs::remove_dir_all(root.join("kvtier-1").join("01".repeat(16))).unwrap();
    assert_eq!(get(&store, &key(1, 0, 0), 100), Err(RemoteError::Absent));
    put(&store, &key(1, 0, 0), 100).unwrap();
    assert_eq!(get(&store, &key(1, 0, 0), 100), Ok(()));

    fs::remove_dir_all(&root).unwrap();
    assert_eq!(get(&store, &key(1, 0, 0), 100), Err(RemoteError::Absent));
    assert_eq!(put(&store, &key(1, 0, 0), 100), Err(RemoteError::Io(libc::ENOENT)));
    // Another file system at the same path is none of ours.
    fs::create_dir(&root).unwrap();
    assert_eq!(put(&store, &key(1, 0, 0), 100), Err(RemoteError::Io(libc::ENOENT)));
    assert_eq!(files(&root), Vec::<PathBuf>::new());
    assert_eq!(store.counters().failed, 2);
}

#[test]
fn what_is_late_or_too_much_is_refused_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { calls: 2, bytes: 10_000 };
    let store = FsStore::open(dir.path(), limits).unwrap();
    assert_eq!(store.exists(&[key(1, 0, 0)], Instant::now()).wait(), [Err(RemoteError::Late)]);
    assert_eq!(get(&store, &key(1, 0, 0), 9873), Err(RemoteError::TooLarge));
    assert_eq!(get(&store, &key(1, 0, 0), 9872), Err(RemoteError::Absent));

    let calls: Vec<_> = (0..3).map(|n| store.exists(&[key(1, 0, n)], soon())).collect();
    let answers: Vec<_> = calls.into_iter().map(|call| call.wait()[0]).collect();
    assert_eq!(answers[2], Err(RemoteError::Busy));
    assert_eq!((store.counters().late, store.counters().busy), (1, 2));
    // Cancelled calls give their permits back as well.
    for n in 0..1000 {
        let call = store.exists(&[key(1, 0, n)], soon());
        assert!(!call.is_done() || store.in_flight().calls <= 2);
        drop(call);
    }
    while store.in_flight() != InFlight::default() {
        std::thread::yield_now();
    }
    assert_eq!(get(&store, &key(1, 0, 0), 100), Err(RemoteError::Absent));
}

/// Normal data of bf16, as a sum of uniform numbers.
fn kv(seed: u64, elements: usize) -> Vec<u8> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let normal = move || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
    std::iter::repeat_with(normal)
        .take(elements)
        .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
        .collect()
}

#[test]
fn encoded_blocks_are_smaller_there_and_the_same_here() {
    let dir = tempfile::tempdir_in(memory()).unwrap();
    let store = open(dir.path());
    let keys: Vec<_> = (0..8).map(|n| key(1, 0, n)).collect();
    // Every other block as it is, and one that cannot shrink.
    let mut payloads: Vec<_> = (0..8).map(|n| kv(n, 50_000)).collect();
    payloads[4] = payload(&keys[4], 100_000);
    let elements = |n: usize| n.is_multiple_of(2).then_some(Elements::Bf16);
    let puts: Vec<_> = keys
        .iter()
        .zip(&payloads)
        .enumerate()
        .map(|(n, (k, p))| Put { meta: meta(k), payload: p, elements: elements(n) })
        .collect();
    assert_eq!(store.put(&puts, soon()).wait(), vec![Ok(()); 8]);
    let sizes: Vec<_> = keys.iter().map(|k| fs::metadata(file_of(dir.path(), k)).unwrap().len()).collect();
    for (n, size) in sizes.iter().enumerate() {
        let raw = n % 2 == 1 || n == 4;
        assert!(if raw { *size == 100_128 } else { (60_000..70_000).contains(size) }, "{n}: {size}");
    }

    let wants: Vec<_> = keys.iter().map(|&key| Want { key, payload_bytes: 100_000 }).collect();
    let mut memory = vec![vec![0xEE; 100_000]; 8];
    let mut into: Vec<_> = memory.iter_mut().map(|m| (JobId(0), &mut m[..])).collect();
    let (results, decoding) = store.get(&wants, soon()).wait_into_measured(&mut into);
    assert!(results.iter().all(Result::is_ok));
    assert!(memory == payloads);

    let stored: u64 = [0, 2, 6].map(|n| sizes[n] - 128).iter().sum();
    assert_eq!((decoding.stored_bytes, decoding.payload_bytes), (stored, 300_000));
    assert!(decoding.nanos > 0);
    let counters = store.counters();
    assert_eq!(counters.decoded, decoding);
    assert_eq!((counters.encoded.stored_bytes, counters.encoded.payload_bytes), (stored + 100_000, 400_000));
    assert_eq!(decoding.stored(Bytes(600_000)), Bytes(2 * stored));
}

/// A file that was encoded, damaged anywhere: never wrong bytes, always a miss of the right kind.
#[test]
fn damaged_encoded_files_are_counted_misses() {
    let dir = tempfile::tempdir_in(memory()).unwrap();
    let store = open(dir.path());
    let key = key(1, 0, 0);
    let payload = kv(1, 70_000);
    let put = Put { meta: meta(&key), payload: &payload, elements: Some(Elements::Bf16) };
    assert_eq!(store.put(&[put], soon()).wait(), [Ok(())]);
    let victim = file_of(dir.path(), &key);
    let good = fs::read(&victim).unwrap();
    let (mut hits, mut memory) = (0, vec![0; payload.len()]);
    let mut read = |bytes: &[u8]| {
        fs::write(&victim, bytes).unwrap();
        let want = Want { key, payload_bytes: payload.len() };
        let result = store.get(&[want], soon()).wait_into(&mut [(JobId(1), &mut memory)]).pop().unwrap();
        assert!(result.is_err() || memory == payload, "wrong bytes");
        hits += u64::from(result.is_ok());
        result.map(|_| ()).err()
    };
    assert_eq!(read(&good), None);
    // Coprime with 8: every position of a bit within a byte, and every part of both pieces.
    for bit in (0..good.len() * 8).step_by(611) {
        let mut wrong = good.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        let kind = if bit / 8 < 128 { RemoteError::NoRecord } else { Mismatch::Checksum.into() };
        assert_eq!(read(&wrong), Some(kind), "bit {bit}");
    }
    for len in (128..good.len()).step_by(997) {
        assert_eq!(read(&good[..len]), Some(Mismatch::Length.into()), "{len}");
    }
    assert_eq!(read(&[&good[..], &[0; 9]].concat()), Some(Mismatch::Length.into()));
    assert_eq!(read(&good), None);
    assert_eq!((store.counters().hits, hits), (2, 2));
    assert!(store.counters().refused() > 1000);
}
