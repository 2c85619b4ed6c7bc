//! The engine on real files and on stores that fail: it keeps serving, no wrong byte is served, and the tier
//! comes back into use when the fault is over.
//!
//! The tests on mounted filesystems need root and a loop device. Without, they say so and do nothing:
//! the planned faults below give the same errors (`ENOSPC`, `EROFS`, `EIO`) to every single operation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::ids::JobId;
use kv_core::job::{Job, TransferError};
use kv_core::key::BlockKey;
use kv_core::planner::Planner;
use kv_core::policy::PolicyKind;
use kv_core::tier::Tier;
use kv_core::units::Nanos;
use kv_cuda::DeviceChoice;
use kv_tiers::arena::{Arena, ArenaConfig};
use kv_tiers::engine::{Clock, Engine, EngineConfig, Hand, Inbox, OpenError};
use kv_tiers::nvme::{
    Fault, FaultyStore, LogConfig, MemStore, NvmeConfig, NvmeError, NvmeLog, OpenMode, SegmentStore,
};
use kvtier_tests::chains::chain;
use kvtier_tests::runtime::{LONG, Runtime};
use parking_lot::RwLock;
use tempfile::TempDir;

const BLOCK: usize = 60_000;

fn config(dir: &Path, segments: u32, records_per_segment: u32, host_slots: u32) -> EngineConfig {
    let log = LogConfig { segments, records_per_segment, mode: OpenMode::Recover };
    EngineConfig {
        block_bytes: BLOCK,
        hbm: None,
        device: DeviceChoice::Host,
        host_slots,
        nvme: Some(NvmeConfig { queue_depth: Some(8), ..NvmeConfig::new(dir, log) }),
        policy: PolicyKind::Lru,
        nvme_budget: None,
        max_write_backs: 8,
        slow: None,
    }
}

/// Serves conversations of four blocks each, one after the other.
fn serve(runtime: &Runtime, conversations: std::ops::Range<u64>) {
    for conversation in conversations {
        runtime.serve(&chain(conversation, 4));
        runtime.engine.quiesce(LONG).unwrap();
    }
}

// ---- planned faults ---------------------------------------------------------------------------------

/// An NVMe log in a store, as the engine's only hand.
struct LogHand(RwLock<Option<NvmeLog>>);

impl Hand for LogHand {
    fn submit(&self, jobs: Vec<Job>) -> Vec<(JobId, TransferError)> {
        match &*self.0.read() {
            Some(log) => {
                log.submit(&jobs);
                Vec::new()
            }
            None => jobs.iter().map(|job| (job.id, TransferError::Down)).collect(),
        }
    }

    fn sync(&self) -> Result<(), TransferError> {
        self.0.read().as_ref().map_or(Ok(()), NvmeLog::sync)
    }

    fn close(&self) {
        let log = self.0.write().take();
        if let Some(log) = log {
            log.close();
        }
    }
}

/// An engine on simulated time whose log is in `store`; and the keys of what it found there.
fn engine_on(store: Arc<dyn SegmentStore>) -> Result<(Runtime, Vec<BlockKey>), NvmeError> {
    engine_of(store, 8, 6)
}

/// As [`engine_on`], with a log of so many segments and records.
fn engine_of(
    store: Arc<dyn SegmentStore>,
    segments: u32,
    records_per_segment: u32,
) -> Result<(Runtime, Vec<BlockKey>), NvmeError> {
    let config =
        EngineConfig { block_bytes: 4000, ..config(Path::new(""), segments, records_per_segment, 10) };
    let log = config.nvme.as_ref().unwrap().log;
    let arena = Arena::new(ArenaConfig::new(config.host_slots, config.block_bytes)).unwrap();
    let mut planner = Planner::new(config.planner()).unwrap();
    let inbox = Arc::new(Inbox::default());
    let (log, recovery) = NvmeLog::with_store(store, log, 2, arena.clone(), inbox.clone())?;
    planner.restore(&recovery.segments, &recovery.records);
    let keys = recovery.records.iter().map(|record| record.meta.identity.key).collect();
    let hands = Arc::new(LogHand(RwLock::new(Some(log))));
    Ok((Runtime::new(Engine::assemble(planner, arena, hands, Clock::simulated(), &inbox), None), keys))
}

/// More than fits into host RAM, so that most loads come from NVMe, and more than fits into the log.
fn script(runtime: &Runtime) {
    for round in 0..4 {
        serve(runtime, 4 * round..4 * round + 5);
        // Fails when the fault hits it. What it does not promise nobody relies upon.
        let _may_fail = runtime.engine.flush();
        serve(runtime, 4 * round..4 * round + 3);
    }
    runtime.engine.audit().unwrap();
}

