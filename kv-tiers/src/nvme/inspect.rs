//! Looking at a log beside its owner: no lock, no write.

use std::collections::BTreeMap;
use std::path::Path;

use kv_core::ids::SegmentId;
use serde::Serialize;

use super::error::NvmeError;
use super::format::Superblock;
use super::recover::{Damage, SKIP};
use super::scan::{Found, Scan, scan, scan_in_full};
use super::store::{Access, FileStore, SegmentStore};

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Bytes of one payload.
    pub payload_bytes: u64,
    /// Records of a segment.
    pub records_per_segment: u32,
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// Every segment, by number.
    pub segments: Vec<SegmentInfo>,
    /// Readable records.
    pub records: u64,
    /// Who owns them, by the hexadecimal namespace id.
    pub namespaces: BTreeMap<String, NamespaceInfo>,
    /// What is not whole. Records that the owner is writing at this moment look torn.
    pub damaged: Vec<Damage>,
    /// Bytes written in the life of this log, at most: every opened segment counts as filled.
    pub wear_bytes: u64,
}

/// One segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SegmentInfo {
    /// Its number.
    pub segment: u32,
    /// Where it is in its life.
    pub state: SegmentState,
    /// How often it was opened.
    pub generation: u64,
    /// Readable records.
    pub records: u32,
}

/// Where a segment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentState {
    /// Never opened in this log.
    Free,
    /// Opened, and not sealed.
    Open,
    /// Complete, with its index.
    Sealed,
    /// Its header is unreadable.
    Unknown,
}

/// What one namespace has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NamespaceInfo {
    /// Records.
    pub records: u64,
    /// Bytes of payload.
    pub bytes: u64,
    /// Records by epoch.
    pub epochs: BTreeMap<u64, u64>,
}

/// Reads a log without changing anything, whether or not somebody has it open. The records of a sealed segment are
/// known from its footer and are not read.
///
/// # Errors
/// The directory or its superblock cannot be read. Damage within is part of the answer.
pub fn inspect(dir: &Path) -> Result<Inspection, NvmeError> {
    examine(dir, scan, &mut |_| {})
}

/// [`inspect`], and reads every record and checks its payload: takes as long as reading the whole log. `progress`
/// is told how many segments are done.
///
/// # Errors
/// As for [`inspect`].
pub fn scrub(dir: &Path, progress: &mut dyn FnMut(usize)) -> Result<Inspection, NvmeError> {
    examine(dir, scan_in_full, progress)
}

type ScanOf = fn(&dyn SegmentStore, &Superblock, SegmentId) -> Scan;

/// The store of a log, for reading alone, and the bytes of its superblock if there is one.
pub(super) fn open_to_look(dir: &Path) -> Result<(FileStore, Option<Vec<u8>>), NvmeError> {
    let at = |doing| NvmeError::at(dir, doing);
    let store = FileStore::open_for(dir, Access::ReadOnly).map_err(at("opening the directory"))?;
    let superblock = store.superblock().map_err(at("reading the superblock"))?;
    Ok((store, superblock))
}

fn examine(dir: &Path, scan: ScanOf, progress: &mut dyn FnMut(usize)) -> Result<Inspection, NvmeError> {
    let (store, bytes) = open_to_look(dir)?;
    let bytes = bytes.ok_or_else(|| NvmeError::NoLog(dir.to_path_buf()))?;
    let superblock = Superblock::decode(&bytes).ok_or(NvmeError::Superblock)?;
    let present = store.segments().map_err(NvmeError::at(dir, "listing segments"))?;
    let Superblock { geometry, floor, .. } = superblock;
    let mut seen = Inspection {
        payload_bytes: geometry.payload_bytes as u64,
        records_per_segment: geometry.records_per_segment,
        segment_bytes: geometry.segment_bytes(),
        ..Inspection::default()
    };
    for (done, (segment, _)) in present.iter().enumerate() {
        let scan = scan(&store, &superblock, *segment);
        seen.segments.push(SegmentInfo {
            segment: segment.0,
            state: match scan.found {
                Found::Nothing => SegmentState::Free,
                Found::Unknown => SegmentState::Unknown,
                Found::Open => SegmentState::Open,
                Found::Sealed => SegmentState::Sealed,
            },
            generation: scan.generation.0,
            records: scan.records.len() as u32,
        });
        let lives = scan.generation.0.saturating_sub(floor.0) % SKIP;
        seen.wear_bytes = seen.wear_bytes.saturating_add(lives.saturating_mul(geometry.segment_bytes()));
        seen.records += scan.records.len() as u64;
        for record in &scan.records {
            let identity = record.meta.identity;
            let namespace = seen.namespaces.entry(identity.namespace.to_string()).or_default();
            namespace.records += 1;
            namespace.bytes += geometry.payload_bytes as u64;
            *namespace.epochs.entry(identity.epoch.0).or_default() += 1;
        }
        seen.damaged.extend(scan.damaged);
        progress(done + 1);
    }
    Ok(seen)
}
