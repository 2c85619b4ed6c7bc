//! Structures that leave the process: little-endian, without implicit padding, each with a magic, a version and
//! a CRC-64/NVME of the bytes before it at its end. Shared by the NVMe log and the remote stores.

use bytemuck::{Pod, Zeroable};
use kv_core::payload_checksum;

/// Version of every structure.
pub(crate) const VERSION: Le32 = Le32::new(1);

/// Payload stored as it is. Other numbers are those of [`Elements`](crate::codec::Elements).
pub(crate) const CODEC_RAW: Le32 = Le32::new(0);

/// A 32-bit number, little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Le32([u8; 4]);

impl Le32 {
    pub(crate) const fn new(value: u32) -> Self {
        Self(value.to_le_bytes())
    }
    pub(crate) const fn get(self) -> u32 {
        u32::from_le_bytes(self.0)
    }
}

/// A 64-bit number, little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Le64([u8; 8]);

impl Le64 {
    pub(crate) const fn new(value: u64) -> Self {
        Self(value.to_le_bytes())
    }
    pub(crate) const fn get(self) -> u64 {
        u64::from_le_bytes(self.0)
    }
}

/// Writes a structure's checksum into its last eight bytes.
pub(crate) fn sealed<T: Pod>(mut value: T) -> T {
    let bytes = bytemuck::bytes_of_mut(&mut value);
    if let Some((body, checksum)) = bytes.split_last_chunk_mut::<8>() {
        *checksum = payload_checksum(body).to_le_bytes();
    }
    value
}

/// The structure at the start of `bytes`, if its magic, version and checksum are right.
pub(crate) fn checked<T: Pod>(bytes: &[u8], magic: [u8; 8]) -> Option<T> {
    let value: T = bytemuck::try_pod_read_unaligned(bytes.get(..size_of::<T>())?).ok()?;
    let (body, checksum) = bytemuck::bytes_of(&value).split_last_chunk::<8>()?;
    let right = body.get(..8)? == magic
        && body.get(8..12)? == VERSION.0
        && payload_checksum(body).to_le_bytes() == *checksum;
    right.then_some(value)
}

/// Copies a structure to the start of a page that has room for it.
pub(crate) fn put<T: Pod>(page: &mut [u8], value: &T) {
    let bytes = bytemuck::bytes_of(value);
    if let Some(room) = page.get_mut(..bytes.len()) {
        room.copy_from_slice(bytes);
    }
}
