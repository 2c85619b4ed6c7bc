//! The index of a sealed segment.

use bytemuck::{Pod, Zeroable};
use kv_core::ids::SegmentId;
use kv_core::job::RecordMeta;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::{Epoch, Generation};
use kv_core::{RecordIdentity, payload_checksum};

use super::LogId;
use crate::nvme::geometry::Geometry;
use crate::nvme::page::PageBuf;
use crate::wire::{CODEC_RAW, Le32, Le64, VERSION, checked, put, sealed};

/// Bytes of a footer before its entries.
pub(crate) const FOOTER_HEAD: usize = size_of::<RawFooterHead>();
/// Bytes of one footer entry.
pub(crate) const FOOTER_ENTRY: usize = size_of::<FooterEntry>();

/// One record of a sealed segment, as the footer tells it.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct FooterEntry {
    key: [u8; 16],
    parent: [u8; 16],
    namespace: [u8; 16],
    fingerprint: [u8; 16],
    epoch: Le64,
    payload_checksum: Le64,
    index: Le32,
    depth: Le32,
    codec: Le32,
    reserved: Le32,
}

impl FooterEntry {
    pub(crate) fn new(index: u32, meta: &RecordMeta, payload_checksum: u64) -> Self {
        Self {
            key: meta.identity.key.to_bytes(),
            parent: meta.parent.to_bytes(),
            namespace: meta.identity.namespace.0,
            fingerprint: meta.identity.fingerprint.0,
            epoch: Le64::new(meta.identity.epoch.0),
            payload_checksum: Le64::new(payload_checksum),
            index: Le32::new(index),
            depth: Le32::new(meta.depth),
            codec: CODEC_RAW,
            reserved: Le32::new(0),
        }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index.get()
    }

    pub(crate) fn meta(&self, generation: Generation) -> RecordMeta {
        RecordMeta {
            identity: RecordIdentity {
                namespace: NamespaceId(self.namespace),
                epoch: Epoch(self.epoch.get()),
                fingerprint: Fingerprint(self.fingerprint),
                key: BlockKey::from_bytes(self.key),
                generation,
            },
            parent: BlockKey::from_bytes(self.parent),
            depth: self.depth.get(),
        }
    }
}

/// The index of a sealed segment.
pub(crate) struct Footer {
    pub(crate) log: LogId,
    pub(crate) segment: SegmentId,
    pub(crate) generation: Generation,
    pub(crate) entries: Vec<FooterEntry>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawFooterHead {
    magic: [u8; 8],
    version: Le32,
    segment: Le32,
    log: LogId,
    generation: Le64,
    records: Le32,
    reserved: Le32,
    entries_checksum: Le64,
    checksum: Le64,
}

impl Footer {
    const MAGIC: [u8; 8] = *b"KVTFOOTR";

    pub(crate) fn encode(&self, geometry: Geometry) -> PageBuf {
        let entries: &[u8] = bytemuck::cast_slice(&self.entries);
        let head = sealed(RawFooterHead {
            magic: Self::MAGIC,
            version: VERSION,
            segment: Le32::new(self.segment.0),
            log: self.log,
            generation: Le64::new(self.generation.0),
            records: Le32::new(self.entries.len() as u32),
            reserved: Le32::new(0),
            entries_checksum: Le64::new(payload_checksum(entries)),
            checksum: Le64::new(0),
        });
        let mut pages = PageBuf::new(geometry.footer_bytes(self.entries.len() as u32));
        put(pages.bytes_mut(), &head);
        if let Some(room) = pages.bytes_mut().get_mut(FOOTER_HEAD..FOOTER_HEAD + entries.len()) {
            room.copy_from_slice(entries);
        }
        pages
    }

    /// `None` unless head and entries are whole and every entry names a different record of the segment.
    pub(crate) fn decode(bytes: &[u8], geometry: Geometry) -> Option<Self> {
        let head: RawFooterHead = checked(bytes, Self::MAGIC)?;
        let records = head.records.get();
        if records > geometry.records_per_segment {
            return None;
        }
        let entries = bytes.get(FOOTER_HEAD..FOOTER_HEAD + records as usize * FOOTER_ENTRY)?;
        if payload_checksum(entries) != head.entries_checksum.get() {
            return None;
        }
        let entries: Vec<FooterEntry> = bytemuck::try_cast_slice(entries).ok()?.to_vec();
        let ordered = entries.windows(2).all(|w| w[0].index() < w[1].index());
        let in_range = entries.last().is_none_or(|e| e.index() < geometry.records_per_segment);
        (ordered && in_range && entries.iter().all(|e| e.codec == CODEC_RAW)).then_some(Self {
            log: head.log,
            segment: SegmentId(head.segment.get()),
            generation: Generation(head.generation.get()),
            entries,
        })
    }
}
