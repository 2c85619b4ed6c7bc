//! Proof that a transfer's bytes are the ones that were asked for.
//!
//! A block becomes readable only when the planner consumes a [`Verified`], and the only ways to make one
//! are the checks in this file. A transfer that failed has no token, so it cannot be reported as success.

use crate::ids::JobId;
use crate::key::{BlockKey, Fingerprint, NamespaceId};
use crate::units::{Epoch, Generation};

/// Everything that a stored record says about itself and a reader must find unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordIdentity {
    /// Owner.
    pub namespace: NamespaceId,
    /// The owner's epoch when the record was written.
    pub epoch: Epoch,
    /// Meaning of the bytes.
    pub fingerprint: Fingerprint,
    /// Name of the block.
    pub key: BlockKey,
    /// Generation of the segment it was written in.
    pub generation: Generation,
}

/// Why bytes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The record belongs to somebody else, to another model, another block or an older life of its segment.
    #[error("record identity differs from what was asked for")]
    Identity,
    /// The payload has another length.
    #[error("payload length differs")]
    Length,
    /// The payload's checksum differs.
    #[error("payload checksum differs")]
    Checksum,
}

/// CRC-64/NVME of a payload.
///
/// Chosen for its linearity (partial checksums combine, so a GPU can compute it in parallel) and because
/// vectorised CRC runs at memory speed. Reference: NVM Express NVM Command Set 1.0, section 5.2.1.3.4.
///
/// ```
/// assert_eq!(kv_core::payload_checksum(b"123456789"), 0xAE8B_1486_0A79_9888);
/// ```
#[must_use]
pub fn payload_checksum(payload: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, payload)
}

/// [`payload_checksum`] of bytes that come in pieces.
///
/// ```
/// let mut digest = kv_core::PayloadDigest::default();
/// digest.update(b"12345");
/// digest.update(b"6789");
/// assert_eq!(digest.finish(), kv_core::payload_checksum(b"123456789"));
/// ```
#[derive(Clone, Debug)]
pub struct PayloadDigest(crc_fast::Digest);

impl Default for PayloadDigest {
    fn default() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme))
    }
}

impl PayloadDigest {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all of them.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.0.finalize()
    }
}

/// A token for one completed and checked job. Cannot be copied, cloned or built without a check.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an unused token means a verified block that nobody may read"]
pub struct Verified {
    job: JobId,
}

impl Verified {
    /// Checks a record read back from NVMe (or, later, from a remote store).
    ///
    /// # Errors
    /// The first [`Mismatch`] found: identity, then length, then checksum.
    pub fn by_record(
        job: JobId,
        expected: &RecordIdentity,
        found: &RecordIdentity,
        expected_len: usize,
        payload: &[u8],
        checksum: u64,
    ) -> Result<Self, Mismatch> {
        if expected != found {
            return Err(Mismatch::Identity);
        }
        if payload.len() != expected_len {
            return Err(Mismatch::Length);
        }
        if payload_checksum(payload) != checksum {
            return Err(Mismatch::Checksum);
        }
        Ok(Self { job })
    }

    /// For a transfer that the hardware or the kernel confirmed in full: a device copy whose status was
    /// checked, or a write of which every byte was accepted.
    pub const fn by_status(job: JobId, asked: usize, done: usize) -> Result<Self, Mismatch> {
        if asked == done { Ok(Self { job }) } else { Err(Mismatch::Length) }
    }

    /// The job that this token is for.
    #[must_use]
    pub const fn job(&self) -> JobId {
        self.job
    }
}