/// Sees to it that new blocks get to NVMe and come back from there, once every pause has ended.
fn in_use_again(runtime: &Runtime) {
    let engine = &runtime.engine;
    let before = engine.stats();
    for conversation in (100..112).chain(106..109) {
        // Writes are suspended for up to a minute when they keep failing.
        engine.clock().advance_to(engine.clock().now() + Nanos::from_millis(60_000));
        engine.tick();
        serve(runtime, conversation..conversation + 1);
    }
    let after = engine.stats();
    assert!(after.nvme_writes > before.nvme_writes + 8, "{before:?} {after:?}");
    assert!(after.hits[Tier::Nvme] > before.hits[Tier::Nvme], "{before:?} {after:?}");
    assert_eq!(after.failed_loads + after.refused_loads, before.failed_loads + before.refused_loads);
    engine.audit().unwrap();
}

/// A shutdown may not promise durability after a failed sync; nothing else may go wrong in it.
fn shut_down(runtime: Runtime) {
    let closed = runtime.engine.shutdown(LONG);
    assert!(matches!(closed, Ok(()) | Err(kv_tiers::engine::EngineError::Sync(_))), "{closed:?}");
}

/// Operations that the script asks of the store, opening included.
fn operations() -> u64 {
    let store = Arc::new(FaultyStore::new(MemStore::new(), u64::MAX, Fault::Errno(libc::EIO)));
    let (runtime, _) = engine_on(store.clone()).unwrap();
    script(&runtime);
    let stats = runtime.engine.stats();
    assert!(
        stats.nvme_writes > 40 && stats.hits[Tier::Nvme] > 10,
        "the script exercises the tier: {stats:?}"
    );
    assert_eq!(stats.failed_writes + stats.failed_loads + stats.refused_loads + stats.lost, 0, "{stats:?}");
    let operations = store.operations();
    in_use_again(&runtime);
    shut_down(runtime);
    operations
}

/// One operation fails, or lies, and the disk is well again.
#[test]
fn after_any_single_fault_the_tier_is_used_again() {
    let operations = operations();
    let (mut opened, mut failed) = (0, 0);
    for k in 0..operations {
        let faults = [
            Fault::Errno(libc::EIO),
            Fault::Errno(libc::ENOSPC),
            Fault::Errno(libc::EROFS),
            Fault::Short,
            Fault::FlipBit(k * 7919),
        ];
        for fault in faults {
            let store = Arc::new(FaultyStore::new(MemStore::new(), k, fault));
            let runtime = match engine_on(store.clone()) {
                Ok((runtime, _)) => {
                    opened += 1;
                    runtime
                }
                // The fault hit the opening: it says so, and the next attempt works.
                Err(_) => {
                    engine_on(store.clone()).unwrap_or_else(|e| panic!("operation {k}, {fault:?}: {e}")).0
                }
            };
            script(&runtime);
            let stats = runtime.engine.stats();
            failed += stats.failed_writes + stats.failed_loads + stats.refused_loads;
            in_use_again(&runtime);
            shut_down(runtime);
            // What is on the disk now is served right, too.
            let (runtime, keys) = engine_on(store).unwrap();
            assert!(keys.len() > 8, "operation {k}, {fault:?}: {} records", keys.len());
            for key in &keys {
                runtime.read(&[*key]);
            }
            runtime.engine.audit().unwrap();
        }
    }
    println!(
        "{operations} operations, 5 faults each: {opened} logs opened in spite of it, {failed} jobs failed"
    );
    assert!(failed > operations, "most faults hit something");
}

/// After a sync that failed nothing of its segment can be called durable, so the log takes no more records
/// for it. That must not stop writing for longer than one pause, however large the segment.
#[test]
fn a_failed_flush_costs_one_segment_and_no_more() {
    let store = Arc::new(FaultyStore::new(MemStore::new(), u64::MAX, Fault::Errno(libc::EIO)));
    let (runtime, _) = engine_of(store.clone(), 4, 1000).unwrap();
    serve(&runtime, 0..6);
    store.spoil_next();
    assert!(runtime.engine.flush().is_err());
    let before = runtime.engine.stats();
    for conversation in 10..16 {
        serve(&runtime, conversation..conversation + 1);
        let clock = runtime.engine.clock();
        clock.advance_to(clock.now() + Nanos::from_millis(1000));
        runtime.engine.tick();
    }
    runtime.engine.quiesce(LONG).unwrap();
    let after = runtime.engine.stats();
    assert!(
        after.failed_writes > before.failed_writes && after.nvme_writes >= before.nvme_writes + 8,
        "{after:?}"
    );
    runtime
        .engine
        .flush()
        .expect_err("what was written before the failure may be gone after a power failure");
    serve(&runtime, 0..3);
    assert!(
        runtime.engine.stats().hits[Tier::Nvme] >= 8,
        "and is served for now: {:?}",
        runtime.engine.stats()
    );
    runtime.engine.audit().unwrap();
    shut_down(runtime);
}

