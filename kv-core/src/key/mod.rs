//! Namespaces and chained block keys.
//!
//! A key names *content in context*: the same tokens after another prefix, in another namespace or for
//! another model get another key. Keys are BLAKE3 in keyed mode under the namespace secret, cut to 128
//! bits, so that nobody without the secret can make a key collide or guess whether a prompt is cached.

mod chain;
mod namespace;

pub use chain::{Extra, KeyChain, PartialBlock};
pub use namespace::{Namespace, NamespaceSecret};

use std::fmt;

/// Who owns a block: one tenant x one model fingerprint. Public; appears in record headers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NamespaceId(pub [u8; 16]);

/// What the bytes mean: a digest of weights revision, layout, dtype and rank topology.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Fingerprint(pub [u8; 16]);

/// 128-bit name of one block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockKey(u128);

impl BlockKey {
    /// The parent of the first block of every chain. Never names a block.
    pub const ROOT: Self = Self(0);

    /// From its little-endian bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    /// Little-endian bytes, as stored in record headers.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// Low half. Keys are uniform already, so this *is* a hash; do not hash it again.
    #[must_use]
    pub const fn low(self) -> u64 {
        self.0 as u64
    }

    /// High half.
    #[must_use]
    pub const fn high(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

/// The 128 bits that are kept of a digest.
fn first_half(digest: &blake3::Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&digest.as_bytes()[..16]);
    half
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}
impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.to_bytes()[..8], f)
    }
}
impl fmt::Debug for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}
impl fmt::Display for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}
impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}
