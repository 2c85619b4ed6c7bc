//! Taking over what recovery found in the NVMe log.

use super::Planner;
use crate::job::{RecoveredRecord, RecoveredSegment};
use crate::key::BlockKey;
use crate::tier::Tier;

impl Planner {
    /// Takes over a recovered log; to be called before the first request. Records that do not fit (another
    /// epoch of a registered namespace, a place outside this log, a second copy of a block) are not served.
    /// Returns how many are.
    ///
    /// Segments that hold data are not appended to: they wait, sealed, for their reclaim.
    pub fn restore(&mut self, segments: &[RecoveredSegment], records: &[RecoveredRecord]) -> u64 {
        let Some(log) = &mut self.log else { return 0 };
        for found in segments {
            log.restore_segment(found.segment, found.generation, found.occupied);
        }
        let mut served = 0;
        for record in records {
            served += u64::from(self.restore_record(record));
        }
        served
    }

    fn restore_record(&mut self, record: &RecoveredRecord) -> bool {
        let identity = &record.meta.identity;
        if identity.generation != record.place.generation || identity.key == BlockKey::ROOT {
            return false;
        }
        let other_epoch = |n: &super::Namespace| {
            n.id == identity.namespace && n.fingerprint == identity.fingerprint && n.epoch != identity.epoch
        };
        if self.namespaces.iter().any(other_epoch) {
            return false;
        }
        let Ok(namespace) = self.namespace(identity.namespace, identity.fingerprint, identity.epoch) else {
            return false;
        };
        let depth = record.meta.depth;
        let parent = if record.meta.parent == BlockKey::ROOT {
            None
        } else {
            match self.index.ensure(record.meta.parent, None, depth.saturating_sub(1), namespace) {
                None => return false,
                found => found,
            }
        };
        let Some(node) = self.index.ensure(identity.key, parent, depth, namespace) else {
            parent.into_iter().for_each(|p| self.index.release(p));
            return false;
        };
        let slot = match (self.index.slot(node, Tier::Nvme), &mut self.log) {
            (None, Some(log)) => log.restore_record(record.place, node),
            _ => None,
        };
        match slot {
            Some(slot) => {
                self.index.place(node, Tier::Nvme, slot);
                self.index.set_ready(node, Tier::Nvme);
            }
            None => self.index.release(node),
        }
        slot.is_some()
    }
}
