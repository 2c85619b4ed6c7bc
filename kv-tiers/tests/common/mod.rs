//! What the NVMe tests share: blocks with known bytes, and a log that is driven one job at a time.
#![allow(dead_code, unreachable_pub)] // each test binary uses a part

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kv_core::ids::{JobId, SegmentId, SlotId};
use kv_core::job::{Job, Op, Place, RecordMeta, RecoveredRecord, TransferError, Urgency};
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::{Epoch, Generation};
use kv_core::{RecordIdentity, Verified};
use kv_tiers::arena::{Arena, ArenaConfig};
use kv_tiers::nvme::{CompletionSink, LogConfig, NvmeLog, OpenMode, Segments};
use parking_lot::{Condvar, Mutex};

/// Not a multiple of a page: there is padding.
pub const PAYLOAD: usize = 5000;

pub fn arena(slots: u32) -> Arc<Arena> {
    Arena::new(ArenaConfig::new(slots, PAYLOAD)).unwrap()
}

pub fn config(segments: u32, records_per_segment: u32, mode: OpenMode) -> LogConfig {
    LogConfig { segments, records_per_segment, mode }
}

/// The bytes of block `n`: different in every 8-byte word of every block.
pub fn payload(n: u64) -> Vec<u8> {
    let word = |i: u64| (n << 32 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    (0..PAYLOAD.div_ceil(8) as u64).flat_map(word).take(PAYLOAD).collect()
}

pub fn fill(arena: &Arena, slot: SlotId, bytes: &[u8]) {
    // SAFETY: the tests use a slot for one thing at a time and wait for its jobs.
    unsafe { arena.payload_mut(slot) }.copy_from_slice(bytes);
}

pub fn bytes(arena: &Arena, slot: SlotId) -> Vec<u8> {
    // SAFETY: as above.
    unsafe { arena.payload(slot) }.to_vec()
}

pub fn place(segment: u32, generation: u64, index: u32) -> Place {
    Place { segment: SegmentId(segment), generation: Generation(generation), index }
}

/// What block `n`, written at `place`, says about itself.
pub fn meta(n: u64, place: Place) -> RecordMeta {
    let mut key = [0xCC; 16];
    key[..8].copy_from_slice(&n.to_le_bytes());
    let mut parent = [0xDD; 16];
    parent[..8].copy_from_slice(&n.to_le_bytes());
    RecordMeta {
        identity: RecordIdentity {
            namespace: NamespaceId([(n % 3) as u8; 16]),
            epoch: Epoch(n % 2),
            fingerprint: Fingerprint([7; 16]),
            key: BlockKey::from_bytes(key),
            generation: place.generation,
        },
        parent: BlockKey::from_bytes(parent),
        depth: n as u32,
    }
}

/// Which block a record says it is.
pub fn block_of(record: &RecoveredRecord) -> u64 {
    record.meta.identity.key.low()
}

/// Whoever does one job at a time.
pub trait Hands {
    fn arena(&self) -> &Arc<Arena>;
    fn run(&self, op: Op) -> Result<(), TransferError>;

    fn open(&self, segment: u32, generation: u64) -> Result<(), TransferError> {
        self.run(Op::OpenSegment { segment: SegmentId(segment), generation: Generation(generation) })
    }
    fn seal(&self, segment: u32, generation: u64) -> Result<(), TransferError> {
        self.run(Op::SealSegment { segment: SegmentId(segment), generation: Generation(generation) })
    }
    /// Writes block `n`, from slot 0.
    fn write(&self, n: u64, place: Place) -> Result<(), TransferError> {
        fill(self.arena(), SlotId(0), &payload(n));
        self.run(Op::Write { host: SlotId(0), place, record: meta(n, place) })
    }
    /// Reads block `n`, into slot 1.
    fn read(&self, n: u64, place: Place) -> Result<Vec<u8>, TransferError> {
        self.expect(place, meta(n, place).identity)
    }
    fn expect(&self, place: Place, expect: RecordIdentity) -> Result<Vec<u8>, TransferError> {
        fill(self.arena(), SlotId(1), &[0xEE; PAYLOAD]);
        self.run(Op::Read { place, host: SlotId(1), expect })?;
        Ok(bytes(self.arena(), SlotId(1)))
    }
    /// Every recovered record is a block as it was stored, in whole; which ones.
    fn check_all(&self, records: &[RecoveredRecord]) -> Vec<(u64, Place)> {
        let check = |r: &RecoveredRecord| {
            let n = block_of(r);
            assert_eq!(r.meta, meta(n, r.place));
            assert_eq!(self.read(n, r.place), Ok(payload(n)), "block {n} at {:?}", r.place);
            (n, r.place)
        };
        records.iter().map(check).collect()
    }
}

/// Blocking calls, without a backend.
pub struct Direct {
    pub segments: Segments,
    pub arena: Arc<Arena>,
}

impl Hands for Direct {
    fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }
    fn run(&self, op: Op) -> Result<(), TransferError> {
        let job = Job { id: JobId(1), op, urgency: Urgency::Demand };
        self.segments.execute(&job).map(|verified| assert_eq!(verified.job(), JobId(1)))
    }
}

/// Keeps every completion.
#[derive(Default)]
pub struct Ledger {
    results: Mutex<HashMap<JobId, Vec<Result<(), TransferError>>>>,
    changed: Condvar,
}

impl CompletionSink for Ledger {
    fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
        let result = result.map(|verified| assert_eq!(verified.job(), job));
        self.results.lock().entry(job).or_default().push(result);
        self.changed.notify_all();
    }
}

impl Ledger {
    /// Waits for a job's completion, and takes it.
    pub fn wait(&self, job: JobId) -> Result<(), TransferError> {
        let mut results = self.results.lock();
        loop {
            if let Some(found) = results.remove(&job) {
                assert_eq!(found.len(), 1, "completed once");
                return found[0];
            }
            self.changed.wait(&mut results);
        }
    }
    /// All completions that nobody waited for.
    pub fn rest(&self) -> HashMap<JobId, Vec<Result<(), TransferError>>> {
        std::mem::take(&mut self.results.lock())
    }
}

/// A log with a backend.
pub struct Driven {
    pub log: NvmeLog,
    pub ledger: Arc<Ledger>,
    pub arena: Arc<Arena>,
    pub next: AtomicU64,
}

impl Driven {
    pub fn new(log: NvmeLog, ledger: Arc<Ledger>, arena: Arc<Arena>) -> Self {
        Self { log, ledger, arena, next: AtomicU64::new(0) }
    }
    pub fn job(&self, op: Op, urgency: Urgency) -> Job {
        Job { id: JobId(self.next.fetch_add(1, Ordering::Relaxed)), op, urgency }
    }
}

impl Hands for Driven {
    fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }
    fn run(&self, op: Op) -> Result<(), TransferError> {
        let job = self.job(op, Urgency::Demand);
        self.log.submit(&[job]);
        self.ledger.wait(job.id)
    }
}
