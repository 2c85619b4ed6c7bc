//! The store on a real engine: pinned memory, an NVMe log in a temporary directory, tensors in ordinary memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kv_tiers::engine::OpenError as Engine;
use kv_tiers::nvme::NvmeError;
use kvtier_ffi::store::{ClearError, CloseError, Presence, Removal};
use kvtier_ffi::{
    Buffers, Durability, Identity, KeyStatus, OpenError, Run, Store, StoreConfig, Submission, SubmitError,
    TaskQueue,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const BLOCK: usize = 8192;
const LONG: Duration = Duration::from_secs(60);

fn config(slots: u64, nvme: Option<&Path>) -> StoreConfig {
    let identity = Identity { tenant: "t".into(), model: "m".into(), ..Identity::default() };
    let mut config = StoreConfig::new(BLOCK, slots * (BLOCK as u64 + 4096), identity);
    config.nvme = nvme.map(|dir| (dir.join("kv"), 64 << 20));
    config
}

fn key(id: u32) -> Vec<u8> {
    [id.to_le_bytes(); 8].concat()
}

fn bytes(id: u32) -> Vec<u8> {
    let mix =
        |i: u32| (id.wrapping_mul(0x9E37_79B1) ^ i.wrapping_mul(0x85EB_CA6B)).wrapping_mul(0xC2B2_AE35) >> 24;
    (0..BLOCK as u32).map(|i| mix(i) as u8).collect()
}

fn submission(store: &Store, ids: &[u32]) -> Submission {
    let keys: Vec<_> = ids.iter().map(|id| key(*id)).collect();
    Submission::of(store.keys(keys.iter().map(Vec::as_slice)).unwrap())
}

/// Two uneven runs a page.
fn buffers(pages: &mut [Vec<u8>]) -> Buffers {
    let run = |part: &mut [u8]| Run { start: part.as_mut_ptr(), len: part.len() };
    let runs = pages.iter_mut().flat_map(|page| {
        let (k, v) = page.split_at_mut(BLOCK / 4);
        [run(k), run(v)]
    });
    Buffers::even(runs.collect(), pages.len()).unwrap()
}

fn put(store: &Store, ids: &[u32]) -> Vec<KeyStatus> {
    let mut pages: Vec<_> = ids.iter().map(|id| bytes(*id)).collect();
    // SAFETY: the pages live until the ticket is done.
    let ticket = unsafe { store.put(submission(store, ids), buffers(&mut pages)) }.unwrap();
    ticket.wait(LONG).expect("done");
    ticket.statuses()
}

/// What was found, every byte compared; the pages of what was not are untouched.
fn get(store: &Store, ids: &[u32]) -> Vec<KeyStatus> {
    let mut pages = vec![vec![0xEE; BLOCK]; ids.len()];
    // SAFETY: as above.
    let ticket = unsafe { store.get(submission(store, ids), buffers(&mut pages)) }.unwrap();
    let summary = ticket.wait(LONG).expect("done");
    let statuses = ticket.statuses();
    assert_eq!(summary.done as usize, statuses.iter().filter(|s| s.is_done()).count());
    for ((id, page), status) in ids.iter().zip(&pages).zip(&statuses) {
        let expected = if status.is_done() { bytes(*id) } else { vec![0xEE; BLOCK] };
        assert!(*page == expected, "{id}: {status:?}");
    }
    statuses
}

#[test]
fn an_end_is_announced_wherever_that_was_asked_for_before_and_after_it() {
    let store = Store::open(&config(32, None)).unwrap();
    let (first, second) = (Arc::new(TaskQueue::new().unwrap()), Arc::new(TaskQueue::new().unwrap()));
    let mut what = submission(&store, &[1]);
    what.notify = Some((first.clone(), 1));
    let ticket = store.pin(what).unwrap();
    ticket.announce(second.clone(), 2);
    assert!(ticket.wait(LONG).is_some());
    ticket.announce(second.clone(), 3);
    let tags = |queue: &TaskQueue| queue.drain(9).iter().map(|finished| finished.tag).collect::<Vec<_>>();
    assert_eq!((tags(&first), tags(&second)), (vec![1], vec![2, 3]));
}

#[test]
fn keys_of_tokens_are_those_of_the_chain_and_of_no_foreign_hash() {
    let store = Store::open(&config(32, None)).unwrap();
    let tokens: Vec<u32> = (0..50).collect();
    let keys = store.token_keys(16, &tokens, &[], None);
    let rest = store.token_keys(16, &tokens[16..], &[], Some(keys.as_slice()[0]));
    assert_eq!((keys.len(), &keys.as_slice()[1..]), (3, rest.as_slice()));
    let bytes = keys.as_slice()[0].to_bytes();
    let foreign = store.keys([bytes.as_slice()].into_iter()).unwrap();
    assert_ne!(foreign.as_slice()[0], keys.as_slice()[0]);
}

#[test]
fn what_was_put_is_got_from_memory_and_from_nvme() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(64, Some(dir.path()))).unwrap();
    let ids: Vec<u32> = (0..400).collect();
    for part in ids.chunks(20) {
        assert_eq!(put(&store, part), vec![KeyStatus::Done; 20]);
    }
    assert_eq!(put(&store, &ids[390..]), vec![KeyStatus::Present; 10]);
    let found = store.exists(&submission(&store, &ids).keys).unwrap();
    let there = found.iter().filter(|at| **at != Presence::Absent).count();
    assert!(found.contains(&Presence::Nvme));
    assert_eq!(there, 400, "puts go no faster than the disk takes them");
    let statuses = get(&store, &ids);
    assert_eq!(statuses, vec![KeyStatus::Done; 400]);
    let stats = store.stats().unwrap();
    assert_eq!((stats.load_keys, stats.store_keys, stats.present), (400, 410, 10));
    assert!(stats.nvme_reads > 100, "{stats:?}");
    store.close(LONG).unwrap();
    assert!(matches!(store.close(LONG), Err(CloseError::Closed)));
    assert!(matches!(store.exists(&submission(&store, &[1]).keys), Err(SubmitError::Closed)));
}

