//! Which job is next.
//!
//! Two rules. Demand loads have their own share of the device: while one waits or runs, write-backs are held to
//! a quarter of the depth, and neither ever waits for the other. And what changes a segment keeps its order:
//! writes of one life run side by side, opening and sealing wait for everything before them and hold up
//! everything after.

use std::collections::{BTreeMap, VecDeque};

use kv_core::ids::SegmentId;
use kv_core::job::{Job, Op, Urgency};

/// Jobs that were submitted and have not completed.
#[derive(Debug)]
pub(crate) struct Queue {
    depth: u32,
    /// Write-backs that may be popped before there is room for them, to be prepared.
    ahead: u32,
    demand: Class,
    write_back: Class,
    lanes: BTreeMap<SegmentId, Lane>,
}

#[derive(Debug, Default)]
struct Class {
    ready: VecDeque<Job>,
    running: u32,
}

/// Changes of one segment.
#[derive(Debug, Default)]
struct Lane {
    /// Ready or running.
    admitted: u32,
    /// The admitted one is an opening or a sealing.
    exclusive: bool,
    waiting: VecDeque<Job>,
}

/// The segment that a job changes, and whether it must be alone.
fn changes(op: &Op) -> Option<(SegmentId, bool)> {
    match *op {
        Op::Write { place, .. } => Some((place.segment, false)),
        Op::OpenSegment { segment, .. } | Op::SealSegment { segment, .. } => Some((segment, true)),
        Op::Read { .. } | Op::Offload { .. } | Op::Onboard { .. } => None,
    }
}

impl Queue {
    /// `depth` jobs of each urgency may run at once, and `ahead` more write-backs may be popped.
    pub(crate) fn new(depth: u32, ahead: u32) -> Self {
        let (demand, write_back) = Default::default();
        Self { depth: depth.max(1), ahead, demand, write_back, lanes: BTreeMap::new() }
    }

    pub(crate) fn push(&mut self, job: Job) {
        let Some((segment, exclusive)) = changes(&job.op) else {
            return self.ready(job);
        };
        let lane = self.lanes.entry(segment).or_default();
        if lane.waiting.is_empty() && lane.admits(exclusive) {
            lane.admit(exclusive);
            self.ready(job);
        } else {
            lane.waiting.push_back(job);
        }
    }

    /// The next job to start, if one may.
    pub(crate) fn pop(&mut self) -> Option<Job> {
        let job = self.pop_demand();
        if job.is_some() || self.write_back.running >= self.share() + self.ahead {
            return job;
        }
        self.write_back.start()
    }

    /// The next demand load, if one may start.
    pub(crate) fn pop_demand(&mut self) -> Option<Job> {
        if self.demand.running < self.depth { self.demand.start() } else { None }
    }

    /// Write-backs that were popped and are not over.
    pub(crate) fn write_backs(&self) -> u32 {
        self.write_back.running
    }

    /// Write-backs that the device may have now.
    pub(crate) fn share(&self) -> u32 {
        let wanted = self.demand.running > 0 || !self.demand.ready.is_empty();
        if wanted { (self.depth / 4).max(1) } else { self.depth }
    }

    /// A job that was popped is over.
    pub(crate) fn done(&mut self, job: &Job) {
        let class = self.class(job);
        class.running = class.running.saturating_sub(1);
        let Some((segment, _)) = changes(&job.op) else { return };
        let Some(lane) = self.lanes.get_mut(&segment) else { return };
        lane.admitted = lane.admitted.saturating_sub(1);
        lane.exclusive = false;
        let mut admitted = Vec::new();
        while let Some(exclusive) = lane.waiting.front().and_then(|j| changes(&j.op)).map(|(_, e)| e)
            && lane.admits(exclusive)
        {
            lane.admit(exclusive);
            admitted.extend(lane.waiting.pop_front());
        }
        if lane.admitted == 0 {
            self.lanes.remove(&segment);
        }
        for job in admitted {
            self.ready(job);
        }
    }

    /// Whether nothing waits or runs.
    pub(crate) fn is_idle(&self) -> bool {
        [&self.demand, &self.write_back].iter().all(|c| c.ready.is_empty() && c.running == 0)
            && self.lanes.is_empty()
    }

    /// Takes out everything that has not started.
    pub(crate) fn abandon(&mut self) -> Vec<Job> {
        let mut jobs: Vec<Job> = self.demand.ready.drain(..).chain(self.write_back.ready.drain(..)).collect();
        for lane in self.lanes.values_mut() {
            jobs.extend(lane.waiting.drain(..));
        }
        self.lanes.clear();
        jobs
    }

    fn class(&mut self, job: &Job) -> &mut Class {
        match job.urgency {
            Urgency::Demand => &mut self.demand,
            Urgency::WriteBack => &mut self.write_back,
        }
    }

    fn ready(&mut self, job: Job) {
        self.class(&job).ready.push_back(job);
    }
}

impl Class {
    fn start(&mut self) -> Option<Job> {
        let job = self.ready.pop_front()?;
        self.running += 1;
        Some(job)
    }
}

impl Lane {
    fn admits(&self, exclusive: bool) -> bool {
        !self.exclusive && (!exclusive || self.admitted == 0)
    }

