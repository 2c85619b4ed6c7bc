//! Opening a log: new, as it was left, or empty again.
//!
//! A sealed segment is known from its header and footer. One that was open when the process ended is read in
//! full, and a record counts only if its header and its payload are whole; anything torn is dropped. Segments
//! are read in parallel.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kv_core::ids::SegmentId;
use kv_core::job::{RecoveredRecord, RecoveredSegment};
use kv_core::units::Generation;
use parking_lot::Mutex;
use serde::Serialize;

use super::config::{LogConfig, OpenMode};
use super::error::NvmeError;
use super::format::{LogId, SegmentHeader, Superblock};
use super::geometry::{Geometry, HEADER_COPIES};
use super::page::PageBuf;
use super::scan::{Found, Scan, scan};
use super::segments::{Life, Segments, Slot, State};
use super::store::SegmentStore;
use crate::arena::{Arena, PAGE};

/// What is wrong with a place of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub enum DamageKind {
    /// No copy of the segment header is whole. The segment counts as empty.
    #[error("segment header damaged")]
    SegmentHeader,
    /// One copy of the segment header is not whole. No harm.
    #[error("one copy of the segment header damaged")]
    HeaderCopy,
    /// The footer is not whole. The records were read instead.
    #[error("footer damaged")]
    Footer,
    /// A record header is not whole.
    #[error("record header damaged or torn")]
    RecordHeader,
    /// A record header promises another payload.
    #[error("record torn or its payload damaged")]
    Payload,
    /// The file ends too early.
    #[error("file too short")]
    Short,
    /// The operating system could not read it.
    #[error("unreadable (errno {0})")]
    Unreadable(i32),
}

/// A damaged place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Segment number.
    pub segment: u32,
    /// Byte offset in its file.
    pub offset: u64,
    /// What is wrong.
    pub what: DamageKind,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} at byte {}: {}", self.segment, self.offset, self.what)
    }
}

/// What an opening found.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Every segment, in order.
    pub segments: Vec<RecoveredSegment>,
    /// Every record that can be read, of every namespace and epoch, segment by segment.
    pub records: Vec<RecoveredRecord>,
    /// What was not whole.
    pub damaged: Vec<Damage>,
    /// Bytes read to find out.
    pub scanned_bytes: u64,
    /// Time that took.
    pub elapsed: Duration,
}

/// Generations that a segment with an unreadable header skips: its true generation is unknown, and no drive
/// outlives 2^32 openings of one segment.
pub(crate) const SKIP: u64 = 1 << 32;

