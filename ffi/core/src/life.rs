//! What a store's blocks are called, from one clearing to the next.
//!
//! Clearing moves nothing: it starts another life, whose number is part of what keys are derived from. Blocks of
//! earlier lives cannot be named any more and leave as the least used. The number is random, so that stores which share
//! remote stores and are cleared at different times do not meet again: one of them would be served what was stored
//! before it was cleared.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use kv_core::index::NamespaceIndex;
use kv_core::key::{Fingerprint, KeyChain, Namespace, NamespaceSecret};
use kv_core::layout::GroupIndex;
use kv_core::units::{Epoch, Tokens};
use kv_tiers::engine::{Engine, EngineError};

/// Beside the log. Who deletes it brings back what was stored before the first clearing.
const FILE: &str = "epoch";

/// Of a store that was never cleared.
const FIRST: Epoch = Epoch(0);

/// What decides which life is meant, but for its number.
#[derive(Clone, Debug)]
pub(crate) struct Lineage {
    pub(crate) tenant: String,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) secret: NamespaceSecret,
}

/// The names of one life.
pub(crate) struct Life {
    pub(crate) owner: Namespace,
    /// Of keys that stand by themselves.
    pub(crate) chain: KeyChain,
    pub(crate) namespace: NamespaceIndex,
}

impl Lineage {
    pub(crate) fn begin(&self, epoch: Epoch, engine: &Engine) -> Result<Life, EngineError> {
        let fingerprint = at(self.fingerprint, epoch);
        let owner = Namespace::new(&self.tenant, fingerprint, &self.secret);
        let namespace = engine.namespace(owner.id(), fingerprint, epoch)?;
        Ok(Life { chain: owner.chain(GroupIndex(0), Tokens(1)), owner, namespace })
    }
}

/// A fingerprint of its own for each life, as the index has room for one block of a name only, and blocks of the
/// last life are still in it.
fn at(fingerprint: Fingerprint, epoch: Epoch) -> Fingerprint {
    if epoch == FIRST {
        return fingerprint;
    }
    let mut hash = blake3::Hasher::new_derive_key("kvtier 2026 identity of a cleared store");
    hash.update(&fingerprint.0).update(&epoch.0.to_le_bytes());
    let mut half = [0; 16];
    half.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    Fingerprint(half)
}

/// The number of a life that was never lived.
pub(crate) fn another() -> io::Result<Epoch> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Epoch(u64::from_le_bytes(bytes).max(FIRST.0 + 1)))
}

/// The life that the log in `dir` is in.
pub(crate) fn kept_in(dir: &Path) -> io::Result<Epoch> {
    match std::fs::read(dir.join(FILE)) {
        Ok(bytes) => {
            let wrong =
                |_| io::Error::new(io::ErrorKind::InvalidData, "the file `epoch` does not have 8 bytes");
            bytes.try_into().map(|bytes| Epoch(u64::from_le_bytes(bytes))).map_err(wrong)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(FIRST),
        Err(error) => Err(error),
    }
}

/// Survives a power loss once it returns; if it fails, the log is in the life that it was in.
pub(crate) fn keep_in(dir: &Path, epoch: Epoch) -> io::Result<()> {
    let part = dir.join(format!("{FILE}.part"));
    let mut file = File::create(&part)?;
    file.write_all(&epoch.0.to_le_bytes())?;
    file.sync_all()?;
    std::fs::rename(&part, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_found_again_and_a_damaged_number_is_no_life() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kept_in(dir.path()).unwrap(), FIRST);
        let second = another().unwrap();
        keep_in(dir.path(), second).unwrap();
        assert_eq!(kept_in(dir.path()).unwrap(), second);
        assert_ne!(another().unwrap(), second);
        std::fs::write(dir.path().join(FILE), b"short").unwrap();
        assert!(kept_in(dir.path()).is_err());
    }

    #[test]
    fn every_life_has_its_own_fingerprint() {
        let base = Fingerprint([7; 16]);
        let lives = [0, 1, 2, u64::MAX].map(|epoch| at(base, Epoch(epoch)));
        assert_eq!(lives[0], base);
        assert!((0..4).all(|i| (0..i).all(|j| lives[i] != lives[j])));
        assert_ne!(at(Fingerprint([8; 16]), Epoch(1)), lives[1]);
    }
}