/// The disk dies at operation k. The rest goes on without it, and what it held is there when it is back.
#[test]
fn after_the_disk_is_gone_the_engine_goes_on_without_it() {
    let operations = operations();
    let (mut served, mut recovered) = (0, 0);
    for k in 0..operations {
        let store = Arc::new(FaultyStore::new(MemStore::new(), k, Fault::Dead(libc::EIO)));
        // Opening needs a disk.
        if let Ok((runtime, _)) = engine_on(store.clone()) {
            script(&runtime);
            runtime.serve(&chain(100, 4));
            assert_eq!(
                runtime.serve(&chain(100, 4)).hits[Tier::Host],
                4,
                "operation {k}: host RAM still caches"
            );
            served += 1;
            shut_down(runtime);
        }
        // The same bytes on a disk that works.
        let disk = Arc::new(store.inner().cut(usize::MAX, 0));
        let (runtime, keys) = engine_on(disk).unwrap_or_else(|e| panic!("operation {k}: {e}"));
        let gone = keys.iter().filter(|key| runtime.read(&[**key]).ready == 0).count() as u64;
        let stats = runtime.engine.stats();
        assert_eq!(
            (stats.failed_loads, stats.refused_loads),
            (0, 0),
            "operation {k}: recovery promised too much"
        );
        // A full log makes room ahead of the next write.
        assert!(gone <= stats.evictions[Tier::Nvme], "operation {k}: {gone} of {} are gone", keys.len());
        recovered += keys.len();
        in_use_again(&runtime);
        shut_down(runtime);
    }
    println!(
        "the disk died at each of {operations} operations: {served} engines went on; {recovered} records found"
    );
    assert!(served > operations / 2 && recovered as u64 > operations);
}

// ---- real files -------------------------------------------------------------------------------------

#[test]
fn a_directory_that_is_missing_or_none_is_a_typed_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for path in [dir.path().join("missing"), file] {
        match Engine::open(&config(&path, 4, 4, 8)) {
            Err(OpenError::Nvme(NvmeError::NoDirectory(named))) => assert_eq!(named, path),
            other => panic!("{:?}", other.map(|_| "opened")),
        }
    }
}

/// The directory disappears under a running engine; another engine gets a new one in its place.
#[test]
fn a_directory_that_vanishes_stops_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("log");
    std::fs::create_dir(&dir).unwrap();
    let config = config(&dir, 6, 16, 16);
    let runtime = Runtime::new(Engine::open(&config).unwrap().engine, None);
    serve(&runtime, 0..10);
    std::fs::remove_dir_all(&dir).unwrap();
    serve(&runtime, 0..40);
    let stats = runtime.engine.stats();
    assert!(stats.hits[Tier::Nvme] > 0, "the files are open: they are used on, {stats:?}");
    runtime.engine.audit().unwrap();
    assert!(matches!(Engine::open(&config), Err(OpenError::Nvme(NvmeError::NoDirectory(_)))));
    std::fs::create_dir(&dir).unwrap();
    let opened = Engine::open(&config).unwrap();
    assert_eq!(opened.served, 0);
    serve(&Runtime::new(opened.engine, None), 0..10);
    shut_down(runtime);
}

/// A mounted filesystem, unmounted at the end.
struct Mount {
    at: PathBuf,
    /// Removed after unmounting.
    _dir: TempDir,
}

impl Mount {
    /// `None`, with a loud word, when this process may not mount.
    fn new(options: &[&str], what: &Path) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        if sh("mount", &[options, &[what.to_str().unwrap(), at.to_str().unwrap()]].concat()) {
            return Some(Self { at, _dir: dir });
        }
        eprintln!("\n*** NOT TESTED on this machine: mount {options:?} is not allowed or not possible ***\n");
        None
    }

    fn tmpfs(options: &str) -> Option<Self> {
        Self::new(&["-t", "tmpfs", "-o", options], Path::new("kvtier-test"))
    }

    /// An ext4 filesystem in a sparse file of `bytes` on `below`, which may have less room than that.
    fn ext4_on(below: &Self, bytes: u64) -> Option<Self> {
        let image = below.at.join("image");
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let quick = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard"];
        if !sh("mkfs.ext4", &[&quick, &[image.to_str().unwrap()][..]].concat()) {
            eprintln!("\n*** NOT TESTED on this machine: mkfs.ext4 does not work ***\n");
            return None;
        }
        Self::new(&["-o", "loop"], &image)
    }

    fn remount(&self, options: &str) -> bool {
        sh("mount", &["-o", &format!("remount,{options}"), self.at.to_str().unwrap()])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        sh("umount", &["--lazy", self.at.to_str().unwrap()]);
    }
}