impl Segments {
    /// Opens the log in a store, or makes one.
    ///
    /// # Errors
    /// See [`NvmeError`]; nothing that was durable is lost by a failed opening.
    pub fn open(
        store: Arc<dyn SegmentStore>,
        arena: Arc<Arena>,
        config: LogConfig,
    ) -> Result<(Self, Recovery), NvmeError> {
        let started = Instant::now();
        let payload_bytes = arena.payload_bytes();
        let LogConfig { segments, records_per_segment, mode } = config;
        let geometry = Geometry::new(payload_bytes, records_per_segment)
            .filter(|_| segments > 0)
            .ok_or(NvmeError::Shape { segments, records_per_segment, payload_bytes })?;

        let present = store.segments().map_err(NvmeError::io("listing segments"))?;
        let bytes = store.superblock().map_err(NvmeError::io("reading the superblock"))?;
        let found = bytes.as_deref().map(Superblock::decode);
        let superblock = match (mode, found) {
            (OpenMode::Fresh, found) => start_over(&*store, found.flatten(), &present, segments, geometry)?,
            (_, None) if present.is_empty() => {
                let new = Superblock { log: new_log_id(), geometry, floor: Generation(0) };
                replace(&*store, &new)?;
                new
            }
            (_, None | Some(None)) => return Err(NvmeError::Superblock),
            (_, Some(Some(superblock))) => {
                check_geometry(superblock.geometry, geometry)?;
                drop_surplus(&*store, &present, segments, mode)?;
                superblock
            }
        };

        let mut damaged = Vec::new();
        let present = store.segments().map_err(NvmeError::io("listing segments"))?;
        for segment in (0..segments).map(SegmentId) {
            let bytes = present.iter().find(|(id, _)| *id == segment).map(|(_, bytes)| *bytes);
            match bytes {
                Some(bytes) if bytes >= geometry.segment_bytes() => continue,
                Some(offset) => damaged.push(Damage { segment: segment.0, offset, what: DamageKind::Short }),
                None => {}
            }
            strict(mode, &damaged)?;
            reserve(&*store, segment, geometry)?;
        }
        let scans = scan_all(&*store, &superblock, segments);
        damaged.extend(scans.iter().flat_map(|s| s.damaged.iter().copied()));
        strict(mode, &damaged)?;
        if mode == OpenMode::Fresh {
            damaged.clear(); // of logs that are gone
        }
        let mut recovery = Recovery { damaged, ..Recovery::default() };
        let known = scans.iter().map(|s| s.generation).max().unwrap_or_default();
        let mut lives = Vec::with_capacity(scans.len());
        for (segment, mut scan) in (0..).map(SegmentId).zip(scans) {
            if let Found::Unknown = scan.found {
                scan.generation = Generation(known.0.saturating_add(SKIP));
            }
            if let Err(e) = repair(&*store, &superblock, segment, &scan) {
                tracing::warn!("segment {}: header copy not repaired: {e}", segment.0);
            }
            recovery.scanned_bytes += scan.scanned_bytes;
            recovery.segments.push(RecoveredSegment {
                segment,
                generation: scan.generation,
                occupied: !scan.records.is_empty(),
            });
            lives.push(life(&mut scan, geometry));
            recovery.records.append(&mut scan.records);
        }
        recovery.elapsed = started.elapsed();
        tracing::info!(
            records = recovery.records.len(),
            damaged = recovery.damaged.len(),
            scanned_bytes = recovery.scanned_bytes,
            elapsed = ?recovery.elapsed,
            "NVMe log opened"
        );
        Ok((Self::new(store, arena, superblock.log, geometry, lives.into_iter()), recovery))
    }
}

/// In strict mode any damage is an error.
fn strict(mode: OpenMode, damaged: &[Damage]) -> Result<(), NvmeError> {
    match (mode, damaged.first()) {
        (OpenMode::Strict, Some(&first)) => Err(NvmeError::Damaged { count: damaged.len(), first }),
        _ => Ok(()),
    }
}

/// What this process knows about a segment that it just read.
fn life(scan: &mut Scan, geometry: Geometry) -> Life {
    let state = match scan.found {
        Found::Nothing | Found::Unknown => State::Free,
        Found::Sealed => State::Sealed,
        Found::Open => {
            let mut slots = vec![Slot::Empty; geometry.records_per_segment as usize].into_boxed_slice();
            for entry in scan.entries.drain(..) {
                if let Some(slot) = slots.get_mut(entry.index() as usize) {
                    *slot = Slot::Written(entry);
                }
            }
            State::Open(slots)
        }
    };
    // After `kill -9` a record may be readable and yet not durable.
    let dirty = matches!(state, State::Open(_));
    Life { dirty, ..Life::new(scan.generation, state) }
}

/// Whether an existing log is the one that was configured.
fn check_geometry(found: Geometry, wanted: Geometry) -> Result<(), NvmeError> {
    if found != wanted {
        return Err(NvmeError::Geometry {
            found_payload: found.payload_bytes,
            found_records: found.records_per_segment,
            wanted_payload: wanted.payload_bytes,
            wanted_records: wanted.records_per_segment,
        });
    }
    Ok(())
}

/// Removes the segments that the configuration has no room for. A crash in between leaves a log with some of them, and
/// the next opening goes on.
fn drop_surplus(
    store: &dyn SegmentStore,
    present: &[(SegmentId, u64)],
    segments: u32,
    mode: OpenMode,
) -> Result<(), NvmeError> {
    let Some(last) = present.iter().map(|(id, _)| id.0).max().filter(|last| *last >= segments) else {
        return Ok(());
    };
    let found = last.saturating_add(1);
    if mode == OpenMode::Strict {
        return Err(NvmeError::Shrunk { found, wanted: segments });
    }
    tracing::warn!(found, wanted = segments, "the NVMe log shrinks: its last segments are dropped");
    for &(segment, _) in present.iter().filter(|(id, _)| id.0 >= segments) {
        store.remove(segment).map_err(NvmeError::io("removing a segment"))?;
    }
    Ok(())
}

