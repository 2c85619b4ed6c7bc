//! What is on the disk, byte by byte. Little-endian, no implicit padding; `docs/nvme-format.md` is the
//! prose, with the argument why a crash cannot hurt.
//!
//! Every structure begins with a magic and a version and ends with a CRC-64/NVME of the bytes before it.

mod footer;

use bytemuck::{Pod, Zeroable};
use kv_core::RecordIdentity;
use kv_core::ids::SegmentId;
use kv_core::job::{Place, RecordMeta};
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::{Epoch, Generation};

use super::geometry::Geometry;
use super::page::PageBuf;
use crate::arena::PAGE;
use crate::wire::{CODEC_RAW, Le32, Le64, VERSION, checked, put, sealed};

pub(crate) use footer::{FOOTER_ENTRY, FOOTER_HEAD, Footer, FooterEntry};

/// Random name of one life of a log. Binds segments, records and footers to their superblock, so that a
/// log made anew in the same files cannot find anything of the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct LogId(pub(crate) [u8; 16]);

/// The log as a whole: file `kvtier.log`, two equal pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) log: LogId,
    pub(crate) geometry: Geometry,
    /// Generation of a segment that was never opened. Above every generation of earlier logs in these files.
    pub(crate) floor: Generation,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawSuperblock {
    magic: [u8; 8],
    version: Le32,
    records_per_segment: Le32,
    log: LogId,
    payload_bytes: Le64,
    floor: Le64,
    checksum: Le64,
}

impl Superblock {
    const MAGIC: [u8; 8] = *b"KVTSUPER";

    pub(crate) fn encode(&self) -> PageBuf {
        let raw = sealed(RawSuperblock {
            magic: Self::MAGIC,
            version: VERSION,
            records_per_segment: Le32::new(self.geometry.records_per_segment),
            log: self.log,
            payload_bytes: Le64::new(self.geometry.payload_bytes as u64),
            floor: Le64::new(self.floor.0),
            checksum: Le64::new(0),
        });
        let mut pages = PageBuf::new(2 * PAGE);
        for page in pages.bytes_mut().chunks_exact_mut(PAGE) {
            put(page, &raw);
        }
        pages
    }

    /// The first good copy.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let raw: RawSuperblock = bytes.chunks(PAGE).find_map(|page| checked(page, Self::MAGIC))?;
        let payload_bytes = usize::try_from(raw.payload_bytes.get()).ok()?;
        Some(Self {
            log: raw.log,
            geometry: Geometry::new(payload_bytes, raw.records_per_segment.get())?,
            floor: Generation(raw.floor.get()),
        })
    }
}

/// One life of one segment: two equal pages at the start of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) log: LogId,
    pub(crate) segment: SegmentId,
    pub(crate) generation: Generation,
    pub(crate) geometry: Geometry,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawSegmentHeader {
    magic: [u8; 8],
    version: Le32,
    segment: Le32,
    log: LogId,
    generation: Le64,
    payload_bytes: Le64,
    stride: Le64,
    records_per_segment: Le32,
    reserved: Le32,
    checksum: Le64,
}

impl SegmentHeader {
    const MAGIC: [u8; 8] = *b"KVTSEGMT";

    /// One page.
    pub(crate) fn encode(&self) -> PageBuf {
        let raw = sealed(RawSegmentHeader {
            magic: Self::MAGIC,
            version: VERSION,
            segment: Le32::new(self.segment.0),
            log: self.log,
            generation: Le64::new(self.generation.0),
            payload_bytes: Le64::new(self.geometry.payload_bytes as u64),
            stride: Le64::new(self.geometry.stride() as u64),
            records_per_segment: Le32::new(self.geometry.records_per_segment),
            reserved: Le32::new(0),
            checksum: Le64::new(0),
        });
        let mut page = PageBuf::new(PAGE);
        put(page.bytes_mut(), &raw);
        page
    }

