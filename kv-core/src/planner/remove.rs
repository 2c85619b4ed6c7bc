//! Taking blocks out because the runtime says so: a quota is used up, or it knows that they are of no more use.
//!
//! Not a purge: what a record held stays on NVMe until it is written over, and a restart may find it again.

use super::{Outbox, Planner};
use crate::index::NamespaceIndex;
use crate::key::BlockKey;
use crate::tier::Tier;

/// What became of a block that was to be removed. The numbers are part of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Removal {
    /// It was not there.
    Absent = 0,
    /// It can no longer be found.
    Removed = 1,
    /// Somebody reads it, or it is on its way to a tier: nothing has changed.
    InUse = 2,
}

impl Planner {
    /// Takes each block out of every tier of this node at once, whatever precedes or follows it in a chain. Remote
    /// stores keep what they have.
    pub fn remove(&mut self, namespace: NamespaceIndex, keys: &[BlockKey], out: &mut Outbox) -> Vec<Removal> {
        keys.iter().map(|key| self.remove_block(namespace, *key, out)).collect()
    }

    fn remove_block(&mut self, namespace: NamespaceIndex, key: BlockKey, out: &mut Outbox) -> Removal {
        let found = self.index.get(key).filter(|node| self.index.namespace(*node) == namespace);
        let Some(node) = found else { return Removal::Absent };
        let slots = Tier::ALL.map(|tier| self.index.slot(node, tier).map(|slot| (tier, slot)));
        // A placeholder that keeps the blocks behind it in their tree.
        if slots.iter().all(Option::is_none) {
            return Removal::Absent;
        }
        let at_rest = |(tier, slot)| match tier {
            Tier::Nvme => self.index.ready_slot(node, tier).is_some(),
            _ => self.pool(tier).is_at_rest(slot),
        };
        if !slots.iter().flatten().copied().all(at_rest) {
            return Removal::InUse;
        }
        let mut record = None;
        for (tier, slot) in slots.into_iter().flatten() {
            match tier {
                Tier::Nvme => record = Some(slot),
                _ => {
                    self.pool_mut(tier).take_out(slot);
                    self.gone(node, tier, out);
                }
            }
        }
        match record {
            Some(record) => {
                self.drop_record(record, node, out);
                self.emptied(record, out);
            }
            None => self.index.release(node),
        }
        self.stats.removed += 1;
        Removal::Removed
    }
}