/// A new log in the place of whatever was there. The new superblock is the point of no return: from then on
/// no old segment belongs to the log, whether or not its file was dealt with before a crash.
fn start_over(
    store: &dyn SegmentStore,
    old: Option<Superblock>,
    present: &[(SegmentId, u64)],
    segments: u32,
    geometry: Geometry,
) -> Result<Superblock, NvmeError> {
    let mut floor = old.map_or(Generation(0), |s| s.floor);
    let mut pages = PageBuf::new(HEADER_COPIES as usize * PAGE);
    for (segment, _) in present {
        // An unreadable header hides a generation, which the new log id makes harmless.
        if store.read_at(*segment, 0, pages.bytes_mut()).is_ok() {
            let headers = pages.bytes().chunks(PAGE).filter_map(SegmentHeader::decode);
            floor = headers.map(|h| h.generation).fold(floor, Generation::max);
        }
    }
    let new = Superblock { log: new_log_id(), geometry, floor };
    replace(store, &new)?;
    let same_shape = old.is_some_and(|old| old.geometry == geometry);
    for &(segment, _) in present.iter().filter(|(id, _)| !same_shape || id.0 >= segments) {
        store.remove(segment).map_err(NvmeError::io("removing an old segment"))?;
    }
    Ok(new)
}

fn replace(store: &dyn SegmentStore, superblock: &Superblock) -> Result<(), NvmeError> {
    store
        .replace_superblock(superblock.encode().bytes())
        .map_err(|e| storing(e, superblock.geometry, "writing the superblock"))
}

fn reserve(store: &dyn SegmentStore, segment: SegmentId, geometry: Geometry) -> Result<(), NvmeError> {
    store.reserve(segment, geometry.segment_bytes()).map_err(|e| storing(e, geometry, "reserving a segment"))
}

fn storing(e: io::Error, geometry: Geometry, doing: &'static str) -> NvmeError {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            NvmeError::NoSpace { segment_bytes: geometry.segment_bytes() }
        }
        _ => NvmeError::Io { doing, source: e },
    }
}

/// Makes both copies of the header the current one, without touching the one that is.
fn repair(
    store: &dyn SegmentStore,
    superblock: &Superblock,
    segment: SegmentId,
    scan: &Scan,
) -> io::Result<()> {
    let Superblock { log, geometry, .. } = *superblock;
    let header = SegmentHeader { log, segment, generation: scan.generation, geometry }.encode();
    if !scan.stale_copies.is_empty() {
        store.sync(segment)?; // the good one
    }
    for copy in &scan.stale_copies {
        let written = store.write_at(segment, copy * PAGE as u64, header.bytes())?;
        if written != PAGE {
            return Err(io::ErrorKind::WriteZero.into());
        }
        store.sync(segment)?;
    }
    Ok(())
}

/// Scans segments with a few threads: the work is waiting for the disk.
fn scan_all(store: &dyn SegmentStore, superblock: &Superblock, segments: u32) -> Vec<Scan> {
    const THREADS: u32 = 8;
    let next = AtomicU32::new(0);
    let done = Mutex::new(Vec::with_capacity(segments as usize));
    let worker = || {
        loop {
            let segment = next.fetch_add(1, Ordering::Relaxed);
            if segment >= segments {
                return;
            }
            let scan = scan(store, superblock, SegmentId(segment));
            done.lock().push((segment, scan));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS.min(segments) {
            // A thread that cannot be had is no loss: this one does the work too.
            drop(std::thread::Builder::new().spawn_scoped(scope, worker));
        }
        worker();
    });
    let mut scans = done.into_inner();
    scans.sort_unstable_by_key(|(segment, _)| *segment);
    scans.into_iter().map(|(_, scan)| scan).collect()
}

/// Unique enough that two logs in one directory never share it: 128 bits from the randomness that the standard
/// library seeds its hash maps with.
fn new_log_id() -> LogId {
    use std::hash::{BuildHasher, RandomState};
    let draw = |salt: u64| RandomState::new().hash_one((salt, std::process::id())).to_le_bytes();
    let mut id = [0; 16];
    id[..8].copy_from_slice(&draw(1));
    id[8..].copy_from_slice(&draw(2));
    LogId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_ids_differ() {
        assert_ne!(new_log_id(), new_log_id());
    }
}
