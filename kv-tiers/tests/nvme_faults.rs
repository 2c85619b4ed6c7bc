//! The k-th operation of the store fails, for every k and every kind of failure. A load is the stored bytes or
//! an error, and nothing that was durable is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are not themselves tests

mod common;

use std::sync::Arc;

use common::{Direct, Driven, Hands, Ledger, arena, config, meta, payload, place};
use kv_core::ids::SegmentId;
use kv_core::job::{Op, Place, TransferError, Urgency};
use kv_tiers::arena::Arena;
use kv_tiers::nvme::{
    Fault, FaultyStore, LogConfig, MemStore, NvmeError, NvmeLog, OpenMode, SegmentStore, Segments,
};

const CONFIG: LogConfig = LogConfig { segments: 2, records_per_segment: 3, mode: OpenMode::Recover };

/// A record whose write was said to have worked.
struct Stored {
    block: u64,
    place: Place,
    durable: bool,
    dropped: bool,
}

/// Fills, seals, reuses and reopens a log on a store that may fail at any point; checks every load on the way.
/// Says what was stored.
fn workload(store: &Arc<FaultyStore<MemStore>>, arena: &Arc<Arena>) -> Vec<Stored> {
    let mut stored: Vec<Stored> = Vec::new();
    let mut block = 0;
    for life in 1..=2 {
        let store: Arc<dyn SegmentStore> = Arc::clone(store) as _;
        let Ok((segments, recovery)) = Segments::open(store, Arc::clone(arena), CONFIG) else { continue };
        let log = Direct { segments, arena: Arc::clone(arena) };
        for r in &recovery.records {
            let s = stored.iter().find(|s| s.place == r.place);
            // A write that failed may have reached the disk in full.
            if let Some(s) = s {
                assert_eq!(r.meta, meta(s.block, s.place));
                assert!(!s.dropped);
            }
        }
        for segment in 0..2 {
            let generation = recovery.segments[segment as usize].generation.0 + life;
            stored.iter_mut().filter(|s| s.place.segment.0 == segment).for_each(|s| s.dropped = true);
            if log.open(segment, generation).is_err() {
                log.write(99, place(segment, generation, 0)).unwrap_err();
                continue;
            }
            for index in 0..3 {
                block += 1;
                let at = place(segment, generation, index);
                if log.write(block, at).is_ok() {
                    stored.push(Stored { block, place: at, durable: false, dropped: false });
                }
                if index == 1 && log.segments.sync().is_ok() {
                    stored.iter_mut().for_each(|s| s.durable = true);
                }
            }
            if segment == 0 && log.seal(segment, generation).is_ok() {
                stored
                    .iter_mut()
                    .filter(|s| s.place.segment == SegmentId(segment))
                    .for_each(|s| s.durable = true);
            }
        }
        for s in &stored {
            match log.read(s.block, s.place) {
                Ok(read) => {
                    assert_eq!(read, payload(s.block));
                    assert!(!s.dropped);
                }
                Err(TransferError::Refused(_)) if !s.dropped => {} // a flipped bit
                Err(_) => {}
            }
        }
    }
    stored
}

#[test]
fn every_operation_fails_once_in_every_way() {
    let arena = arena(2);
    let clean = Arc::new(FaultyStore::new(MemStore::new(), u64::MAX, Fault::Short));
    let stored = workload(&clean, &arena);
    assert_eq!(stored.len(), 12);
    let operations = clean.operations();
    assert!(operations > 50, "{operations} operations");
    let faults = [
        Fault::Errno(libc::EIO),
        Fault::Errno(libc::ENOSPC),
        Fault::Errno(libc::EROFS),
        Fault::Dead(libc::EIO),
        Fault::Dead(libc::ENODEV),
        Fault::Short,
        Fault::FlipBit(3),            // magic
        Fault::FlipBit(8 * 30 + 5),   // identity
        Fault::FlipBit(8 * 4096 + 1), // payload, second header copy
    ];
    for fault in faults {
        for k in 0..operations {
            let store = Arc::new(FaultyStore::new(MemStore::new(), k, fault));
            let stored = workload(&store, &arena);
            // The power fails, and the disk is well again.
            let after: Arc<dyn SegmentStore> = Arc::new(store.inner().crash(1));
            let (segments, recovery) = match Segments::open(after, Arc::clone(&arena), CONFIG) {
                Ok(opened) => opened,
                Err(e) => panic!("{fault:?} at {k}: {e}"),
            };
            let log = Direct { segments, arena: Arc::clone(&arena) };
            for r in &recovery.records {
                let n = common::block_of(r);
                assert_eq!(r.meta, meta(n, r.place), "{fault:?} at {k}");
                match log.read(n, r.place) {
                    Ok(read) => assert_eq!(read, payload(n), "{fault:?} at {k}"),
                    Err(_) => assert!(matches!(fault, Fault::FlipBit(_)), "{fault:?} at {k}"),
                }
            }
            let lost =
                |s: &&Stored| s.durable && !s.dropped && !recovery.records.iter().any(|r| r.place == s.place);
            let allowed = usize::from(matches!(fault, Fault::FlipBit(_)));
            assert!(stored.iter().filter(lost).count() <= allowed, "{fault:?} at {k}");
        }
    }
}

