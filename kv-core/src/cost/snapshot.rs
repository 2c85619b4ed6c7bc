//! What a cost model has learnt, as bytes: written at shutdown, read at the next start.
//!
//! ```text
//!   "KVTCOST" version:u8 | fingerprint:16 | learnt state, little-endian | crc32c of all before:u32
//! ```
//!
//! The state is small (a few KiB per source) and replaceable: whoever finds it damaged starts from the priors.

use crate::key::Fingerprint;
use crc_fast::{CrcAlgorithm, checksum};

const MAGIC: &[u8; 7] = b"KVTCOST";
/// Raised with every change of the form. Older ones are refused: what is learnt in minutes needs no migration.
const VERSION: u8 = 1;
const HEAD: usize = 8 + 16;
const TAIL: usize = 4;

/// Why a snapshot was refused. The model is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Does not begin like one.
    #[error("this is not a snapshot of a cost model")]
    NotASnapshot,
    /// Written by another version.
    #[error("the snapshot has version {found}; this program reads version {VERSION}")]
    OtherVersion {
        /// What it says.
        found: u8,
    },
    /// Truncated, or some bits have changed.
    #[error("the snapshot is damaged")]
    Damaged,
    /// Learnt from another model, layout or GPU.
    #[error("the snapshot is about another model")]
    OtherModel,
}

/// The inside of a snapshot makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

impl From<Damaged> for RestoreError {
    fn from(_: Damaged) -> Self {
        Self::Damaged
    }
}

fn crc(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Collects the fields.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(fingerprint: Fingerprint) -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        bytes.extend(fingerprint.0);
        Self(bytes)
    }
    pub(super) fn u8(&mut self, x: u8) {
        self.0.push(x);
    }
    pub(super) fn u16(&mut self, x: u16) {
        self.0.extend(x.to_le_bytes());
    }
    pub(super) fn u64(&mut self, x: u64) {
        self.0.extend(x.to_le_bytes());
    }
    pub(super) fn f32(&mut self, x: f32) {
        self.0.extend(x.to_le_bytes());
    }
    pub(super) fn f64(&mut self, x: f64) {
        self.0.extend(x.to_le_bytes());
    }
    /// At most 255 bytes of it.
    pub(super) fn name(&mut self, name: &str) {
        let bytes = &name.as_bytes()[..name.len().min(255)];
        self.u8(bytes.len() as u8);
        self.0.extend(bytes);
    }
    pub(super) fn finish(mut self) -> Vec<u8> {
        let crc = crc(&self.0);
        self.0.extend(crc.to_le_bytes());
        self.0
    }
}

/// Takes the fields out again.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn open(bytes: &'a [u8], fingerprint: Fingerprint) -> Result<Self, RestoreError> {
        if !bytes.starts_with(MAGIC) {
            return Err(RestoreError::NotASnapshot);
        }
        // The checksum first: a flipped bit in the version is damage and not another version.
        let inside = bytes.len().checked_sub(TAIL).filter(|end| *end >= HEAD).ok_or(RestoreError::Damaged)?;
        if crc(&bytes[..inside]).to_le_bytes() != bytes[inside..] {
            return Err(RestoreError::Damaged);
        }
        match bytes[MAGIC.len()] {
            VERSION => {}
            found => return Err(RestoreError::OtherVersion { found }),
        }
        if bytes[8..HEAD] != fingerprint.0 {
            return Err(RestoreError::OtherModel);
        }
        Ok(Self(&bytes[HEAD..inside]))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Damaged)?;
        self.0 = rest;
        Ok(*head)
    }
    pub(super) fn u8(&mut self) -> Result<u8, Damaged> {
        Ok(u8::from_le_bytes(self.take()?))
    }
    pub(super) fn u16(&mut self) -> Result<u16, Damaged> {
        Ok(u16::from_le_bytes(self.take()?))
    }
    pub(super) fn u64(&mut self) -> Result<u64, Damaged> {
        Ok(u64::from_le_bytes(self.take()?))
    }
    pub(super) fn f32(&mut self) -> Result<f32, Damaged> {
        Ok(f32::from_le_bytes(self.take()?))
    }
    pub(super) fn finite(&mut self) -> Result<f64, Damaged> {
        Some(f64::from_le_bytes(self.take()?)).filter(|x| x.is_finite()).ok_or(Damaged)
    }
    pub(super) fn in_range(&mut self, low: f64, high: f64) -> Result<f64, Damaged> {
        Some(self.finite()?).filter(|x| (low..=high).contains(x)).ok_or(Damaged)
    }
    pub(super) fn name(&mut self) -> Result<&'a [u8], Damaged> {
        let length = usize::from(self.u8()?);
        let (name, rest) = self.0.split_at_checked(length).ok_or(Damaged)?;
        self.0 = rest;
        Ok(name)
    }
    pub(super) fn end(self) -> Result<(), Damaged> {
        if self.0.is_empty() { Ok(()) } else { Err(Damaged) }
    }
}
