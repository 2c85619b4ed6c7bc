//! The log on real files, the same suite for both backends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are not themselves tests

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{Driven, Hands, Ledger, PAYLOAD, arena, bytes, config, fill, meta, payload, place};
use kv_core::Mismatch;
use kv_core::ids::{SegmentId, SlotId};
use kv_core::job::{Job, Op, TransferError, Urgency};
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::{Epoch, Generation};
use kv_tiers::arena::Arena;
use kv_tiers::nvme::{
    Backend, Damage, DamageKind, LogConfig, NvmeConfig, NvmeError, NvmeLog, OpenMode, Recovery, SegmentState,
    inspect, scrub,
};

/// The backends of this machine. io_uring is in every kernel since 5.6, so its absence is said loudly.
fn backends() -> Vec<Backend> {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_in(dir.path(), config(1, 1, OpenMode::Recover), Backend::Uring, &arena(1));
    match opened {
        Ok((log, _)) => {
            assert_eq!(log.log.backend_name(), "uring");
            assert!(log.log.why().contains("registered"), "{}", log.log.why());
            vec![Backend::Uring, Backend::Pool]
        }
        Err(NvmeError::NoUring(why)) => {
            // Switched off, absent (ENOSYS) or forbidden (EPERM) is no bug of ours; anything else is.
            let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            let excused = why.contains("os error 1)") || why.contains("os error 38)");
            assert!(excused || disabled.trim() != "0", "the kernel has io_uring, but: {why}");
            eprintln!("\n*** io_uring IS NOT TESTED on this machine: {why} ***\n");
            vec![Backend::Pool]
        }
        Err(e) => panic!("{e}"),
    }
}

fn open_in(
    dir: &Path,
    log: LogConfig,
    backend: Backend,
    arena: &Arc<Arena>,
) -> Result<(Driven, Recovery), NvmeError> {
    let ledger = Arc::new(Ledger::default());
    let config = NvmeConfig { dir: dir.into(), log, backend, queue_depth: Some(8) };
    let (log, recovery) = NvmeLog::open(&config, Arc::clone(arena), Arc::clone(&ledger) as _)?;
    Ok((Driven::new(log, ledger, Arc::clone(arena)), recovery))
}

#[test]
fn records_come_back_as_they_were() {
    for backend in backends() {
        let dir = tempfile::tempdir().unwrap();
        let arena = arena(20);
        let (log, recovery) = open_in(dir.path(), config(3, 8, OpenMode::Recover), backend, &arena).unwrap();
        assert_eq!((recovery.records.len(), recovery.segments.len()), (0, 3));

        // A whole life of a segment in one batch: the log keeps its order.
        let mut jobs = Vec::new();
        for segment in 0..2 {
            let generation = Generation(1);
            let op = Op::OpenSegment { segment: SegmentId(segment), generation };
            jobs.push(log.job(op, Urgency::WriteBack));
            for index in 0..8 {
                let (n, host) = (u64::from(segment * 8 + index), SlotId(segment * 8 + index));
                fill(&arena, host, &payload(n));
                let place = place(segment, 1, index);
                jobs.push(log.job(Op::Write { host, place, record: meta(n, place) }, Urgency::WriteBack));
            }
            if segment == 0 {
                let op = Op::SealSegment { segment: SegmentId(segment), generation };
                jobs.push(log.job(op, Urgency::WriteBack));
            }
        }
        log.log.submit(&jobs);
        for job in &jobs {
            assert_eq!(log.ledger.wait(job.id), Ok(()), "{backend:?} {job:?}");
        }
        log.log.sync().unwrap();
        assert_eq!(log.seal(0, 1), Ok(()), "sealing again does no harm");

        let mut reads: Vec<(u64, Job)> = Vec::new();
        for n in 0..16u64 {
            let (at, host) = (place(n as u32 / 8, 1, n as u32 % 8), SlotId((n as u32 * 7 + 3) % 16));
            let op = Op::Read { place: at, host, expect: meta(n, at).identity };
            reads.push((n, log.job(op, if n % 2 == 0 { Urgency::Demand } else { Urgency::WriteBack })));
        }
        (0..16).for_each(|slot| fill(&arena, SlotId(slot), &[0; PAYLOAD]));
        log.log.submit(&reads.iter().map(|(_, job)| *job).collect::<Vec<_>>());
        for (n, job) in &reads {
            log.ledger.wait(job.id).unwrap();
            let Op::Read { host, .. } = job.op else { unreachable!() };
            assert_eq!(bytes(&arena, host), payload(*n));
        }
        log.log.close();

        let seen = inspect(dir.path()).unwrap();
        let states: Vec<_> = seen.segments.iter().map(|s| (s.state, s.generation, s.records)).collect();
        assert_eq!(
            states,
            [(SegmentState::Sealed, 1, 8), (SegmentState::Open, 1, 8), (SegmentState::Free, 0, 0)]
        );
        assert_eq!((seen.records, seen.wear_bytes), (16, 2 * seen.segment_bytes));
        assert!(seen.damaged.is_empty());
        let all: u64 = seen.namespaces.values().map(|n| n.records).sum();
        assert_eq!((all, seen.namespaces.len()), (16, 3));
        assert_eq!(seen.namespaces[&"00".repeat(16)].bytes, 6 * PAYLOAD as u64);
        assert!(serde_json::to_string(&seen).unwrap().contains("\"state\":\"sealed\""));

        let (log, recovery) = open_in(dir.path(), config(3, 8, OpenMode::Strict), backend, &arena).unwrap();
        let found = log.check_all(&recovery.records);
        assert_eq!(found, (0..16).map(|n| (n, place(n as u32 / 8, 1, n as u32 % 8))).collect::<Vec<_>>());
        assert_eq!(recovery.segments.iter().map(|s| s.occupied).collect::<Vec<_>>(), [true, true, false]);
    }
}