fn sh(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|out| out.status.success())
}

#[test]
fn a_full_filesystem_is_a_typed_error_and_opens_when_there_is_room() {
    let Some(mount) = Mount::tmpfs("size=2m") else { return };
    let config = config(&mount.at, 4, 16, 16);
    match Engine::open(&config) {
        Err(OpenError::Nvme(NvmeError::NoSpace { segment_bytes })) => {
            assert!(segment_bytes > 16 * BLOCK as u64)
        }
        other => panic!("{:?}", other.map(|_| "opened")),
    }
    assert!(mount.remount("size=64m"));
    let runtime = Runtime::new(Engine::open(&config).unwrap().engine, None);
    serve(&runtime, 0..12);
    serve(&runtime, 0..12);
    assert!(runtime.engine.stats().hits[Tier::Nvme] > 0);
    shut_down(runtime);
}

#[test]
fn a_read_only_filesystem_is_a_typed_error() {
    let Some(mount) = Mount::tmpfs("size=64m") else { return };
    let config = config(&mount.at, 4, 16, 16);
    let runtime = Runtime::new(Engine::open(&config).unwrap().engine, None);
    serve(&runtime, 0..6);
    shut_down(runtime);
    assert!(mount.remount("ro"));
    match Engine::open(&config) {
        Err(OpenError::Nvme(NvmeError::ReadOnly(named))) => assert_eq!(named, mount.at),
        other => panic!("{:?}", other.map(|_| "opened")),
    }
    assert!(mount.remount("rw"));
    assert!(Engine::open(&config).unwrap().served > 0, "and nothing was lost by trying");
}

/// The disk below the filesystem runs out of room in the middle of a run, as thin-provisioned volumes do,
/// and is given more.
#[test]
fn a_disk_that_fills_up_is_used_again_when_it_has_room() {
    let Some(below) = Mount::tmpfs("size=24m") else { return };
    let Some(disk) = Mount::ext4_on(&below, 256 << 20) else { return };
    let config = config(&disk.at, 16, 64, 32);
    let runtime = Runtime::new(Engine::open(&config).unwrap().engine, None);
    let failed = || runtime.engine.stats().failed_writes;
    let mut next = 0;
    while failed() == 0 && next < 500 {
        serve(&runtime, next..next + 1);
        next += 1;
    }
    assert!(failed() > 0, "the disk is full: {:?}", runtime.engine.stats());
    // Everything that was stored is still served, or a miss; `serve` compares it.
    serve(&runtime, 0..next);
    assert!(runtime.engine.stats().hits[Tier::Nvme] > 0, "{:?}", runtime.engine.stats());

    assert!(below.remount("size=400m"));
    let (before, end) = (runtime.engine.stats().nvme_writes, Instant::now() + LONG);
    while runtime.engine.stats().nvme_writes < before + 50 && Instant::now() < end {
        serve(&runtime, next..next + 4);
        next += 4;
        // Writes are suspended for a while after they kept failing.
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(runtime.engine.stats().nvme_writes >= before + 50, "{:?}", runtime.engine.stats());
    runtime.engine.audit().unwrap();
    shut_down(runtime);
}

/// The kernel turns the filesystem read-only under a running engine, as it does after an error of its own.
#[test]
fn a_filesystem_that_turns_read_only_is_still_read() {
    let Some(below) = Mount::tmpfs("size=200m") else { return };
    let Some(disk) = Mount::ext4_on(&below, 128 << 20) else { return };
    let config = config(&disk.at, 8, 64, 32);
    let runtime = Runtime::new(Engine::open(&config).unwrap().engine, None);
    serve(&runtime, 0..40);
    if !disk.remount("abort") && !disk.remount("ro") {
        eprintln!(
            "\n*** NOT TESTED on this machine: a filesystem that turns read-only under its users ***\n"
        );
        return;
    }
    let before = runtime.engine.stats();
    serve(&runtime, 0..80);
    let after = runtime.engine.stats();
    assert!(after.hits[Tier::Nvme] > before.hits[Tier::Nvme], "{after:?}");
    assert_eq!((after.failed_loads, after.refused_loads), (0, 0), "{after:?}");
    assert!(after.failed_writes > 0, "{after:?}");
    runtime.engine.audit().unwrap();
    shut_down(runtime);
}
