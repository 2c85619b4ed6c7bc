//! The log is cut at every write, and at every sector of every write. Whatever recovery serves is exactly what
//! was stored, and what was made durable is there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are not themselves tests

mod common;

use std::sync::Arc;

use common::{Direct, Hands, arena, config, payload, place};
use kv_core::job::Place;
use kv_tiers::arena::Arena;
use kv_tiers::nvme::{MemStore, OpenMode, Recovery, SegmentStore, Segments};
use proptest::prelude::*;

const SEGMENTS: u32 = 3;
const RECORDS: u32 = 3;

fn recover(store: &Arc<MemStore>, arena: &Arc<Arena>, mode: OpenMode) -> (Direct, Recovery) {
    let store: Arc<dyn SegmentStore> = Arc::clone(store) as _;
    let (segments, recovery) =
        Segments::open(store, Arc::clone(arena), config(SEGMENTS, RECORDS, mode)).unwrap();
    (Direct { segments, arena: Arc::clone(arena) }, recovery)
}

/// A record, and between which changes of the store it had to be what.
#[derive(Debug)]
struct Stored {
    block: u64,
    place: Place,
    /// Its write was not begun before this change.
    begun: usize,
    /// It is durable from this change on.
    durable: Option<usize>,
    /// Its segment's next life begins, and is certain.
    dropping: Option<usize>,
    dropped: Option<usize>,
}

/// A log that notes what must be true after which change.
struct Script {
    store: Arc<MemStore>,
    log: Direct,
    stored: Vec<Stored>,
}

impl Script {
    fn open(&mut self, segment: u32, generation: u64) {
        let before = self.store.changes();
        self.log.open(segment, generation).unwrap();
        let after = self.store.changes();
        for s in self.stored.iter_mut().filter(|s| s.place.segment.0 == segment && s.dropping.is_none()) {
            (s.dropping, s.dropped) = (Some(before), Some(after));
        }
    }
    fn write(&mut self, place: Place) {
        let (block, begun) = (self.stored.len() as u64 + 1, self.store.changes());
        self.log.write(block, place).unwrap();
        self.stored.push(Stored { block, place, begun, durable: None, dropping: None, dropped: None });
    }
    fn durable(&mut self, which: impl Fn(&Stored) -> bool) {
        let now = self.store.changes();
        self.stored
            .iter_mut()
            .filter(|s| s.durable.is_none() && which(s))
            .for_each(|s| s.durable = Some(now));
    }
    fn sync(&mut self) {
        self.log.segments.sync().unwrap();
        self.durable(|_| true);
    }
    fn seal(&mut self, segment: u32, generation: u64) {
        self.log.seal(segment, generation).unwrap();
        self.durable(|s| s.place.segment.0 == segment);
    }
}

/// Opens, fills, syncs, seals and reuses three segments of three records.
fn script(arena: &Arc<Arena>) -> Script {
    let store = Arc::new(MemStore::recording());
    let (log, _) = recover(&store, arena, OpenMode::Recover);
    let mut s = Script { store, log, stored: Vec::new() };
    s.open(0, 1);
    s.write(place(0, 1, 0));
    s.write(place(0, 1, 1));
    s.sync();
    s.write(place(0, 1, 2));
    s.seal(0, 1);
    s.open(1, 1);
    s.write(place(1, 1, 2));
    s.write(place(1, 1, 0));
    s.sync();
    s.open(0, 2);
    s.write(place(0, 2, 0));
    s.sync();
    s.open(2, 7);
    s.write(place(2, 7, 1));
    s.seal(2, 7);
    s.write(place(1, 1, 1));
    s.seal(1, 1);
    s.open(1, 2);
    s.write(place(1, 2, 0));
    s.write(place(0, 2, 1));
    s.sync();
    s.open(2, 8);
    s
}

