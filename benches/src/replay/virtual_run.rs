//! Replays a workload without moving a byte: every job ends well at once, in the order given out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kv_core::Verified;
use kv_core::job::Job;
use kv_core::planner::{Outbox, Planner, PlannerConfig, PlannerStats};
use kv_core::units::{Epoch, Nanos};

use super::{ReplayError, Workload};

/// Runs the planner over the workload. Returns its counters and the time that it took.
///
/// # Errors
/// [`ReplayError`] when the configuration cannot work.
pub(super) fn run(
    workload: &Workload,
    config: &PlannerConfig,
) -> Result<(PlannerStats, Duration), ReplayError> {
    let mut planner = Planner::new(config.clone())?;
    let namespace = planner.namespace(workload.namespace, workload.fingerprint, Epoch(0))?;
    let mut hands = InstantHands::default();
    let start = Instant::now();
    for arrival in &workload.arrivals {
        let now = arrival.at;
        let request = planner.acquire(now, namespace, &arrival.keys, Nanos::NEVER, &mut hands.out)?;
        hands.work(&mut planner, now);
        let granted = hands.out.replies.pop().map_or(0, |ready| ready.granted);
        planner.commit(now, request, granted, &mut hands.out)?;
        hands.work(&mut planner, now);
    }
    Ok((*planner.stats(), start.elapsed()))
}

#[derive(Default)]
struct InstantHands {
    out: Outbox,
    line: VecDeque<Job>,
}

impl InstantHands {
    /// Works until nothing is left to do.
    fn work(&mut self, planner: &mut Planner, now: Nanos) {
        loop {
            self.line.extend(self.out.jobs.drain(..));
            self.out.events.clear();
            let Some(job) = self.line.pop_front() else { return };
            let done = Verified::by_status(job.id, 0, 0).map_err(Into::into);
            planner.complete(now, job.id, done, &mut self.out);
        }
    }
}
