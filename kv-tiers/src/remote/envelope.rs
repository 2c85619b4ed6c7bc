//! The value that a remote store keeps: a header that says whose bytes these are, and the bytes.
//!
//! ```text
//! | header, 128 B: magic, version, codec, identity, parent, depth, lengths, payload checksum, its own checksum |
//! | payload, or its encoding |
//! ```
//!
//! An encoding is always shorter than the payload, so no record is longer than one whose payload is stored as it is.
//! The checksum is the payload's, not the encoding's: what is proven is what a reader gets, whatever the codec did.
//!
//! The same fields as a record of the NVMe log without its place. A name proves nothing: only a header that
//! repeats what was asked for, and a payload that has its checksum, lead to a [`Verified`].

use std::sync::Arc;
use std::time::Instant;

use bytemuck::{Pod, Zeroable};
use kv_core::ids::JobId;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::{Epoch, Generation};
use kv_core::{Mismatch, RecordIdentity, Verified, payload_checksum};

use super::buffers::{Buffer, Buffers};
use super::{Coding, Put, RemoteError};
use crate::codec::{Codec, Elements};
use crate::wire::{CODEC_RAW, Le32, Le64, VERSION, checked, sealed};

/// Bytes before the payload.
pub(crate) const HEADER: usize = size_of::<RawHeader>();

const MAGIC: [u8; 8] = *b"KVTREMOT";

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: Le32,
    codec: Le32,
    namespace: [u8; 16],
    fingerprint: [u8; 16],
    key: [u8; 16],
    parent: [u8; 16],
    epoch: Le64,
    depth: Le32,
    reserved: [u8; 4],
    /// Bytes of the encoding; 0 if the payload is stored as it is.
    encoded_bytes: Le64,
    payload_bytes: Le64,
    payload_checksum: Le64,
    checksum: Le64,
}

impl RawHeader {
    fn identity(&self) -> RecordIdentity {
        RecordIdentity {
            namespace: NamespaceId(self.namespace),
            epoch: Epoch(self.epoch.get()),
            fingerprint: Fingerprint(self.fingerprint),
            key: BlockKey::from_bytes(self.key),
            generation: Generation(0),
        }
    }
}

/// Whether a record that begins with these bytes says to be that one. A client that gets another has reason to
/// doubt its connection.
#[cfg(feature = "redis")]
pub(crate) fn is_of(first: &[u8], expected: &RecordIdentity) -> bool {
    checked::<RawHeader>(first, MAGIC).is_some_and(|header| header.identity() == *expected)
}

/// Bytes of the record that begins like this, whatever it is a record of.
#[cfg(feature = "redis")]
pub(crate) fn record_bytes(first: &[u8]) -> Option<usize> {
    let header: RawHeader = checked(first, MAGIC)?;
    let encoded = header.encoded_bytes.get();
    let body = if header.codec == CODEC_RAW { header.payload_bytes.get() } else { encoded };
    usize::try_from(body).ok()?.checked_add(HEADER)
}

/// A whole record, in memory of its own, and what its encoding took. The generation of `meta` is not stored.
///
/// Done by who calls: the payload is borrowed and must be copied anyway, and encoding it is a copy that writes less.
/// Another thread would need the copy first, and a queue for it.
pub(crate) fn encode(put: &Put<'_>, buffers: &Arc<Buffers>) -> (Buffer, Coding) {
    let Put { meta, payload, elements } = put;
    // Room for the header, which is known last.
    let mut record = buffers.take(HEADER + payload.len());
    record.resize(HEADER, 0);
    let (mut codec, mut encoded_bytes, mut coding) = (CODEC_RAW, 0, Coding::default());
    if let Some(elements) = elements {
        let start = Instant::now();
        if Codec::best().encode(*elements, payload, &mut record) {
            codec = Le32::new(elements.id());
            encoded_bytes = record.len() - HEADER;
        }
        let stored = if codec == CODEC_RAW { payload.len() } else { encoded_bytes };
        coding = Coding::new(stored, payload.len(), start.elapsed());
    }
    if codec == CODEC_RAW {
        record.extend_from_slice(payload);
    }
    let header = sealed(RawHeader {
        magic: MAGIC,
        version: VERSION,
        codec,
        namespace: meta.identity.namespace.0,
        fingerprint: meta.identity.fingerprint.0,
        key: meta.identity.key.to_bytes(),
        parent: meta.parent.to_bytes(),
        epoch: Le64::new(meta.identity.epoch.0),
        depth: Le32::new(meta.depth),
        reserved: [0; 4],
        encoded_bytes: Le64::new(encoded_bytes as u64),
        payload_bytes: Le64::new(payload.len() as u64),
        payload_checksum: Le64::new(payload_checksum(payload)),
        checksum: Le64::new(0),
    });
    crate::wire::put(&mut record, &header);
    (record, coding)
}

