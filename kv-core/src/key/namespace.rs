//! Tenants' secrets and what is derived from them.

use std::fmt;

use super::{Fingerprint, KeyChain, NamespaceId};
use crate::layout::GroupIndex;
use crate::units::Tokens;

/// A secret from which a namespace's id and all its block keys are derived. Must be random and kept; who
/// has it can compute keys, who has not can neither guess what is cached nor make a key collide.
///
/// Never printed. Overwritten when dropped, as far as safe code can make sure of that.
#[derive(Clone)]
pub struct NamespaceSecret([u8; 32]);

impl NamespaceSecret {
    /// From 32 random bytes.
    #[must_use]
    pub const fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// BLAKE3 in keyed mode under this secret.
    pub(super) fn hash(&self, message: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, message)
    }
}

impl fmt::Debug for NamespaceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NamespaceSecret")
    }
}

impl Drop for NamespaceSecret {
    fn drop(&mut self) {
        self.0 = [0; 32];
        // Keeps the compiler from dropping a store that nobody reads.
        std::hint::black_box(&self.0);
    }
}

/// One tenant x one model fingerprint, able to name blocks.
#[derive(Clone, Debug)]
pub struct Namespace {
    id: NamespaceId,
    fingerprint: Fingerprint,
    /// Derived: knows tenant and fingerprint, and does not give away the tenant's secret.
    secret: NamespaceSecret,
}

impl Namespace {
    /// The namespace of `tenant`, which may be any name, for one model. Equal arguments give an equal
    /// namespace, in any process and after any restart.
    #[must_use]
    pub fn new(tenant: &str, fingerprint: Fingerprint, secret: &NamespaceSecret) -> Self {
        let derive = |purpose: &[u8; 16]| {
            // The tenant is last: everything before it has a fixed length.
            secret.hash(&[purpose, fingerprint.0.as_slice(), tenant.as_bytes()].concat())
        };
        let id = super::first_half(&derive(b"kvtier ns id v01"));
        let keys = NamespaceSecret::new(derive(b"kvtier ns key v1").into());
        Self { id: NamespaceId(id), fingerprint, secret: keys }
    }

    /// Its public name.
    #[must_use]
    pub const fn id(&self) -> NamespaceId {
        self.id
    }

    /// Its model.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// What names the blocks of one KV group: groups never share a key.
    #[must_use]
    pub fn chain(&self, group: GroupIndex, tokens_per_block: Tokens) -> KeyChain {
        let secret = NamespaceSecret::new(self.secret.hash(&group.0.to_le_bytes()).into());
        KeyChain::new(secret, tokens_per_block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = NamespaceSecret::new([0xab; 32]);
        assert_eq!(format!("{secret:?}"), "NamespaceSecret");
        let namespace = Namespace::new("acme", Fingerprint([1; 16]), &secret);
        let id = namespace.id();
        assert_eq!(
            format!("{namespace:?}"),
            format!(
                "Namespace {{ id: {id:?}, fingerprint: {:?}, secret: NamespaceSecret }}",
                Fingerprint([1; 16])
            )
        );
        let chain = namespace.chain(GroupIndex(0), Tokens(16));
        assert_eq!(
            format!("{chain:?}"),
            "KeyChain { secret: NamespaceSecret, tokens_per_block: Tokens(16) }"
        );
    }

    #[test]
    fn every_argument_changes_the_id() {
        let id = |tenant, fingerprint, secret| {
            Namespace::new(tenant, Fingerprint([fingerprint; 16]), &NamespaceSecret::new([secret; 32])).id()
        };
        let base = id("acme", 1, 1);
        assert_eq!(base, id("acme", 1, 1));
        assert_ne!(base, id("acm", 1, 1));
        assert_ne!(base, id("acme\0", 1, 1));
        assert_ne!(base, id("", 1, 1));
        assert_ne!(base, id("acme", 2, 1));
        assert_ne!(base, id("acme", 1, 2));
    }
}