fn on_faulty(at: u64, fault: Fault) -> (Driven, Arc<FaultyStore<MemStore>>) {
    let (arena, ledger) = (arena(4), Arc::new(Ledger::default()));
    let store = Arc::new(FaultyStore::new(MemStore::new(), at, fault));
    let (log, _) =
        NvmeLog::with_store(Arc::clone(&store) as _, CONFIG, 4, Arc::clone(&arena), Arc::clone(&ledger) as _)
            .unwrap();
    assert_eq!(log.backend_name(), "pool");
    (Driven::new(log, ledger, arena), store)
}

/// Operations that opening an empty log takes.
fn operations_of_opening() -> u64 {
    on_faulty(u64::MAX, Fault::Short).1.operations()
}

#[test]
fn each_failure_has_its_error() {
    let opening = operations_of_opening() + 4; // and opening a segment
    let write = |fault| {
        let (log, _) = on_faulty(opening, fault);
        log.open(0, 1).unwrap();
        let failed = log.write(1, place(0, 1, 0)).unwrap_err();
        if !matches!(fault, Fault::Dead(_)) {
            log.write(1, place(0, 1, 0)).unwrap(); // the place may be tried again
            assert_eq!(log.read(1, place(0, 1, 0)), Ok(payload(1)));
        }
        failed
    };
    assert_eq!(write(Fault::Errno(libc::ENOSPC)), TransferError::NoSpace);
    assert_eq!(write(Fault::Errno(libc::EDQUOT)), TransferError::NoSpace);
    assert_eq!(write(Fault::Errno(libc::EIO)), TransferError::Io(libc::EIO));
    assert_eq!(write(Fault::Dead(libc::EROFS)), TransferError::Io(libc::EROFS));
    let asked = 4096 + 8192;
    assert_eq!(write(Fault::Short), TransferError::Short { asked, done: asked / 2 });
}

/// The kernel may drop what it could not write and then say that all is well: we do not believe it.
#[test]
fn after_a_failed_sync_a_segment_is_never_called_durable() {
    let (log, _) = on_faulty(operations_of_opening() + 5, Fault::Errno(libc::EIO));
    log.open(0, 1).unwrap();
    log.write(1, place(0, 1, 0)).unwrap();
    assert_eq!(log.log.sync(), Err(TransferError::Io(libc::EIO)));
    assert_eq!(log.log.sync(), Err(TransferError::Io(libc::EIO)));
    log.write(2, place(0, 1, 1)).unwrap_err();
    log.seal(0, 1).unwrap_err();
    assert_eq!(log.read(1, place(0, 1, 0)), Ok(payload(1)), "what can be read and verified is served");
    log.open(0, 2).unwrap();
    log.write(2, place(0, 2, 1)).unwrap();
    assert_eq!(log.log.sync(), Ok(()));
}

#[test]
fn opening_fails_with_a_typed_error() {
    for k in 0..operations_of_opening() {
        let arena = arena(1);
        let open = |fault| {
            let store = Arc::new(FaultyStore::new(MemStore::new(), k, fault));
            let first = Segments::open(Arc::clone(&store) as _, Arc::clone(&arena), CONFIG).err();
            // Whatever failed, the next opening works.
            Segments::open(store, Arc::clone(&arena), CONFIG).unwrap_or_else(|e| panic!("{k}: {e}"));
            first
        };
        let full = open(Fault::Errno(libc::ENOSPC));
        assert!(matches!(full, None | Some(NvmeError::NoSpace { .. } | NvmeError::Io { .. })), "{full:?}");
    }
}