/// What must hold of a store that stopped after `changes` changes and `torn` sectors of the next.
fn check(script: &Script, store: &Arc<MemStore>, changes: usize, torn: usize, what: &str) {
    let begun = changes + usize::from(torn > 0);
    let (log, recovery) = recover(store, &script.log.arena, OpenMode::Recover);
    let found = log.check_all(&recovery.records);
    for (block, at) in &found {
        let s = script.stored.iter().find(|s| s.block == *block).unwrap();
        assert_eq!(s.place, *at, "{what}");
        assert!(s.begun < begun, "{what}: {s:?} comes from the future");
        assert!(s.dropped.is_none_or(|d| d > changes), "{what}: {s:?} was resurrected");
    }
    for s in &script.stored {
        let due = s.durable.is_some_and(|d| d <= changes) && s.dropping.is_none_or(|d| d >= begun);
        assert!(!due || found.contains(&(s.block, s.place)), "{what}: {s:?} was lost");
    }
    for segment in &recovery.segments {
        let occupied = recovery.records.iter().any(|r| r.place.segment == segment.segment);
        assert_eq!(segment.occupied, occupied);
    }
}

#[test]
fn every_prefix_of_the_writes_and_every_torn_sector() {
    let arena = arena(2);
    let script = script(&arena);
    let total = script.store.changes();
    let mut cuts = 0;
    for changes in 0..=total {
        for torn in 0..=script.store.sectors_of(changes) {
            let store = Arc::new(script.store.cut(changes, torn));
            check(
                &script,
                &store,
                changes,
                torn,
                &format!("cut after {changes}, {torn} sectors of the next"),
            );
            cuts += 1;
        }
    }
    assert!(cuts > 300, "{cuts} cuts");
}

#[test]
fn a_power_failure_after_any_change_keeps_any_sectors_of_what_was_not_synced() {
    let arena = arena(2);
    let script = script(&arena);
    for changes in 0..=script.store.changes() {
        for seed in 0..48 {
            let store = Arc::new(script.store.cut(changes, 0).crash(seed));
            check(&script, &store, changes, 0, &format!("power failure after {changes}, seed {seed}"));
        }
    }
}

/// Recovery itself is cut at every sector of what it writes.
#[test]
fn recovery_may_crash_too() {
    let arena = arena(2);
    let script = script(&arena);
    let mut repairs = 0;
    for changes in 0..=script.store.changes() {
        for torn in 0..=script.store.sectors_of(changes).min(9) {
            let store = Arc::new(script.store.cut(changes, torn));
            store.record();
            recover(&store, &arena, OpenMode::Recover);
            for again in 0..store.changes() {
                for sectors in 0..=store.sectors_of(again) {
                    let what =
                        format!("cut after {changes}, {torn} sectors, and {again}, {sectors} of recovery");
                    check(&script, &Arc::new(store.cut(again, sectors)), changes, torn, &what);
                    repairs += 1;
                }
            }
        }
    }
    assert!(repairs > 100, "{repairs} cuts of recoveries");
}

/// A page of a header goes bad, and then recovery crashes while it repairs it.
#[test]
fn repairing_a_header_never_endangers_the_good_copy() {
    let arena = arena(2);
    for bad in [0, 4096] {
        let store = Arc::new(MemStore::new());
        let (log, _) = recover(&store, &arena, OpenMode::Recover);
        log.open(0, 3).unwrap();
        log.write(1, place(0, 3, 0)).unwrap();
        log.seal(0, 3).unwrap();
        store.write_at(place(0, 3, 0).segment, bad, &[0xFF; 4096]).unwrap();
        store.record();
        recover(&store, &arena, OpenMode::Recover);
        assert!(store.changes() > 0);
        for changes in 0..=store.changes() {
            for torn in 0..=store.sectors_of(changes) {
                let store = Arc::new(store.cut(changes, torn));
                let (log, recovery) = recover(&store, &arena, OpenMode::Recover);
                assert_eq!(log.check_all(&recovery.records), [(1, place(0, 3, 0))]);
            }
        }
    }
}

