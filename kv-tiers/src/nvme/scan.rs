//! Reading what is in one segment, without changing it.

use kv_core::ids::SegmentId;
use kv_core::job::{Place, RecoveredRecord};
use kv_core::payload_checksum;
use kv_core::units::Generation;

use super::format::{Footer, FooterEntry, RecordHeader, SegmentHeader, Superblock};
use super::geometry::HEADER_COPIES;
use super::page::PageBuf;
use super::recover::{Damage, DamageKind};
use super::store::SegmentStore;
use crate::arena::PAGE;

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Never opened in this log.
    Nothing,
    /// Its header is unreadable, so nobody knows which records are current.
    Unknown,
    /// Open when the process ended.
    Open,
    /// Sealed: its footer says what it holds.
    Sealed,
}

/// What was found in a segment.
pub(crate) struct Scan {
    pub(crate) found: Found,
    /// Of its current life, or the highest that was seen if that is unknown.
    pub(crate) generation: Generation,
    /// Header copies that are not the current one: a crash came between the two, or one is damaged.
    pub(crate) stale_copies: Vec<u64>,
    pub(crate) records: Vec<RecoveredRecord>,
    /// What the footer would say, for an open segment.
    pub(crate) entries: Vec<FooterEntry>,
    pub(crate) damaged: Vec<Damage>,
    pub(crate) scanned_bytes: u64,
}

/// Reads as much of a segment as is needed to know its records.
pub(crate) fn scan(store: &dyn SegmentStore, superblock: &Superblock, segment: SegmentId) -> Scan {
    let mut scanner = Scanner { store, superblock, segment, scan: Scan::nothing(superblock.floor) };
    match scanner.header() {
        Found::Open if scanner.footer() => scanner.scan.found = Found::Sealed,
        Found::Open => {
            scanner.scan.found = Found::Open;
            scanner.records(true);
        }
        Found::Unknown => {
            scanner.scan.found = Found::Unknown;
            scanner.records(false);
        }
        found => scanner.scan.found = found,
    }
    scanner.scan
}

/// [`scan`], and reads the records of a sealed segment too. One that its footer lists and that is not whole is damage,
/// and not a record.
pub(crate) fn scan_in_full(store: &dyn SegmentStore, superblock: &Superblock, segment: SegmentId) -> Scan {
    let mut sealed = scan(store, superblock, segment);
    if sealed.found != Found::Sealed {
        return sealed;
    }
    let mut scanner = Scanner { store, superblock, segment, scan: Scan::nothing(sealed.generation) };
    scanner.records(true);
    let Scan { records: whole, damaged, scanned_bytes, .. } = scanner.scan;
    sealed.scanned_bytes += scanned_bytes;
    sealed.records.retain(|listed| {
        if whole.contains(listed) {
            return true;
        }
        let offset = superblock.geometry.record(listed.place.index);
        let seen = damaged.iter().find(|d| d.offset == offset);
        let what = seen.map_or(DamageKind::RecordHeader, |d| d.what);
        sealed.damaged.push(Damage { segment: segment.0, offset, what });
        false
    });
    sealed
}

impl Scan {
    fn nothing(generation: Generation) -> Self {
        Self {
            found: Found::Nothing,
            generation,
            stale_copies: Vec::new(),
            records: Vec::new(),
            entries: Vec::new(),
            damaged: Vec::new(),
            scanned_bytes: 0,
        }
    }
}

struct Scanner<'a> {
    store: &'a dyn SegmentStore,
    superblock: &'a Superblock,
    segment: SegmentId,
    scan: Scan,
}

