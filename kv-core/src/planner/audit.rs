//! Checks that the planner's books balance. For tests, the simulator and suspicious operators.

use super::Planner;
use super::inflight::{InFlight, ReadFrom};
use super::pool::Census;
use super::request::Held;
use crate::tier::Tier;

impl Planner {
    /// Recounts every slot, pin and record from scratch.
    ///
    /// # Errors
    /// A sentence that names the first count that is off: a leak or a double use, hence a bug in kvtier.
    pub fn audit(&self) -> Result<(), String> {
        for tier in [Tier::Hbm, Tier::Host] {
            self.audit_pool(tier)?;
        }
        self.audit_log()
    }

    fn audit_pool(&self, tier: Tier) -> Result<(), String> {
        let pool = self.pool(tier);
        let census = pool.census();
        let given_up = census.given_up;
        let mut expected = Census { free: pool.free_slots(), given_up, ..Census::default() };
        if tier == self.top {
            for block in self.requests.values().flat_map(|r| &r.blocks) {
                match block.held {
                    Held::Private(_) => expected.private += 1,
                    Held::Pinned(..) => expected.pins += 1,
                    _ => {}
                }
            }
        }
        for job in self.jobs.values() {
            let (pins, filling, private) = match (job, tier) {
                (InFlight::Onboard { .. }, Tier::Hbm) => (0, 1, 0),
                (InFlight::Onboard { .. }, _) => (1, 0, 0),
                (InFlight::Read { onward, .. }, Tier::Hbm) => (0, u32::from(onward.is_some()), 0),
                (InFlight::Read { .. }, _) => (0, 1, 0),
                (InFlight::Offload { .. }, Tier::Hbm) => (1, 0, 0),
                (InFlight::Offload { .. }, _) => (0, 1, 0),
                (InFlight::Write { .. }, Tier::Host) => (1, 0, 0),
                (InFlight::Put { sources, .. }, Tier::Host) => (sources.len() as u32, 0, 0),
                (InFlight::Rescue { .. } | InFlight::Probe { .. }, Tier::Host) => (0, 0, 1),
                (InFlight::Reinsert { source, .. }, Tier::Host) => match source {
                    super::inflight::RescueSource::Staged(_) => (0, 0, 1),
                    super::inflight::RescueSource::Resident(_) => (1, 0, 0),
                },
                _ => (0, 0, 0),
            };
            expected.pins += pins;
            expected.filling += filling;
            expected.private += private;
        }
        expected.ready = pool.capacity() - expected.free - expected.private - expected.filling - given_up;
        if census != expected {
            return Err(format!("{tier}: slots are {census:?}, holders account for {expected:?}"));
        }
        for (slot, node, ready) in pool.bound() {
            if self.index.slot(node, tier) != Some(slot) {
                return Err(format!("{tier}: {slot:?} thinks it holds {node:?}, which is elsewhere"));
            }
            if self.index.ready_slot(node, tier).is_some() != ready {
                return Err(format!("{tier}: {slot:?} and the index disagree whether it is readable"));
            }
        }
        Ok(())
    }

    fn audit_log(&self) -> Result<(), String> {
        let Some(log) = &self.log else { return Ok(()) };
        let (mut readers, mut writers) = (0, 0);
        for job in self.jobs.values() {
            match job {
                InFlight::Read { source: ReadFrom::Log(_), .. }
                | InFlight::Probe { source: ReadFrom::Log(_), .. }
                | InFlight::Rescue { .. } => readers += 1,
                InFlight::Write { .. } | InFlight::Reinsert { .. } => writers += 1,
                _ => {}
            }
        }
        if log.busy() != (readers, writers) {
            return Err(format!(
                "nvme: (readers, writers) are {:?}, jobs say {:?}",
                log.busy(),
                (readers, writers)
            ));
        }
        if writers != self.write_backs {
            return Err(format!("nvme: {} write-backs counted, {writers} in flight", self.write_backs));
        }
        let moving = |slot| {
            self.jobs
                .values()
                .any(|job| matches!(job, InFlight::Reinsert { target, .. } if target.slot() == slot))
        };
        for (slot, node) in log.occupied() {
            if self.index.slot(node, Tier::Nvme) != Some(slot) && !moving(slot) {
                return Err(format!("nvme: record {slot:?} is held for {node:?}, which is elsewhere"));
            }
        }
        Ok(())
    }
}