#[test]
fn scrubbing_finds_what_a_footer_cannot_tell() {
    let dir = tempfile::tempdir().unwrap();
    let arena = arena(4);
    let (log, _) = open_in(dir.path(), config(2, 4, OpenMode::Recover), Backend::Pool, &arena).unwrap();
    log.open(0, 1).unwrap();
    for index in 0..3 {
        log.write(u64::from(index), place(0, 1, index)).unwrap();
    }
    log.seal(0, 1).unwrap();
    log.log.close();
    let whole = inspect(dir.path()).unwrap();
    let mut done = Vec::new();
    assert_eq!(scrub(dir.path(), &mut |n| done.push(n)).unwrap(), whole);
    assert_eq!((whole.records, done), (3, vec![1, 2]));

    // A byte of the second record's payload; a record is a page and the padded payload.
    let record = 8192 + (4096 + 8192);
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("seg-00000.kvt")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[!payload(1)[9]], record + 4096 + 9).unwrap();
    assert_eq!(inspect(dir.path()).unwrap(), whole);
    let scrubbed = scrub(dir.path(), &mut |_| {}).unwrap();
    assert_eq!(scrubbed.records, 2);
    assert_eq!(scrubbed.damaged, [Damage { segment: 0, offset: record, what: DamageKind::Payload }]);
}