#[test]
fn a_dead_disk_answers_every_job() {
    let (log, _) = on_faulty(operations_of_opening() + 7, Fault::Dead(libc::EIO));
    let mut jobs = vec![log.job(
        Op::OpenSegment { segment: SegmentId(0), generation: kv_core::units::Generation(1) },
        Urgency::WriteBack,
    )];
    for n in 0..40 {
        let at = place(n % 2, 1, n % 3);
        let (host, record) = (kv_core::ids::SlotId(n % 4), meta(u64::from(n), at));
        jobs.push(log.job(Op::Write { host, place: at, record }, Urgency::WriteBack));
        jobs.push(log.job(Op::Read { place: at, host, expect: record.identity }, Urgency::Demand));
    }
    log.log.submit(&jobs);
    log.log.close();
    let rest = log.ledger.rest();
    assert_eq!(rest.len(), jobs.len());
    assert!(rest.values().all(|results| results.len() == 1));
}

#[test]
fn a_log_made_with_other_sizes_is_refused_with_advice() {
    let store: Arc<dyn SegmentStore> = Arc::new(MemStore::new());
    let open = |slots: &Arc<Arena>, segments, records, mode| {
        Segments::open(Arc::clone(&store), Arc::clone(slots), config(segments, records, mode)).map(|(_, r)| r)
    };
    let usual = arena(1);
    open(&usual, 3, 4, OpenMode::Recover).unwrap();
    let other = Arena::new(kv_tiers::arena::ArenaConfig::new(1, 4096)).unwrap();
    for mode in [OpenMode::Recover, OpenMode::Strict] {
        let geometry = open(&usual, 3, 5, mode).unwrap_err();
        assert!(matches!(geometry, NvmeError::Geometry { found_records: 4, wanted_records: 5, .. }));
        assert!(geometry.to_string().contains("delete"));
        assert!(matches!(open(&other, 3, 4, mode), Err(NvmeError::Geometry { found_payload: 5000, .. })));
        assert!(matches!(open(&usual, 0, 4, mode), Err(NvmeError::Shape { .. })));
    }
    assert_eq!(open(&usual, 5, 4, OpenMode::Strict).unwrap().segments.len(), 5, "a log may grow");
    let shrunk = open(&usual, 3, 4, OpenMode::Strict);
    assert!(matches!(shrunk, Err(NvmeError::Shrunk { found: 5, wanted: 3 })));
    assert_eq!(open(&usual, 3, 4, OpenMode::Recover).unwrap().segments.len(), 3, "and shrink");
    assert_eq!(store.segments().unwrap().len(), 3);
    assert_eq!(open(&other, 2, 9, OpenMode::Fresh).unwrap().segments.len(), 2);
    assert_eq!(store.segments().unwrap().len(), 2, "nothing of the old one is left");

    store.replace_superblock(&[1; 8192]).unwrap();
    assert!(matches!(open(&other, 2, 9, OpenMode::Recover), Err(NvmeError::Superblock)));
    open(&other, 2, 9, OpenMode::Fresh).unwrap();
}

#[test]
fn strict_mode_refuses_what_recover_mode_drops() {
    let arena = arena(2);
    let store = Arc::new(MemStore::new());
    let open = |mode| Segments::open(Arc::clone(&store) as _, Arc::clone(&arena), config(2, 3, mode));
    let (segments, _) = open(OpenMode::Strict).unwrap();
    let log = Direct { segments, arena: Arc::clone(&arena) };
    log.open(0, 1).unwrap();
    log.write(1, place(0, 1, 0)).unwrap();
    log.write(2, place(0, 1, 1)).unwrap();
    drop(log);
    store.flip_bit(8 * (8192 + 4096 + 77));
    match open(OpenMode::Strict) {
        Err(NvmeError::Damaged { count: 1, first }) => {
            assert_eq!(first.to_string(), "segment 0 at byte 8192: record torn or its payload damaged");
        }
        other => panic!("{:?}", other.map(|(_, r)| r)),
    }
    let (segments, recovery) = open(OpenMode::Recover).unwrap();
    let log = Direct { segments, arena: Arc::clone(&arena) };
    assert_eq!(log.check_all(&recovery.records), [(2, place(0, 1, 1))]);
    assert_eq!(recovery.damaged.len(), 1);
}