impl Scanner<'_> {
    fn damaged(&mut self, offset: u64, what: DamageKind) {
        self.scan.damaged.push(Damage { segment: self.segment.0, offset, what });
    }

    /// Fills the buffer, with zeros where the file has nothing to give. `false` if not all could be read.
    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> bool {
        let what = match self.store.read_at(self.segment, offset, bytes) {
            Ok(given) => {
                self.scan.scanned_bytes += given as u64;
                bytes[given..].fill(0);
                (given < bytes.len()).then_some(DamageKind::Short)
            }
            Err(e) => {
                bytes.fill(0);
                Some(DamageKind::Unreadable(e.raw_os_error().unwrap_or(libc::EIO)))
            }
        };
        if let Some(what) = what {
            self.damaged(offset, what);
        }
        what.is_none()
    }

    /// Which life the segment is in: `Nothing`, `Unknown`, or `Open`, which the footer may still make `Sealed`.
    fn header(&mut self) -> Found {
        let mut pages = PageBuf::new(HEADER_COPIES as usize * PAGE);
        if !self.read(0, pages.bytes_mut()) {
            return Found::Unknown;
        }
        let copies: Vec<&[u8]> = pages.bytes().chunks(PAGE).collect();
        let decoded: Vec<Option<SegmentHeader>> = copies.iter().map(|c| SegmentHeader::decode(c)).collect();
        let Superblock { log, geometry, .. } = *self.superblock;
        let ours = |h: &&SegmentHeader| h.log == log && h.segment == self.segment && h.geometry == geometry;
        let current = decoded.iter().flatten().filter(ours).max_by_key(|h| h.generation).copied();
        // A page that is neither a header nor untouched.
        let broken = |i: usize| decoded[i].is_none() && copies[i].iter().any(|&b| b != 0);
        let broken: Vec<u64> = (0..copies.len()).filter(|&i| broken(i)).map(|i| (i * PAGE) as u64).collect();
        let what = if current.is_some() { DamageKind::HeaderCopy } else { DamageKind::SegmentHeader };
        for offset in &broken {
            self.damaged(*offset, what);
        }
        match current {
            Some(header) => {
                self.scan.generation = self.scan.generation.max(header.generation);
                let stale = (0..HEADER_COPIES).zip(&decoded).filter(|(_, h)| **h != Some(header));
                self.scan.stale_copies = stale.map(|(copy, _)| copy).collect();
                Found::Open
            }
            None if broken.is_empty() => Found::Nothing,
            None => Found::Unknown,
        }
    }

    /// Takes the records from the footer of the current life, if there is a whole one.
    fn footer(&mut self) -> bool {
        let Superblock { log, geometry, .. } = *self.superblock;
        let mut pages = PageBuf::new(geometry.footer_bytes(geometry.records_per_segment));
        if !self.read(geometry.footer(), pages.bytes_mut()) {
            return false;
        }
        let generation = self.scan.generation;
        match Footer::decode(pages.bytes(), geometry) {
            Some(f) if f.log == log && f.segment == self.segment && f.generation == generation => {
                let segment = self.segment;
                self.scan.records.extend(f.entries.iter().map(|entry| RecoveredRecord {
                    place: Place { segment, generation, index: entry.index() },
                    meta: entry.meta(generation),
                }));
                true
            }
            // Of an older life.
            Some(_) => false,
            None => {
                if pages.bytes()[..PAGE].iter().any(|&b| b != 0) {
                    self.damaged(geometry.footer(), DamageKind::Footer);
                }
                false
            }
        }
    }

    /// Reads every record. If the life of the segment is not `known`, only to see generations.
    fn records(&mut self, known: bool) {
        /// Read at once: enough that the disk streams.
        const RUN: usize = 4 << 20;
        let geometry = self.superblock.geometry;
        let stride = geometry.stride();
        let per_run = (RUN / stride).max(1) as u32;
        let mut pages = PageBuf::new(per_run.min(geometry.records_per_segment) as usize * stride);
        let mut first = 0;
        while first < geometry.records_per_segment {
            let run = per_run.min(geometry.records_per_segment - first);
            let bytes = &mut pages.bytes_mut()[..run as usize * stride];
            self.read(geometry.record(first), bytes);
            for (index, image) in (first..first + run).zip(bytes.chunks_exact(stride)) {
                if known {
                    self.record(index, image);
                } else if let Some(header) = RecordHeader::decode(image) {
                    self.scan.generation = self.scan.generation.max(header.place.generation);
                }
            }
            first += run;
        }
    }

    fn record(&mut self, index: u32, image: &[u8]) {
        let Superblock { log, geometry, .. } = *self.superblock;
        let (page, payload) = image.split_at(PAGE);
        let place = Place { segment: self.segment, generation: self.scan.generation, index };
        let Some(header) = RecordHeader::decode(page) else {
            if page.iter().any(|&b| b != 0) {
                self.damaged(geometry.record(index), DamageKind::RecordHeader);
            }
            return;
        };
        if header.log != log || header.place != place {
            return; // of an older life
        }
        let payload = &payload[..geometry.payload_bytes];
        if header.payload_bytes != payload.len() as u64
            || payload_checksum(payload) != header.payload_checksum
        {
            return self.damaged(geometry.record(index), DamageKind::Payload);
        }
        self.scan.entries.push(FooterEntry::new(index, &header.meta, header.payload_checksum));
        self.scan.records.push(RecoveredRecord { place, meta: header.meta });
    }
}