#[test]
fn a_store_that_writes_at_close_reopens_with_everything() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { durability: Durability::AtClose, ..config(256, Some(dir.path())) };
    let ids: Vec<u32> = (0..200).collect();
    let store = Store::open(&config).unwrap();
    put(&store, &ids);
    store.close(LONG).unwrap();
    let store = Store::open(&config).unwrap();
    assert_eq!(get(&store, &ids), vec![KeyStatus::Done; 200]);
    drop(store);
    // Another revision of the weights shares nothing, in the same directory.
    let mut other = config.clone();
    other.identity.revision = "2".into();
    let store = Store::open(&other).unwrap();
    assert_eq!(get(&store, &ids), vec![KeyStatus::Missing; 200]);
}

#[test]
fn a_log_grows_and_shrinks_with_its_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let sized = |mebibytes: u64| {
        let mut config = StoreConfig { durability: Durability::AtClose, ..config(256, Some(dir.path())) };
        config.nvme.as_mut().unwrap().1 = mebibytes << 20;
        config
    };
    let segments = || std::fs::read_dir(dir.path().join("kv/log")).unwrap().count();
    let ids: Vec<u32> = (0..200).collect();
    let store = Store::open(&sized(64)).unwrap();
    let made = segments();
    put(&store, &ids);
    store.close(LONG).unwrap();
    // Laid out anew, its segments would be others: it keeps those that it has.
    let store = Store::open(&sized(256)).unwrap();
    assert!(segments() > 3 * made);
    assert_eq!(get(&store, &ids), vec![KeyStatus::Done; 200]);
    drop(store);
    let store = Store::open(&sized(70)).unwrap();
    assert_eq!(segments(), made);
    assert_eq!(get(&store, &ids), vec![KeyStatus::Done; 200], "they are in the first segments");
    drop(store);
    let refused = Store::open(&sized(32)).err();
    assert!(
        matches!(&refused, Some(OpenError::Engine(Engine::Nvme(NvmeError::Capacity { wanted, .. }))) if *wanted == 32 << 20),
        "{refused:?}"
    );
    assert_eq!(segments(), made);
}

#[test]
fn a_flush_makes_the_present_durable() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(256, Some(dir.path()));
    let store = Store::open(&config).unwrap();
    put(&store, &(0..150).collect::<Vec<_>>());
    let flush = store.flush(Some(LONG), None).unwrap();
    assert_eq!(flush.wait(LONG).unwrap().done, 1);
    assert_eq!(store.stats().unwrap().nvme_used, 150);
    drop(store);
    let memory_only = Store::open(&self::config(64, None)).unwrap();
    assert!(matches!(memory_only.flush(None, None), Err(SubmitError::NoLog)));
}

