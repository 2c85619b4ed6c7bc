//! Reports jobs in the order in which they were given out.
//!
//! Disks and copy engines finish in any order, and a planner may decide differently when they do. Between
//! the engine and its hands, this makes the planner see the one order that a virtual replay has too, so that
//! a real run makes the same decisions, byte for byte, every time.

use kv_core::Verified;
use kv_core::ids::JobId;
use kv_core::job::{CompletionSink, Job, TransferError};
use kv_tiers::engine::Hand;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

type Outcome = Result<Verified, TransferError>;

#[derive(Default)]
struct Line {
    waiting: VecDeque<JobId>,
    ended: HashMap<JobId, Outcome>,
    /// A thread is reporting; it will see what the others add.
    reporting: bool,
}

/// The end of the line at which hands report.
pub(super) struct InOrder {
    line: Mutex<Line>,
    sink: Arc<dyn CompletionSink>,
}

impl InOrder {
    /// Passes reports on to `sink`.
    pub(super) fn new(sink: Arc<dyn CompletionSink>) -> Arc<Self> {
        Arc::new(Self { line: Mutex::default(), sink })
    }

    /// The same hands, whose jobs stand in line.
    pub(super) fn hand(self: &Arc<Self>, hands: Arc<dyn Hand>) -> Arc<dyn Hand> {
        Arc::new(InOrderHand { line: self.clone(), hands })
    }

    fn report_ended(&self) {
        let mut line = self.line.lock();
        if std::mem::replace(&mut line.reporting, true) {
            return;
        }
        while let Some(job) = line.waiting.front().copied()
            && let Some(outcome) = line.ended.remove(&job)
        {
            line.waiting.pop_front();
            drop(line);
            self.sink.complete(job, outcome);
            line = self.line.lock();
        }
        line.reporting = false;
    }
}

impl CompletionSink for InOrder {
    fn complete(&self, job: JobId, result: Outcome) {
        self.line.lock().ended.insert(job, result);
        self.report_ended();
    }
}

struct InOrderHand {
    line: Arc<InOrder>,
    hands: Arc<dyn Hand>,
}

impl Hand for InOrderHand {
    fn submit(&self, jobs: Vec<Job>) -> Vec<(JobId, TransferError)> {
        self.line.line.lock().waiting.extend(jobs.iter().map(|job| job.id));
        for (job, error) in self.hands.submit(jobs) {
            self.line.line.lock().ended.insert(job, Err(error));
        }
        self.line.report_ended();
        Vec::new()
    }

    fn sync(&self) -> Result<(), TransferError> {
        self.hands.sync()
    }

    fn close(&self) {
        self.hands.close();
    }
}