    pub(crate) fn decode(page: &[u8]) -> Option<Self> {
        let raw: RawSegmentHeader = checked(page, Self::MAGIC)?;
        let payload_bytes = usize::try_from(raw.payload_bytes.get()).ok()?;
        Some(Self {
            log: raw.log,
            segment: SegmentId(raw.segment.get()),
            generation: Generation(raw.generation.get()),
            geometry: Geometry::new(payload_bytes, raw.records_per_segment.get())?,
        })
    }
}

/// What precedes a payload, in a page of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) log: LogId,
    pub(crate) place: Place,
    pub(crate) meta: RecordMeta,
    pub(crate) payload_bytes: u64,
    pub(crate) payload_checksum: u64,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawRecordHeader {
    magic: [u8; 8],
    version: Le32,
    codec: Le32,
    log: LogId,
    segment: Le32,
    index: Le32,
    generation: Le64,
    namespace: [u8; 16],
    fingerprint: [u8; 16],
    key: [u8; 16],
    parent: [u8; 16],
    epoch: Le64,
    depth: Le32,
    reserved: Le32,
    payload_bytes: Le64,
    payload_checksum: Le64,
    checksum: Le64,
}

impl RecordHeader {
    const MAGIC: [u8; 8] = *b"KVTRECRD";

    /// Fills a header page.
    pub(crate) fn encode(&self, page: &mut [u8]) {
        let RecordMeta { identity, parent, depth } = self.meta;
        let raw = sealed(RawRecordHeader {
            magic: Self::MAGIC,
            version: VERSION,
            codec: CODEC_RAW,
            log: self.log,
            segment: Le32::new(self.place.segment.0),
            index: Le32::new(self.place.index),
            generation: Le64::new(self.place.generation.0),
            namespace: identity.namespace.0,
            fingerprint: identity.fingerprint.0,
            key: identity.key.to_bytes(),
            parent: parent.to_bytes(),
            epoch: Le64::new(identity.epoch.0),
            depth: Le32::new(depth),
            reserved: Le32::new(0),
            payload_bytes: Le64::new(self.payload_bytes),
            payload_checksum: Le64::new(self.payload_checksum),
            checksum: Le64::new(0),
        });
        page.fill(0);
        put(page, &raw);
    }