#[test]
fn damaged_bytes_are_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { durability: Durability::AtClose, ..config(64, Some(dir.path())) };
    let store = Store::open(&config).unwrap();
    let ids: Vec<u32> = (0..50).collect();
    put(&store, &ids);
    store.close(LONG).unwrap();
    let mut flipped = 0;
    for entry in std::fs::read_dir(dir.path().join("kv/log")).unwrap() {
        let path = entry.unwrap().path();
        let mut data = std::fs::read(&path).unwrap();
        // The middle of every payload: payloads start at multiples of a page.
        let starts: Vec<_> = ids.iter().map(|id| bytes(*id)[..64].to_vec()).collect();
        for at in (0..data.len()).step_by(4096) {
            if starts.iter().any(|start| *start == data[at..at + 64]) {
                data[at + BLOCK / 2] ^= 4;
                flipped += 1;
            }
        }
        std::fs::write(&path, data).unwrap();
    }
    assert_eq!(flipped, 50);
    let store = Store::open(&config).unwrap();
    // Compares the bytes of whatever claims to be there.
    assert_eq!(get(&store, &ids), vec![KeyStatus::Failed; 50]);
    assert_eq!(store.stats().unwrap().refused_loads, 50);
    assert_eq!(get(&store, &ids[..5]), vec![KeyStatus::Missing; 5], "once is enough");
    assert_eq!(put(&store, &ids[..5]), vec![KeyStatus::Done; 5]);
    assert_eq!(get(&store, &ids[..5]), vec![KeyStatus::Done; 5]);
}

#[test]
fn a_chain_is_stored_up_to_its_first_gap() {
    let store = Store::open(&config(64, None)).unwrap();
    let mut pages: Vec<_> = (0..6).map(bytes).collect();
    let run = |page: &mut Vec<u8>| Run { start: page.as_mut_ptr(), len: page.len() };
    let mut chained = submission(&store, &[0, 1, 2]);
    chained.chained = true;
    // SAFETY: the pages live until the ticket is done.
    let ticket =
        unsafe { store.put(chained, Buffers::even(pages[..3].iter_mut().map(run).collect(), 3).unwrap()) };
    assert_eq!(ticket.unwrap().wait(LONG).unwrap().done, 3);

    // Blocks 0..3 are there and have no bytes, 3 has, 4 has none and is not there.
    let mut chained = submission(&store, &[0, 1, 2, 3, 4, 5]);
    chained.chained = true;
    let runs = vec![run(&mut pages[3]), run(&mut pages[5])];
    // SAFETY: as above.
    let ticket = unsafe { store.put(chained, Buffers::counted(runs, &[0, 0, 0, 1, 0, 1]).unwrap()) }.unwrap();
    let summary = ticket.wait(LONG).unwrap();
    let (there, done, lost) = (KeyStatus::Present, KeyStatus::Done, KeyStatus::Missing);
    assert_eq!(ticket.statuses(), [there, there, there, done, lost, lost]);
    assert_eq!((summary.done, summary.prefix), (4, 4));
    assert_eq!(get(&store, &[0, 1, 2, 3, 4, 5]), [done, done, done, done, lost, lost]);
}

#[test]
fn pins_keep_blocks_and_are_bounded() {
    let store = Store::open(&config(64, None)).unwrap();
    put(&store, &[1, 2]);
    let pinned = store.pin(submission(&store, &[1, 2, 3])).unwrap();
    assert_eq!(pinned.wait(LONG).unwrap().done, 2);
    for round in 0..20 {
        put(&store, &(100 * (round + 1)..100 * (round + 1) + 16).collect::<Vec<_>>());
    }
    assert_eq!(get(&store, &[1, 2]), [KeyStatus::Done; 2], "320 others came and went");
    put(&store, &(5000..5030).collect::<Vec<_>>());
    let more = store.pin(submission(&store, &(5000..5030).collect::<Vec<_>>())).unwrap();
    more.wait(LONG).unwrap();
    let held = more.statuses().iter().filter(|s| s.is_done()).count();
    assert_eq!(held, 14, "a quarter of 64, less the two");
    assert!(more.statuses().contains(&KeyStatus::NoRoom));
    drop((pinned, more));
    put(&store, &[5000]);
    assert_eq!(store.pin(submission(&store, &[5000])).unwrap().wait(LONG).unwrap().done, 1);
}