/// What came back under some name, in one piece or in the order of its chunks. Not to be trusted.
#[derive(Debug)]
pub(crate) struct RawRecord(pub(crate) Vec<Buffer>);

impl RawRecord {
    /// Copies or decodes the payload to `into` and checks it there, so that what is proven is what will be read. Also
    /// says what the decoding took.
    ///
    /// # Errors
    /// [`RemoteError::NoRecord`] or [`RemoteError::Refused`]; `into` then holds anything.
    pub(crate) fn verify_into(
        self,
        job: JobId,
        expected: &RecordIdentity,
        into: &mut [u8],
    ) -> Result<(Verified, Coding), RemoteError> {
        let Self(chunks) = self;
        let first = chunks.first().ok_or(RemoteError::NoRecord)?;
        let header: RawHeader = checked(first, MAGIC).ok_or(RemoteError::NoRecord)?;
        let elements = match header.codec {
            CODEC_RAW => None,
            codec => Some(Elements::by_id(codec.get()).ok_or(RemoteError::NoRecord)?),
        };
        let found = header.identity();
        if found != *expected {
            return Err(Mismatch::Identity.into());
        }
        let stored = chunks.iter().map(|chunk| chunk.len()).sum::<usize>() - HEADER;
        let (payload_bytes, encoded_bytes) = (header.payload_bytes.get(), header.encoded_bytes.get());
        let right = match elements {
            None => stored as u64 == payload_bytes && encoded_bytes == 0,
            Some(_) => stored as u64 == encoded_bytes && encoded_bytes < payload_bytes,
        };
        if !right || payload_bytes != into.len() as u64 {
            return Err(Mismatch::Length.into());
        }
        let mut segments: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.as_slice()).collect();
        if let Some(first) = segments.first_mut() {
            *first = first.get(HEADER..).unwrap_or_default();
        }
        let coding = match elements {
            None => {
                copy(&segments, into)?;
                Coding::default()
            }
            Some(elements) => {
                let start = Instant::now();
                Codec::best().decode(elements, &segments, into).map_err(|_| Mismatch::Checksum)?;
                Coding::new(stored, into.len(), start.elapsed())
            }
        };
        let checksum = header.payload_checksum.get();
        Ok((Verified::by_record(job, expected, &found, into.len(), into, checksum)?, coding))
    }
}