/// A log that recovered goes on: it can be written, and nothing of its earlier lives shows up later.
#[test]
fn life_goes_on_after_a_power_failure() {
    let arena = arena(2);
    let script = script(&arena);
    for changes in 0..=script.store.changes() {
        let store = Arc::new(script.store.cut(changes, 0).crash(changes as u64 + 2));
        let (log, recovery) = recover(&store, &arena, OpenMode::Recover);
        let mut expected = Vec::new();
        for (n, segment) in recovery.segments.iter().enumerate() {
            let (block, at) = (1000 + n as u64, place(n as u32, segment.generation.0 + 1, 2));
            log.open(n as u32, segment.generation.0 + 1).unwrap();
            log.write(block, at).unwrap();
            expected.push((block, at));
        }
        log.segments.sync().unwrap();
        drop(log);
        let store = Arc::new(store.crash(1));
        let (log, recovery) = recover(&store, &arena, OpenMode::Recover);
        assert_eq!(log.check_all(&recovery.records), expected);
    }
}

#[test]
fn an_old_life_never_comes_back() {
    let arena = arena(2);
    let store = Arc::new(MemStore::new());
    let (log, _) = recover(&store, &arena, OpenMode::Recover);
    for generation in 1..6 {
        log.open(0, generation).unwrap();
        log.write(generation, place(0, generation, (generation % 3) as u32)).unwrap();
        for old in 1..generation {
            log.read(old, place(0, old, (old % 3) as u32)).unwrap_err();
        }
        log.seal(0, generation).unwrap();
        let (again, recovery) = recover(&Arc::new(store.crash(1)), &arena, OpenMode::Recover);
        assert_eq!(again.check_all(&recovery.records).len(), 1);
        assert_eq!(recovery.segments[0].generation.0, generation);
    }
    log.open(0, 5).unwrap_err();
    log.open(0, 3).unwrap_err();
    drop(log);

    let (fresh, recovery) = recover(&store, &arena, OpenMode::Fresh);
    assert!(recovery.records.is_empty() && recovery.segments.iter().all(|s| !s.occupied));
    assert!(recovery.segments.iter().all(|s| s.generation.0 >= 5), "above every old one");
    fresh.open(0, 6).unwrap();
    drop(fresh);
    let (again, recovery) = recover(&store, &arena, OpenMode::Strict);
    assert!(recovery.records.is_empty());
    again.read(5, place(0, 5, 2)).unwrap_err();
}

/// Even if the new log counts as the old one did: the old records carry another log id.
#[test]
fn a_fresh_log_cannot_see_old_records_of_the_same_generation() {
    let arena = arena(2);
    let store = Arc::new(MemStore::recording());
    let (log, _) = recover(&store, &arena, OpenMode::Recover);
    log.open(0, 1).unwrap();
    log.write(1, place(0, 1, 0)).unwrap();
    log.seal(0, 1).unwrap();
    // Both header copies unreadable, so that Fresh cannot see the old generation.
    let zeros = vec![0; 8192];
    store.write_at(place(0, 1, 0).segment, 0, &zeros).unwrap();
    let (fresh, recovery) = recover(&store, &arena, OpenMode::Fresh);
    assert_eq!(recovery.segments[0].generation.0, 0);
    fresh.open(0, 1).unwrap();
    fresh.read(1, place(0, 1, 0)).unwrap_err();
    let (_, recovery) = recover(&store, &arena, OpenMode::Recover);
    assert!(recovery.records.is_empty());
}