fn readable(queue: &TaskQueue) -> bool {
    let mut fds = [PollFd::new(queue, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn the_end_is_announced_and_what_nobody_collects_is_bounded() {
    let store = Store::open(&config(64, None)).unwrap();
    let queue = Arc::new(TaskQueue::new().unwrap());
    let mut submitted = 0_u64;
    // Tickets are dropped at once: their announcements keep their places.
    loop {
        let mut what = submission(&store, &[1]);
        what.notify = Some((queue.clone(), submitted));
        match store.pin(what) {
            Ok(ticket) => drop(ticket.wait(LONG)),
            Err(SubmitError::Busy) => break,
            Err(other) => panic!("{other}"),
        }
        submitted += 1;
    }
    assert_eq!(submitted, 1024);
    assert!(readable(&queue));
    let tags: Vec<_> = queue.drain(1000).iter().map(|finished| finished.tag).collect();
    assert_eq!(tags, (0..1000).collect::<Vec<_>>());
    assert!(readable(&queue), "24 are left");
    assert_eq!(queue.drain(usize::MAX).len(), 24);
    assert!(!readable(&queue));
    assert_eq!(put(&store, &[7]), [KeyStatus::Done]);
    assert_eq!(store.stats().unwrap().busy, 1);
    assert!(rustix::io::fcntl_getfd(queue.as_fd()).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn cancelled_late_and_orphaned_tickets_end() {
    let store = Store::open(&config(64, None)).unwrap();
    let mut page = bytes(1);
    let run = Run { start: page.as_mut_ptr(), len: page.len() };
    let mut what = submission(&store, &[1]);
    what.timeout = Some(Duration::ZERO);
    // SAFETY: the page lives until the ticket is done.
    let late = unsafe { store.put(what, Buffers::even(vec![run], 1).unwrap()) }.unwrap();
    late.wait(LONG).unwrap();
    assert_eq!(late.statuses(), [KeyStatus::TimedOut]);
    let tickets: Vec<_> = (0..500).map(|_| store.pin(submission(&store, &[1])).unwrap()).collect();
    tickets.iter().for_each(|ticket| ticket.cancel());
    store.close(LONG).unwrap();
    for ticket in &tickets {
        assert!(ticket.poll().is_some(), "closing ends every ticket");
        assert!(matches!(ticket.statuses()[0], KeyStatus::Cancelled | KeyStatus::Missing));
    }
}

#[test]
fn what_no_worker_has_yet_ends_when_it_is_cancelled_or_late() {
    const TIMES: usize = 1 << 20;
    let store = Store::open(&config(64, None)).unwrap();
    put(&store, &[1]);
    // One block a million times over, for each worker.
    let key = key(1);
    let mut pages = vec![vec![0; BLOCK]; 4];
    let busy: Vec<_> = pages
        .iter_mut()
        .map(|page| {
            let keys = store.keys(vec![key.as_slice(); TIMES].into_iter()).unwrap();
            let run = Run { start: page.as_mut_ptr(), len: BLOCK };
            let to = Buffers::even(vec![run; TIMES], TIMES).unwrap();
            // SAFETY: the pages live until the store is closed, and each is written by one operation.
            unsafe { store.get(Submission { timeout: Some(LONG * 60), ..Submission::of(keys) }, to) }.unwrap()
        })
        .collect();
    let queue = Arc::new(TaskQueue::new().unwrap());
    let mut what = submission(&store, &[1]);
    what.notify = Some((queue.clone(), 7));
    let cancelled = store.pin(what).unwrap();
    assert!(cancelled.poll().is_none());
    cancelled.cancel();
    assert_eq!(cancelled.poll().map(|summary| summary.done), Some(0));
    assert_eq!(cancelled.statuses(), [KeyStatus::Cancelled]);
    assert_eq!(queue.drain(9).iter().map(|end| end.tag).collect::<Vec<_>>(), [7]);
    let soon = Some(Duration::from_millis(20));
    let late = store.pin(Submission { timeout: soon, ..submission(&store, &[1]) }).unwrap();
    assert!(late.wait(LONG).is_some());
    assert_eq!(late.statuses(), [KeyStatus::TimedOut]);
    assert!(busy.iter().all(|ticket| ticket.poll().is_none()), "the workers were busy all along");
    assert_eq!(store.stats().unwrap().under_way, 4);
    store.close(LONG).unwrap();
    assert!(busy.iter().all(|ticket| ticket.poll().is_some()));
}

#[test]
fn sizes_that_cannot_work_are_named() {
    assert!(matches!(Store::open(&config(15, None)), Err(OpenError::HostBytes { slots: 15, .. })));
    assert!(matches!(
        Store::open(&StoreConfig { block_bytes: 0, ..config(64, None) }),
        Err(OpenError::BlockBytes(0))
    ));
    let nowhere = config(64, Some(Path::new("/nonexistent/at/all")));
    assert!(matches!(Store::open(&nowhere), Err(OpenError::Directory { .. })));
    let store = Store::open(&config(64, None)).unwrap();
    let mut page = vec![0; 10];
    let short = Run { start: page.as_mut_ptr(), len: page.len() };
    // SAFETY: refused, so nothing is touched.
    let refused = unsafe { store.put(submission(&store, &[1]), Buffers::even(vec![short], 1).unwrap()) };
    assert!(matches!(refused, Err(SubmitError::Batch(_))));
}

fn remove(store: &Store, ids: &[u32]) -> Vec<Removal> {
    store.remove(&submission(store, ids).keys).unwrap()
}

fn presence(store: &Store, ids: &[u32]) -> Vec<Presence> {
    store.exists(&submission(store, ids).keys).unwrap()
}

#[test]
fn what_is_removed_is_gone_from_memory_and_nvme_unless_it_is_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(32, Some(dir.path()))).unwrap();
    put(&store, &[1, 2, 3]);
    store.flush(None, None).unwrap().wait(LONG).expect("done");
    let pin = store.pin(submission(&store, &[1])).unwrap();
    pin.wait(LONG).expect("done");
    assert_eq!(remove(&store, &[1, 2, 9]), [Removal::InUse, Removal::Removed, Removal::Absent]);
    assert_eq!(presence(&store, &[1, 2, 3]), [Presence::Host, Presence::Absent, Presence::Host]);
    drop(pin);
    assert_eq!(remove(&store, &[1]), [Removal::Removed]);
    assert_eq!(get(&store, &[1, 2, 3]), [KeyStatus::Missing, KeyStatus::Missing, KeyStatus::Done]);
    assert_eq!((store.stats().unwrap().host_used, store.stats().unwrap().nvme_used), (1, 1));
    assert_eq!(put(&store, &[1]), [KeyStatus::Done], "and may be stored again");
}

#[test]
fn a_cleared_store_serves_nothing_of_before_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(32, Some(dir.path()));
    config.durability = Durability::AtClose;
    let store = Store::open(&config).unwrap();
    put(&store, &[1, 2]);
    let pin = store.pin(submission(&store, &[2])).unwrap();
    pin.wait(LONG).expect("done");
    let before = submission(&store, &[1, 2]).keys;
    store.clear().unwrap();
    assert_eq!(store.exists(&before).unwrap(), [Presence::Absent; 2], "keys of before name nothing");
    assert_eq!(get(&store, &[1, 2]), [KeyStatus::Missing; 2]);
    assert_eq!(put(&store, &[2, 3]), [KeyStatus::Done; 2], "also where the name was taken");
    drop(pin);
    store.close(LONG).unwrap();
    assert!(matches!(store.clear(), Err(ClearError::Closed)));

    let store = Store::open(&config).unwrap();
    assert_eq!(get(&store, &[1, 2, 3]), [KeyStatus::Missing, KeyStatus::Done, KeyStatus::Done]);
    store.clear().unwrap();
    drop(store);
    let store = Store::open(&config).unwrap();
    assert_eq!(presence(&store, &[1, 2, 3]), [Presence::Absent; 3]);
}

#[test]
fn a_store_that_cannot_note_that_it_is_cleared_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(32, Some(dir.path()))).unwrap();
    put(&store, &[1]);
    std::fs::create_dir(dir.path().join("kv/epoch.part")).unwrap();
    assert!(matches!(store.clear(), Err(ClearError::Io(_))));
    assert_eq!(presence(&store, &[1]), [Presence::Host]);
}

#[test]
fn a_pin_of_a_chain_holds_what_comes_before_its_first_gap() {
    let store = Store::open(&config(64, None)).unwrap();
    put(&store, &[1, 2, 4]);
    let chain = |ids: &[u32]| {
        let pin = store.pin(Submission { chained: true, ..submission(&store, ids) }).unwrap();
        pin.wait(LONG).expect("done");
        pin
    };
    let pin = chain(&[1, 2, 3, 4]);
    let missing = KeyStatus::Missing;
    assert_eq!(pin.statuses(), [KeyStatus::Done, KeyStatus::Done, missing, missing]);
    assert_eq!(remove(&store, &[1, 2, 4]), [Removal::InUse, Removal::InUse, Removal::Removed]);
    assert_eq!(store.stats().unwrap().host_used, 2, "no room is held for what is not there");
    drop(pin);
    let all: Vec<u32> = (100..130).collect();
    put(&store, &all);
    let pin = chain(&all);
    let statuses = pin.statuses();
    assert_eq!(statuses[..16], [KeyStatus::Done; 16]);
    assert_eq!(statuses[16..], [KeyStatus::NoRoom; 14]);
    assert_eq!(chain(&all).statuses(), [KeyStatus::NoRoom; 30]);
}