fn copy(segments: &[&[u8]], into: &mut [u8]) -> Result<(), Mismatch> {
    let mut rest = into;
    for segment in segments {
        let here = rest.split_off_mut(..segment.len()).ok_or(Mismatch::Length)?;
        here.copy_from_slice(segment);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kv_core::job::RecordMeta;

    use super::*;

    fn encode(put: &Put<'_>) -> (Vec<u8>, Coding) {
        let (record, coding) = super::encode(put, &Arc::default());
        (record.to_vec(), coding)
    }

    fn meta(n: u8) -> RecordMeta {
        let identity = RecordIdentity {
            namespace: NamespaceId([n; 16]),
            epoch: Epoch(3),
            fingerprint: Fingerprint([n + 1; 16]),
            key: BlockKey::from_bytes([n + 2; 16]),
            generation: Generation(0),
        };
        RecordMeta { identity, parent: BlockKey::from_bytes([n + 3; 16]), depth: 7 }
    }

    fn raw(n: u8, payload: &[u8]) -> Vec<u8> {
        encode(&Put { meta: meta(n), payload, elements: None }).0
    }

    fn read(record: Vec<u8>, chunk: usize, expect: u8, len: usize) -> Result<Vec<u8>, RemoteError> {
        let mut into = vec![0xEE; len];
        let chunks = record.chunks(chunk).map(|chunk| chunk.to_vec().into()).collect();
        let (verified, _) = RawRecord(chunks).verify_into(JobId(9), &meta(expect).identity, &mut into)?;
        assert_eq!(verified.job(), JobId(9));
        Ok(into)
    }

    #[test]
    fn what_is_encoded_is_verified_in_any_chunks() {
        assert_eq!(HEADER, 128);
        let payload: Vec<u8> = (0..1000).map(|i| i as u8).collect();
        for chunk in [128, 129, 500, 5000] {
            assert_eq!(read(raw(1, &payload), chunk, 1, 1000), Ok(payload.clone()), "{chunk}");
        }
        // A chunk that splits the header is nothing that this program writes.
        assert_eq!(read(raw(1, &payload), 64, 1, 1000), Err(RemoteError::NoRecord));
    }

    /// Every bit of header and payload is covered.
    #[test]
    fn every_flipped_bit_is_refused() {
        let record = raw(1, b"some bytes of KV");
        // Records of the time before there was a codec are the same.
        assert_eq!(record[92..104], [0; 12]);
        for bit in 0..record.len() * 8 {
            let mut wrong = record.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let error = if bit / 8 < HEADER { RemoteError::NoRecord } else { Mismatch::Checksum.into() };
            assert_eq!(read(wrong, 4096, 1, 16), Err(error), "bit {bit}");
        }
    }

    #[test]
    fn cut_lengthened_and_foreign_records_are_refused() {
        let record = raw(1, b"some bytes of KV");
        for len in 0..record.len() {
            let error = if len < HEADER { RemoteError::NoRecord } else { Mismatch::Length.into() };
            assert_eq!(read(record[..len].to_vec(), 4096, 1, 16), Err(error), "{len}");
        }
        let long = [&record[..], b"!"].concat();
        assert_eq!(read(long, 4096, 1, 16), Err(Mismatch::Length.into()));
        assert_eq!(read(record.clone(), 4096, 1, 17), Err(Mismatch::Length.into()));
        assert_eq!(read(record, 4096, 2, 16), Err(Mismatch::Identity.into()));
    }

    /// Two exponents, mantissas that differ.
    fn kv(n: u32) -> Vec<u8> {
        let bits = |i: u32| 0x3F00 | (i.wrapping_mul(0x9E37_79B9) >> 24) as u16;
        (0..n).flat_map(|i| bits(i).to_le_bytes()).collect()
    }

    #[test]
    fn encoded_records_are_verified_in_any_chunks_and_covered_bit_by_bit() {
        let payload = kv(300);
        let (record, coding) =
            encode(&Put { meta: meta(1), payload: &payload, elements: Some(Elements::Bf16) });
        assert_eq!((coding.payload_bytes, coding.stored_bytes), (600, (record.len() - HEADER) as u64));
        assert!(record.len() - HEADER < 500, "{}", record.len());
        #[cfg(feature = "redis")]
        assert_eq!((record_bytes(&record), record_bytes(&raw(1, &payload))), (Some(record.len()), Some(728)));
        for chunk in [128, 129, 200, 5000] {
            assert_eq!(read(record.clone(), chunk, 1, 600), Ok(payload.clone()), "{chunk}");
        }
        for bit in 0..record.len() * 8 {
            let mut wrong = record.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            match read(wrong, 4096, 1, 600) {
                Err(error) if bit / 8 < HEADER => assert_eq!(error, RemoteError::NoRecord, "bit {bit}"),
                Err(error) => assert_eq!(error, Mismatch::Checksum.into(), "bit {bit}"),
                // A value of the last level that no element has.
                Ok(same) => assert_eq!(same, payload, "bit {bit}"),
            }
        }
        for len in HEADER..record.len() {
            assert_eq!(read(record[..len].to_vec(), 4096, 1, 600), Err(Mismatch::Length.into()), "{len}");
        }
        assert_eq!(read([&record[..], b"!"].concat(), 4096, 1, 600), Err(Mismatch::Length.into()));
        assert_eq!(read(record, 4096, 1, 602), Err(Mismatch::Length.into()));
    }

    /// Whoever can write the store can write a header that is right in itself.
    #[test]
    fn a_header_that_lies_about_codec_and_lengths_is_refused() {
        let payload = kv(300);
        let put = Put { meta: meta(1), payload: &payload, elements: Some(Elements::Bf16) };
        let (record, _) = encode(&put);
        let lie = |change: fn(&mut RawHeader)| {
            let mut header: RawHeader = bytemuck::pod_read_unaligned(&record[..HEADER]);
            change(&mut header);
            let lying = [bytemuck::bytes_of(&sealed(header)), &record[HEADER..]].concat();
            read(lying, 4096, 1, 600)
        };
        assert_eq!(lie(|_| {}), Ok(payload.clone()));
        assert_eq!(lie(|h| h.codec = Le32::new(5)), Err(RemoteError::NoRecord));
        assert_eq!(lie(|h| h.codec = Le32::new(2)), Err(Mismatch::Checksum.into()));
        assert_eq!(lie(|h| h.codec = CODEC_RAW), Err(Mismatch::Length.into()));
        assert_eq!(lie(|h| h.encoded_bytes = Le64::new(u64::MAX)), Err(Mismatch::Length.into()));
        assert_eq!(lie(|h| h.payload_bytes = Le64::new(u64::MAX)), Err(Mismatch::Length.into()));
        assert_eq!(lie(|h| h.payload_bytes = Le64::new(0)), Err(Mismatch::Length.into()));
        assert_eq!(lie(|h| h.payload_checksum = Le64::new(0)), Err(Mismatch::Checksum.into()));
    }

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is() {
        let noise: Vec<u8> =
            (0..5000_u64).flat_map(|i| (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect();
        let put = Put { meta: meta(1), payload: &noise, elements: Some(Elements::Bf16) };
        let (record, coding) = encode(&put);
        assert_eq!(record, raw(1, &noise));
        assert_eq!(coding.stored_bytes, coding.payload_bytes);
    }
}
