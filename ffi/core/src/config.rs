//! What a store is built from.

use std::path::PathBuf;
use std::time::Duration;

use kv_core::key::{Fingerprint, NamespaceSecret};
use kv_core::policy::BytesPerDay;

use crate::slow::SlowSources;

/// Which bytes are meant. Two stores that differ in any of these never see each other's blocks, also in one
/// directory after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Who owns the blocks.
    pub tenant: String,
    /// The model's name.
    pub model: String,
    /// Its weights: a revision or a digest. Another one after a weight update keeps stale KV from being served.
    pub revision: String,
    /// Whatever else decides what the bytes mean: dtype, memory order, tensor and pipeline rank, tokens per
    /// block. Equal text means equal bytes.
    pub layout: String,
}

impl Identity {
    /// Digest of model, revision, layout and block size.
    #[must_use]
    pub fn fingerprint(&self, block_bytes: usize) -> Fingerprint {
        let mut hash = blake3::Hasher::new_derive_key("kvtier 2026 identity of opaque blocks");
        // Each text behind its length, so that no two lists of texts are the same message.
        for text in [&self.model, &self.revision, &self.layout] {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(&(block_bytes as u64).to_le_bytes());
        let mut half = [0; 16];
        half.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        Fingerprint(half)
    }
}

/// What of host memory survives the end of the process. What is on NVMe survives in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// What write-behind has written by then: the blocks nearest to eviction. A cache.
    #[default]
    WriteBehind,
    /// Closing writes the rest first, as far as the time given for closing allows.
    AtClose,
}

/// Sizes and rules of a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Bytes of one block.
    pub block_bytes: usize,
    /// Pinned host memory for blocks, headers included.
    pub host_bytes: u64,
    /// Directory for the NVMe log, made if its parent exists; and the bytes of disk that it may fill.
    pub nvme: Option<(PathBuf, u64)>,
    /// Bytes that may be written to NVMe per day.
    pub nvme_budget: Option<BytesPerDay>,
    /// Which bytes are meant.
    pub identity: Identity,
    /// The tenant's secret. Without one, a random one is kept beside the NVMe log, or in this process alone.
    pub secret: Option<NamespaceSecret>,
    /// What survives the end of the process.
    pub durability: Durability,
    /// Load or recompute, and remote stores.
    pub slow: Option<SlowSources>,
}

impl StoreConfig {
    /// Host memory for `host_bytes` of blocks, and nothing below it.
    #[must_use]
    pub fn new(block_bytes: usize, host_bytes: u64, identity: Identity) -> Self {
        Self {
            block_bytes,
            host_bytes,
            nvme: None,
            nvme_budget: None,
            identity,
            secret: None,
            durability: Durability::default(),
            slow: None,
        }
    }
}

/// How long an operation may take if the caller sets no limit.
pub const USUAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest limit that a caller may set.
pub const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_identity_counts() {
        let text = |model: &str, revision: &str, layout: &str, bytes| {
            let (model, revision, layout) = (model.into(), revision.into(), layout.into());
            Identity { tenant: String::new(), model, revision, layout }.fingerprint(bytes)
        };
        let base = text("m", "r", "l", 4096);
        assert_eq!(base, text("m", "r", "l", 4096));
        for other in [
            text("n", "r", "l", 4096),
            text("m", "", "rl", 4096),
            text("mr", "", "l", 4096),
            text("m", "r", "", 4096),
            text("m", "r", "l", 8192),
        ] {
            assert_ne!(base, other);
        }
    }
}