    /// `None` unless the header is whole and its codec is known.
    pub(crate) fn decode(page: &[u8]) -> Option<Self> {
        let raw: RawRecordHeader = checked(page, Self::MAGIC)?;
        if raw.codec != CODEC_RAW {
            return None;
        }
        let generation = Generation(raw.generation.get());
        Some(Self {
            log: raw.log,
            place: Place { segment: SegmentId(raw.segment.get()), generation, index: raw.index.get() },
            meta: RecordMeta {
                identity: RecordIdentity {
                    namespace: NamespaceId(raw.namespace),
                    epoch: Epoch(raw.epoch.get()),
                    fingerprint: Fingerprint(raw.fingerprint),
                    key: BlockKey::from_bytes(raw.key),
                    generation,
                },
                parent: BlockKey::from_bytes(raw.parent),
                depth: raw.depth.get(),
            },
            payload_bytes: raw.payload_bytes.get(),
            payload_checksum: raw.payload_checksum.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(n: u8) -> RecordMeta {
        RecordMeta {
            identity: RecordIdentity {
                namespace: NamespaceId([n; 16]),
                epoch: Epoch(3),
                fingerprint: Fingerprint([n + 1; 16]),
                key: BlockKey::from_bytes([n + 2; 16]),
                generation: Generation(9),
            },
            parent: BlockKey::from_bytes([n + 3; 16]),
            depth: 77,
        }
    }
    const LOG: LogId = LogId([5; 16]);
    const GEOMETRY: Geometry = Geometry { payload_bytes: 10_000, records_per_segment: 100 };

    /// The sizes that `docs/nvme-format.md` states.
    #[test]
    fn sizes_are_the_documented_ones() {
        assert_eq!(size_of::<RawSuperblock>(), 56);
        assert_eq!(size_of::<RawSegmentHeader>(), 72);
        assert_eq!(size_of::<RawRecordHeader>(), 152);
        assert_eq!(FOOTER_HEAD, 64);
        assert_eq!(FOOTER_ENTRY, 96);
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let superblock = Superblock { log: LOG, geometry: GEOMETRY, floor: Generation(4) };
        assert_eq!(Superblock::decode(superblock.encode().bytes()), Some(superblock));

        let header =
            SegmentHeader { log: LOG, segment: SegmentId(2), generation: Generation(9), geometry: GEOMETRY };
        assert_eq!(SegmentHeader::decode(header.encode().bytes()), Some(header));

        let place = Place { segment: SegmentId(2), generation: Generation(9), index: 8 };
        let record =
            RecordHeader { log: LOG, place, meta: meta(1), payload_bytes: 10_000, payload_checksum: 42 };
        let mut page = [0xFF; PAGE];
        record.encode(&mut page);
        assert_eq!(RecordHeader::decode(&page), Some(record));

        let entries: Vec<_> = (0..100).map(|i| FooterEntry::new(i, &meta(i as u8), u64::from(i))).collect();
        let footer = Footer { log: LOG, segment: SegmentId(2), generation: Generation(9), entries };
        let pages = footer.encode(GEOMETRY);
        let back = Footer::decode(pages.bytes(), GEOMETRY).unwrap();
        assert_eq!((back.log, back.segment, back.generation), (LOG, SegmentId(2), Generation(9)));
        for (i, entry) in back.entries.iter().enumerate() {
            assert_eq!((entry.index(), entry.meta(Generation(9))), (i as u32, meta(i as u8)));
        }
    }

    /// Every bit of every structure is covered by a checksum.
    #[test]
    fn every_flipped_bit_is_noticed() {
        let superblock = Superblock { log: LOG, geometry: GEOMETRY, floor: Generation(4) };
        let header =
            SegmentHeader { log: LOG, segment: SegmentId(2), generation: Generation(9), geometry: GEOMETRY };
        let place = Place { segment: SegmentId(2), generation: Generation(9), index: 8 };
        let record =
            RecordHeader { log: LOG, place, meta: meta(1), payload_bytes: 10_000, payload_checksum: 42 };
        let mut record_page = vec![0; PAGE];
        record.encode(&mut record_page);
        let entries = (0..3).map(|i| FooterEntry::new(i, &meta(1), 0)).collect();
        let footer = Footer { log: LOG, segment: SegmentId(2), generation: Generation(9), entries };

        let flips = |bytes: &mut [u8], len: usize, readable: &dyn Fn(&[u8]) -> bool| {
            assert!(readable(bytes));
            for bit in 0..len * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(!readable(bytes), "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        };
        flips(&mut superblock.encode().bytes_mut()[..PAGE], 56, &|b| Superblock::decode(b).is_some());
        flips(header.encode().bytes_mut(), 72, &|b| SegmentHeader::decode(b).is_some());
        flips(&mut record_page, 152, &|b| RecordHeader::decode(b).is_some());
        let size = FOOTER_HEAD + 3 * FOOTER_ENTRY;
        flips(footer.encode(GEOMETRY).bytes_mut(), size, &|b| Footer::decode(b, GEOMETRY).is_some());
    }

    #[test]
    fn one_bad_copy_of_the_superblock_does_no_harm() {
        let superblock = Superblock { log: LOG, geometry: GEOMETRY, floor: Generation(4) };
        let mut pages = superblock.encode();
        pages.bytes_mut()[..PAGE].fill(0xAA);
        assert_eq!(Superblock::decode(pages.bytes()), Some(superblock));
        pages.bytes_mut()[PAGE..].fill(0xAA);
        assert_eq!(Superblock::decode(pages.bytes()), None);
    }

    #[test]
    fn short_and_foreign_bytes_are_nothing() {
        for len in [0, 1, 63, 151] {
            assert!(Superblock::decode(&vec![0; len]).is_none());
            assert!(SegmentHeader::decode(&vec![0; len]).is_none());
            assert!(RecordHeader::decode(&vec![0; len]).is_none());
            assert!(Footer::decode(&vec![0; len], GEOMETRY).is_none());
        }
    }
}