#[test]
fn what_was_not_asked_for_is_refused() {
    for backend in backends() {
        let dir = tempfile::tempdir().unwrap();
        let arena = arena(4);
        let (log, _) = open_in(dir.path(), config(2, 4, OpenMode::Recover), backend, &arena).unwrap();
        let at = place(1, 3, 2);
        log.open(1, 3).unwrap();
        log.write(5, at).unwrap();
        assert_eq!(log.read(5, at), Ok(payload(5)));

        let refused = Err(TransferError::Refused(Mismatch::Identity));
        let right = meta(5, at).identity;
        let mut wrong = [right; 5];
        wrong[0].namespace = NamespaceId([9; 16]);
        wrong[1].epoch = Epoch(99);
        wrong[2].fingerprint = Fingerprint([9; 16]);
        wrong[3].key = BlockKey::from_bytes([9; 16]);
        wrong[4].generation = Generation(2);
        for expect in wrong {
            assert_eq!(log.expect(at, expect), refused);
        }
        assert_eq!(log.read(5, place(1, 2, 2)), refused, "older life");
        assert_eq!(log.read(5, place(0, 3, 2)), refused, "other segment");
        assert_eq!(log.read(5, place(9, 3, 2)), refused, "no such segment");
        assert_eq!(log.read(5, place(1, 3, 4)), refused, "no such record");
        log.read(5, place(1, 3, 1)).unwrap_err();
        assert_eq!(log.write(6, place(0, 1, 0)), Err(Mismatch::Identity.into()), "not open");
        assert_eq!(log.write(6, place(1, 2, 0)), Err(Mismatch::Identity.into()), "other life");
        assert_eq!(log.write(6, at), Err(Mismatch::Identity.into()), "taken");
        assert_eq!(log.write(6, place(1, 3, u32::MAX)), Err(Mismatch::Identity.into()));
        assert_eq!(log.seal(0, 1), Err(Mismatch::Identity.into()));
        assert_eq!(log.open(1, 3), Err(Mismatch::Identity.into()));
        let no_slot = Op::Read { place: at, host: SlotId(4), expect: right };
        assert_eq!(log.run(no_slot), Err(TransferError::Io(libc::EBUSY)));
        let not_ours = Op::Onboard { host: SlotId(0), hbm: SlotId(0) };
        assert_eq!(log.run(not_ours), Err(TransferError::Io(libc::EINVAL)));

        log.open(1, 4).unwrap();
        assert_eq!(log.read(5, at), refused, "the segment has a new life");
    }
}

#[test]
fn damage_on_the_disk_is_a_miss() {
    use std::os::unix::fs::FileExt;
    for backend in backends() {
        let dir = tempfile::tempdir().unwrap();
        let arena = arena(2);
        let (log, _) = open_in(dir.path(), config(1, 4, OpenMode::Recover), backend, &arena).unwrap();
        log.open(0, 1).unwrap();
        (0..4).for_each(|n| log.write(n, place(0, 1, n as u32)).unwrap());
        let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("seg-00000.kvt")).unwrap();
        let stride = 4096 + 8192;
        file.write_at(&[0xAB], 8192 + 40).unwrap();
        file.write_at(&[0xAB], 8192 + stride + 4096 + 4999).unwrap();
        file.write_at(&[0xAB], 8192 + 2 * stride + 4096 + 5000).unwrap(); // padding is nobody's
        assert_eq!(log.read(0, place(0, 1, 0)), Err(Mismatch::Checksum.into()));
        assert_eq!(log.read(1, place(0, 1, 1)), Err(Mismatch::Checksum.into()));
        assert_eq!(log.read(2, place(0, 1, 2)), Ok(payload(2)));
        assert_eq!(log.read(3, place(0, 1, 3)), Ok(payload(3)));
        file.set_len(8192 + 3 * stride).unwrap();
        assert_eq!(
            log.read(3, place(0, 1, 3)),
            Err(TransferError::Short { asked: stride as usize, done: 0 })
        );
        // A record moved elsewhere is not that record.
        drop(log);
        let (log, recovery) = open_in(dir.path(), config(1, 4, OpenMode::Recover), backend, &arena).unwrap();
        assert_eq!(log.check_all(&recovery.records), [(2, place(0, 1, 2))]);
        let path = dir.path().join("seg-00000.kvt");
        let all = std::fs::read(&path).unwrap();
        let record = &all[8192 + 2 * stride as usize..][..stride as usize];
        file.write_all_at(record, 8192).unwrap();
        assert_eq!(
            log.expect(place(0, 1, 0), meta(2, place(0, 1, 2)).identity),
            Err(Mismatch::Identity.into())
        );
    }
}

#[test]
fn every_job_is_answered_once_whether_closed_or_dropped() {
    for backend in backends() {
        for drain in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let arena = arena(64);
            let (log, _) = open_in(dir.path(), config(4, 64, OpenMode::Recover), backend, &arena).unwrap();
            let mut jobs = Vec::new();
            for segment in 0..4 {
                let op = Op::OpenSegment { segment: SegmentId(segment), generation: Generation(1) };
                jobs.push(log.job(op, Urgency::WriteBack));
            }
            for n in 0..256u32 {
                let (at, host) = (place(n % 4, 1, n / 4), SlotId(n % 64));
                let record = meta(u64::from(n), at);
                jobs.push(log.job(Op::Write { host, place: at, record }, Urgency::WriteBack));
                jobs.push(log.job(Op::Read { place: at, host, expect: record.identity }, Urgency::Demand));
            }
            jobs.chunks(50).for_each(|batch| log.log.submit(batch));
            if drain {
                log.log.close()
            } else {
                drop(log.log)
            }
            let rest = log.ledger.rest();
            assert_eq!(rest.len(), jobs.len());
            assert!(rest.values().all(|results| results.len() == 1));
            for job in &jobs[..4] {
                let ok = [Ok(()), Err(TransferError::Down)];
                assert!(rest[&job.id] == [Ok(())] || (!drain && ok.contains(&rest[&job.id][0])));
            }
            let down = rest.values().filter(|r| r[0] == Err(TransferError::Down)).count();
            assert!(!drain || down == 0);
        }
    }
}

