//! The value that a remote store keeps: a header that says whose bytes these are, and the bytes.
//!
//! ```text
//! | header, 128 B: magic, version, codec, identity, parent, depth, payload length and checksum, its own checksum |
//! | payload |
//! ```
//!
//! The same fields as a record of the NVMe log without its place. A name proves nothing: only a header that
//! repeats what was asked for, and a payload that has its checksum, lead to a [`Verified`].

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use kv_core::ids::JobId;
use kv_core::job::RecordMeta;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::{Epoch, Generation};
use kv_core::{Mismatch, RecordIdentity, Verified, payload_checksum};

use super::RemoteError;
use super::buffers::{Buffer, Buffers};
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
    reserved: [u8; 12],
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

/// A whole record, in memory of its own. The generation of `meta` is not stored.
pub(crate) fn encode(meta: &RecordMeta, payload: &[u8], buffers: &Arc<Buffers>) -> Buffer {
    let header = sealed(RawHeader {
        magic: MAGIC,
        version: VERSION,
        codec: CODEC_RAW,
        namespace: meta.identity.namespace.0,
        fingerprint: meta.identity.fingerprint.0,
        key: meta.identity.key.to_bytes(),
        parent: meta.parent.to_bytes(),
        epoch: Le64::new(meta.identity.epoch.0),
        depth: Le32::new(meta.depth),
        reserved: [0; 12],
        payload_bytes: Le64::new(payload.len() as u64),
        payload_checksum: Le64::new(payload_checksum(payload)),
        checksum: Le64::new(0),
    });
    let mut record = buffers.take(HEADER + payload.len());
    record.extend_from_slice(bytemuck::bytes_of(&header));
    record.extend_from_slice(payload);
    record
}

/// What came back under some name, in one piece or in the order of its chunks. Not to be trusted.
#[derive(Debug)]
pub(crate) struct RawRecord(pub(crate) Vec<Buffer>);

impl RawRecord {
    /// Copies the payload to `into` and checks it there, so that what is proven is what will be read.
    ///
    /// # Errors
    /// [`RemoteError::NoRecord`] or [`RemoteError::Refused`]; `into` then holds anything.
    pub(crate) fn verify_into(
        self,
        job: JobId,
        expected: &RecordIdentity,
        into: &mut [u8],
    ) -> Result<Verified, RemoteError> {
        let Self(chunks) = self;
        let first = chunks.first().ok_or(RemoteError::NoRecord)?;
        let header: RawHeader = checked(first, MAGIC).ok_or(RemoteError::NoRecord)?;
        if header.codec != CODEC_RAW {
            return Err(RemoteError::NoRecord);
        }
        let found = header.identity();
        if found != *expected {
            return Err(Mismatch::Identity.into());
        }
        let len: usize = chunks.iter().map(|chunk| chunk.len()).sum();
        if header.payload_bytes.get() != into.len() as u64 || len != HEADER + into.len() {
            return Err(Mismatch::Length.into());
        }
        let mut rest = &mut *into;
        for (i, chunk) in chunks.iter().enumerate() {
            let bytes = if i == 0 { chunk.get(HEADER..).unwrap_or_default() } else { chunk };
            let Some((here, after)) = rest.split_at_mut_checked(bytes.len()) else {
                return Err(Mismatch::Length.into());
            };
            here.copy_from_slice(bytes);
            rest = after;
        }
        let checksum = header.payload_checksum.get();
        Ok(Verified::by_record(job, expected, &found, into.len(), into, checksum)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(meta: &RecordMeta, payload: &[u8]) -> Vec<u8> {
        super::encode(meta, payload, &Arc::default()).to_vec()
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

    fn read(record: Vec<u8>, chunk: usize, expect: u8, len: usize) -> Result<Vec<u8>, RemoteError> {
        let mut into = vec![0xEE; len];
        let chunks = record.chunks(chunk).map(|chunk| chunk.to_vec().into()).collect();
        let verified = RawRecord(chunks).verify_into(JobId(9), &meta(expect).identity, &mut into)?;
        assert_eq!(verified.job(), JobId(9));
        Ok(into)
    }

    #[test]
    fn what_is_encoded_is_verified_in_any_chunks() {
        assert_eq!(HEADER, 128);
        let payload: Vec<u8> = (0..1000).map(|i| i as u8).collect();
        for chunk in [128, 129, 500, 5000] {
            assert_eq!(read(encode(&meta(1), &payload), chunk, 1, 1000), Ok(payload.clone()), "{chunk}");
        }
        // A chunk that splits the header is nothing that this program writes.
        assert_eq!(read(encode(&meta(1), &payload), 64, 1, 1000), Err(RemoteError::NoRecord));
    }

    /// Every bit of header and payload is covered.
    #[test]
    fn every_flipped_bit_is_refused() {
        let record = encode(&meta(1), b"some bytes of KV");
        for bit in 0..record.len() * 8 {
            let mut wrong = record.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let error = if bit / 8 < HEADER { RemoteError::NoRecord } else { Mismatch::Checksum.into() };
            assert_eq!(read(wrong, 4096, 1, 16), Err(error), "bit {bit}");
        }
    }

    #[test]
    fn cut_lengthened_and_foreign_records_are_refused() {
        let record = encode(&meta(1), b"some bytes of KV");
        for len in 0..record.len() {
            let error = if len < HEADER { RemoteError::NoRecord } else { Mismatch::Length.into() };
            assert_eq!(read(record[..len].to_vec(), 4096, 1, 16), Err(error), "{len}");
        }
        let long = [&record[..], b"!"].concat();
        assert_eq!(read(long, 4096, 1, 16), Err(Mismatch::Length.into()));
        assert_eq!(read(record.clone(), 4096, 1, 17), Err(Mismatch::Length.into()));
        assert_eq!(read(record, 4096, 2, 16), Err(Mismatch::Identity.into()));
    }
}