    fn admit(&mut self, exclusive: bool) {
        self.admitted += 1;
        self.exclusive = exclusive;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_core::RecordIdentity;
    use kv_core::ids::{JobId, SlotId};
    use kv_core::job::{Place, RecordMeta};
    use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
    use kv_core::units::{Epoch, Generation};
    use proptest::prelude::*;

    const G: Generation = Generation(1);

    fn job(id: u64, urgency: Urgency, op: Op) -> Job {
        Job { id: JobId(id), op, urgency }
    }
    fn identity() -> RecordIdentity {
        RecordIdentity {
            namespace: NamespaceId::default(),
            epoch: Epoch(0),
            fingerprint: Fingerprint::default(),
            key: BlockKey::ROOT,
            generation: G,
        }
    }
    fn read(id: u64) -> Job {
        let place = Place { segment: SegmentId(0), generation: G, index: 0 };
        job(id, Urgency::Demand, Op::Read { place, host: SlotId(0), expect: identity() })
    }
    fn write(id: u64, segment: u32) -> Job {
        let place = Place { segment: SegmentId(segment), generation: G, index: 0 };
        let record = RecordMeta { identity: identity(), parent: BlockKey::ROOT, depth: 0 };
        job(id, Urgency::WriteBack, Op::Write { host: SlotId(0), place, record })
    }
    fn open(id: u64, segment: u32) -> Job {
        job(id, Urgency::WriteBack, Op::OpenSegment { segment: SegmentId(segment), generation: G })
    }
    fn seal(id: u64, segment: u32) -> Job {
        job(id, Urgency::WriteBack, Op::SealSegment { segment: SegmentId(segment), generation: G })
    }
    fn pop_all(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop()).map(|j| j.id.0).collect()
    }

    #[test]
    fn demand_goes_first_and_write_backs_keep_a_share() {
        let mut queue = Queue::new(8, 0);
        (0..20).for_each(|i| queue.push(write(i, 0)));
        assert_eq!(pop_all(&mut queue), (0..8).collect::<Vec<_>>(), "alone they may use it all");
        (100..120).for_each(|i| queue.push(read(i)));
        assert_eq!(pop_all(&mut queue), (100..108).collect::<Vec<_>>(), "reads do not wait for writes");
        for i in 0..6 {
            queue.done(&write(i, 0));
            assert_eq!(pop_all(&mut queue), [] as [u64; 0], "down to a quarter");
        }
        queue.done(&write(6, 0));
        assert_eq!(pop_all(&mut queue), [8], "but not to nothing");
        (100..108).for_each(|i| queue.done(&read(i)));
        assert_eq!(pop_all(&mut queue), (108..116).collect::<Vec<_>>());
    }

    #[test]
    fn a_segment_is_opened_before_and_sealed_after_its_writes() {
        let mut queue = Queue::new(8, 0);
        for job in [open(0, 5), write(1, 5), write(2, 5), seal(3, 5), open(4, 5), write(5, 5), write(6, 6)] {
            queue.push(job);
        }
        assert_eq!(pop_all(&mut queue), [0, 6]);
        queue.done(&open(0, 5));
        assert_eq!(pop_all(&mut queue), [1, 2]);
        queue.done(&write(2, 5));
        assert_eq!(pop_all(&mut queue), [] as [u64; 0]);
        queue.done(&write(1, 5));
        assert_eq!(pop_all(&mut queue), [3]);
        queue.done(&seal(3, 5));
        assert_eq!(pop_all(&mut queue), [4]);
        queue.done(&open(4, 5));
        assert_eq!(pop_all(&mut queue), [5]);
        queue.done(&write(5, 5));
        assert!(!queue.is_idle());
        queue.done(&write(6, 6));
        assert!(queue.is_idle());
    }

    proptest! {
        /// Every job starts exactly once or is abandoned, whatever completes when.
        #[test]
        fn no_job_is_lost(kinds in prop::collection::vec((0..4u8, 0..3u32), 1..60), depth in 0..5u32, ahead in 0..3u32, picks: [u8; 32], stop in 0..80usize) {
            let jobs: Vec<Job> = (0..).zip(&kinds).map(|(id, &(kind, segment))| match kind {
                0 => read(id),
                1 => open(id, segment),
                2 => seal(id, segment),
                _ => write(id, segment),
            }).collect();
            let mut queue = Queue::new(depth, ahead);
            jobs.iter().for_each(|&j| queue.push(j));
            let (mut running, mut started) = (Vec::new(), Vec::new());
            for turn in 0.. {
                running.extend(std::iter::from_fn(|| queue.pop()));
                if running.is_empty() || turn == stop {
                    break;
                }
                let job: Job = running.swap_remove(picks[turn % 32] as usize % running.len());
                queue.done(&job);
                started.push(job.id.0);
            }
            started.extend(queue.abandon().iter().map(|j| j.id.0));
            for job in running {
                queue.done(&job);
                started.push(job.id.0);
            }
            prop_assert!(queue.is_idle());
            started.sort_unstable();
            prop_assert_eq!(started, (0..jobs.len() as u64).collect::<Vec<_>>());
        }
    }
}