/// A sink may submit from inside a completion, and one that panics harms nobody else.
#[test]
fn sinks_may_submit_and_may_panic() {
    use kv_core::Verified;
    use kv_core::ids::JobId;
    use kv_tiers::nvme::CompletionSink;
    use std::sync::{OnceLock, mpsc};
    struct Chain {
        log: OnceLock<NvmeLog>,
        told: mpsc::Sender<u64>,
    }
    impl CompletionSink for Chain {
        fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
            assert!(result.is_ok());
            self.told.send(job.0).unwrap();
            let op = Op::OpenSegment { segment: SegmentId(0), generation: Generation(job.0 + 1) };
            if job.0 < 20 {
                let next = Job { id: JobId(job.0 + 1), op, urgency: Urgency::Demand };
                self.log.get().unwrap().submit(&[next]);
            }
            assert_ne!(job.0 % 3, 0, "a sink that panics");
        }
    }
    for backend in backends() {
        let dir = tempfile::tempdir().unwrap();
        let (told, heard) = mpsc::channel();
        let sink = Arc::new(Chain { log: OnceLock::new(), told });
        let log = config(1, 1, OpenMode::Recover);
        let config = NvmeConfig { dir: dir.path().into(), log, backend, queue_depth: Some(2) };
        let (log, _) = NvmeLog::open(&config, arena(1), Arc::clone(&sink) as _).unwrap();
        let op = Op::OpenSegment { segment: SegmentId(0), generation: Generation(1) };
        assert!(sink.log.set(log).is_ok());
        sink.log.get().unwrap().submit(&[Job { id: JobId(1), op, urgency: Urgency::Demand }]);
        assert_eq!(heard.iter().take(20).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    }
}

#[test]
fn one_owner_at_a_time() {
    for backend in backends() {
        let dir = tempfile::tempdir().unwrap();
        let open = || open_in(dir.path(), config(1, 1, OpenMode::Recover), backend, &arena(1));
        let (log, _) = open().unwrap();
        assert!(matches!(open().map(drop), Err(NvmeError::Locked(_))));
        assert_eq!(inspect(dir.path()).unwrap().segments.len(), 1, "looking is allowed");
        drop(log);
        open().unwrap();
    }
}

#[test]
fn missing_and_impossible_directories() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(1, 1, OpenMode::Recover);
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    for path in [dir.path().join("missing"), file.clone(), file.join("below")] {
        let opened = open_in(&path, config, Backend::Auto, &arena(1)).map(drop);
        assert!(matches!(opened, Err(NvmeError::NoDirectory(_))), "{opened:?}");
        assert!(matches!(inspect(&path), Err(NvmeError::NoDirectory(_))));
    }
    assert!(matches!(inspect(dir.path()), Err(NvmeError::NoLog(_))));
}

#[test]
fn a_directory_that_vanishes_takes_nothing_with_it_but_itself() {
    for backend in backends() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join("log");
        std::fs::create_dir(&log_dir).unwrap();
        let open = || open_in(&log_dir, config(2, 2, OpenMode::Recover), backend, &arena(2));
        let (log, _) = open().unwrap();
        log.open(0, 1).unwrap();
        log.write(1, place(0, 1, 0)).unwrap();
        std::fs::remove_dir_all(&log_dir).unwrap();
        assert_eq!(log.read(1, place(0, 1, 0)), Ok(payload(1)), "open files live on");
        log.log.close();
        assert!(matches!(open().map(drop), Err(NvmeError::NoDirectory(_))));
    }
}