#[test]
fn a_segment_with_an_unreadable_header_skips_generations() {
    let arena = arena(2);
    let store = Arc::new(MemStore::new());
    let (log, _) = recover(&store, &arena, OpenMode::Recover);
    log.open(0, 9).unwrap();
    log.write(1, place(0, 9, 0)).unwrap();
    log.open(1, 4).unwrap();
    log.write(2, place(1, 4, 0)).unwrap();
    log.segments.sync().unwrap();
    store.write_at(place(0, 9, 0).segment, 0, &[0xFF; 8192]).unwrap();
    let (log, recovery) = recover(&store, &arena, OpenMode::Recover);
    assert_eq!(log.check_all(&recovery.records), [(2, place(1, 4, 0))]);
    assert_eq!(recovery.damaged.len(), 2);
    assert!(recovery.segments[0].generation.0 > 1 << 32);
    let next = recovery.segments[0].generation.0 + 1;
    log.open(0, next).unwrap();
    log.write(3, place(0, next, 1)).unwrap();
    let (log, recovery) = recover(&store, &arena, OpenMode::Strict);
    assert_eq!(log.check_all(&recovery.records), [(3, place(0, next, 1)), (2, place(1, 4, 0))]);
}

/// More records than recovery reads at once.
#[test]
fn a_long_open_segment_is_read_to_its_end_and_no_further() {
    let arena = arena(2);
    let store: Arc<dyn SegmentStore> = Arc::new(MemStore::new());
    let open = || Segments::open(Arc::clone(&store), Arc::clone(&arena), config(1, 700, OpenMode::Strict));
    let log = Direct { segments: open().unwrap().0, arena: Arc::clone(&arena) };
    log.open(0, 1).unwrap();
    let expected = [0, 340, 341, 342, 698, 699].map(|index| (u64::from(index), place(0, 1, index)));
    expected.iter().for_each(|(block, at)| log.write(*block, *at).unwrap());
    let (segments, recovery) = open().unwrap();
    let log = Direct { segments, arena: Arc::clone(&arena) };
    assert_eq!(log.check_all(&recovery.records), expected);
}

#[test]
fn an_open_segment_goes_on_where_it_was() {
    let arena = arena(2);
    let store = Arc::new(MemStore::new());
    let (log, _) = recover(&store, &arena, OpenMode::Recover);
    log.open(0, 1).unwrap();
    log.write(1, place(0, 1, 0)).unwrap();
    drop(log);
    let (log, _) = recover(&store, &arena, OpenMode::Recover);
    log.write(9, place(0, 1, 0)).unwrap_err();
    log.write(2, place(0, 1, 1)).unwrap();
    log.seal(0, 1).unwrap();
    log.write(3, place(0, 1, 2)).unwrap_err();
    let (log, recovery) = recover(&Arc::new(store.crash(1)), &arena, OpenMode::Strict);
    assert_eq!(log.check_all(&recovery.records), [(1, place(0, 1, 0)), (2, place(0, 1, 1))]);
    assert_eq!(log.read(1, place(0, 1, 0)).unwrap(), payload(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Random bits of a closed log flip. A load is the stored bytes or an error.
    #[test]
    fn flipped_bits_are_never_served(bits in prop::collection::vec(any::<u64>(), 1..24), near in any::<bool>()) {
        let arena = arena(2);
        let script = script(&arena);
        let store = Arc::new(script.store.cut(script.store.changes(), 0));
        for bit in bits {
            // Half of the time only headers, of which there are few.
            store.flip_bit(if near { bit % (8 * 8192) } else { bit });
        }
        let mode = config(SEGMENTS, RECORDS, OpenMode::Recover);
        if let Ok((segments, recovery)) = Segments::open(store, Arc::clone(&arena), mode) {
            let log = Direct { segments, arena: Arc::clone(&arena) };
            for r in &recovery.records {
                let s = script.stored.iter().find(|s| s.place == r.place && s.dropped.is_none());
                let s = s.expect("a record that was never stored, or dropped");
                prop_assert_eq!(r.meta, common::meta(s.block, s.place));
                if let Ok(read) = log.read(s.block, s.place) {
                    prop_assert_eq!(read, payload(s.block));
                }
            }
        }
    }
}
