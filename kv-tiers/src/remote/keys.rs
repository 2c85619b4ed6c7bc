//! What a block is called in a remote store.

use kv_core::RecordIdentity;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::{Epoch, Generation};

/// Names one block in a remote store, the same on every node that knows the namespace's secret.
///
/// Nothing of it is secret: the namespace's id and the block's key are digests under the tenant's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemoteKey {
    /// Owner.
    pub namespace: NamespaceId,
    /// The owner's epoch. After a purge every name is another one.
    pub epoch: Epoch,
    /// Meaning of the bytes.
    pub fingerprint: Fingerprint,
    /// Name of the block.
    pub key: BlockKey,
}

impl RemoteKey {
    /// The same identity without the generation, which only a segment of the NVMe log has.
    #[must_use]
    pub const fn of(identity: &RecordIdentity) -> Self {
        let RecordIdentity { namespace, epoch, fingerprint, key, generation: _ } = *identity;
        Self { namespace, epoch, fingerprint, key }
    }

    /// What a remote record says about itself: generation 0, because nothing remote is ever written in place.
    #[must_use]
    pub const fn identity(&self) -> RecordIdentity {
        let Self { namespace, epoch, fingerprint, key } = *self;
        RecordIdentity { namespace, epoch, fingerprint, key, generation: Generation(0) }
    }

    /// The block's key in hexadecimal: the last part of its name.
    pub(crate) fn leaf(&self) -> String {
        hex(&self.key.to_bytes())
    }
}

/// 32 lower-case digits.
pub(crate) fn hex(bytes: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*bytes))
}

/// An epoch as part of a name: fixed width, so that no epoch's name begins another's.
pub(crate) fn epoch_name(epoch: Epoch) -> String {
    format!("{:016x}", epoch.0)
}

/// The epoch that a part of a name says, if it is one that [`epoch_name`] writes.
pub(crate) fn epoch_of(name: &str) -> Option<Epoch> {
    let epoch = Epoch(u64::from_str_radix(name, 16).ok()?);
    (epoch_name(epoch) == name).then_some(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_read_back_and_nothing_else_is_one() {
        for epoch in [0, 1, u64::MAX] {
            assert_eq!(epoch_of(&epoch_name(Epoch(epoch))), Some(Epoch(epoch)));
        }
        for foreign in
            ["", "1", "+000000000000001", "000000000000000G", "000000000000000A", "../../../../../.."]
        {
            assert_eq!(epoch_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_leaf_spells_the_key_byte_by_byte() {
        let mut bytes = [0; 16];
        bytes[0] = 0xAB;
        bytes[15] = 1;
        let key = RemoteKey {
            namespace: NamespaceId([0; 16]),
            epoch: Epoch(0),
            fingerprint: Fingerprint([0; 16]),
            key: BlockKey::from_bytes(bytes),
        };
        assert_eq!(key.leaf(), "ab000000000000000000000000000001");
    }
}