/// A small filesystem of its own, unmounted on drop.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None`, loudly, where mounting is not allowed; [`nvme_faults`] covers the same errors without a mount.
    fn tmpfs(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(dir));
        }
        eprintln!("\n*** cannot mount a tmpfs here: a real full or read-only disk IS NOT TESTED ***\n");
        None
    }
    fn remount(&self, mode: &str) {
        let options = format!("remount,{mode}");
        assert!(Command::new("mount").args(["-o", &options]).arg(self.0.path()).status().unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(self.0.path()).status().unwrap().success());
    }
}

#[test]
fn a_disk_that_is_really_full() {
    let Some(mount) = Mounted::tmpfs("400k") else { return };
    for backend in backends() {
        let dir = mount.0.path().join(format!("{backend:?}"));
        std::fs::create_dir(&dir).unwrap();
        let open = |segments| open_in(&dir, config(segments, 4, OpenMode::Recover), backend, &arena(2));
        assert!(matches!(open(40).map(drop), Err(NvmeError::NoSpace { .. })));
        std::fs::read_dir(&dir).unwrap().for_each(|e| std::fs::remove_file(e.unwrap().path()).unwrap());

        let (log, _) = open(2).unwrap();
        log.open(0, 1).unwrap();
        log.write(1, place(0, 1, 0)).unwrap();
        log.open(1, 1).unwrap();
        // Somebody takes the reserved space away and fills the disk.
        let thief = std::fs::OpenOptions::new().write(true).open(dir.join("seg-00001.kvt")).unwrap();
        thief.set_len(8192).unwrap();
        let filler = dir.join("filler");
        std::fs::write(&filler, vec![1; 1 << 20]).unwrap_err();
        assert_eq!(log.write(2, place(1, 1, 0)), Err(TransferError::NoSpace));
        assert_eq!(log.read(1, place(0, 1, 0)), Ok(payload(1)), "what was stored is served");
        std::fs::remove_file(filler).unwrap();
        log.write(2, place(1, 1, 0)).unwrap();
        log.log.sync().unwrap();
        log.log.close();
        let (log, recovery) = open(2).unwrap();
        assert_eq!(log.check_all(&recovery.records).len(), 2);
        drop(log);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn a_read_only_disk() {
    let Some(mount) = Mounted::tmpfs("400k") else { return };
    let dir = mount.0.path();
    let open = || open_in(dir, config(2, 4, OpenMode::Recover), Backend::Auto, &arena(2));
    let (log, _) = open().unwrap();
    log.open(0, 1).unwrap();
    log.write(1, place(0, 1, 0)).unwrap();
    log.log.close();
    mount.remount("ro");
    let refused = open().map(drop);
    assert!(matches!(refused, Err(NvmeError::ReadOnly(_))), "{refused:?}");
    assert_eq!(inspect(dir).unwrap().records, 1, "looking is allowed");
    mount.remount("rw");
    let (log, recovery) = open().unwrap();
    assert_eq!(log.check_all(&recovery.records).len(), 1);
}

#[test]
fn the_log_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let arena = arena(2);
    let ledger = Arc::new(Ledger::default());
    let open = |queue_depth| {
        let log = config(2, 80, OpenMode::Recover);
        let config = NvmeConfig { dir: dir.path().into(), log, backend: Backend::Auto, queue_depth };
        let (log, _) = NvmeLog::open(&config, Arc::clone(&arena), Arc::clone(&ledger) as _).unwrap();
        Driven::new(log, Arc::clone(&ledger), Arc::clone(&arena))
    };
    let log = open(None);
    assert_eq!(log.log.queue_depth(), 16);
    assert!(log.log.why().contains("too few records"), "{}", log.log.why());
    log.open(0, 1).unwrap();
    (0..80).for_each(|n| log.write(n, place(0, 1, n as u32)).unwrap());
    drop(log);
    let log = open(None);
    assert!([1, 4, 8, 16, 32].contains(&log.log.queue_depth()));
    assert!(log.log.why().contains("GB/s"), "{}", log.log.why());
    drop(log);
    let log = open(Some(0));
    assert_eq!(log.log.queue_depth(), 1);
    assert!(log.log.why().contains("configured"), "{}", log.log.why());
}
