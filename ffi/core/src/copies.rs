//! Copies by a device, waited for as a group.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kv_core::Verified;
use kv_core::ids::JobId;
use kv_core::job::{CompletionSink, TransferError};
use parking_lot::{Condvar, Mutex};

/// Copies under way. Dropping it waits for them.
pub(crate) struct Copies(Arc<Group>);

impl Copies {
    /// Waits until all have ended, well or badly, and says which have failed.
    pub(crate) fn wait(self) -> HashMap<usize, TransferError> {
        self.0.wait()
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        drop(self.0.wait());
    }
}

/// The outcome of some copies.
#[derive(Default)]
struct Group {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    left: usize,
    /// By position in the group.
    failed: HashMap<usize, TransferError>,
}

impl Group {
    /// A device ends every copy that it took, at the latest when it gives its hardware up, and until then it may touch
    /// the runtime's memory: so there is no limit to the wait.
    fn wait(&self) -> HashMap<usize, TransferError> {
        let mut state = self.state.lock();
        while state.left > 0 {
            self.changed.wait(&mut state);
        }
        std::mem::take(&mut state.failed)
    }

    fn ended(&self, position: usize, result: Result<(), TransferError>) {
        let mut state = self.state.lock();
        state.left -= 1;
        if let Err(error) = result {
            state.failed.insert(position, error);
        }
        self.changed.notify_all();
    }
}

/// Names copies, and takes the reports of a device.
#[derive(Default)]
pub(crate) struct Ledger {
    next: AtomicU64,
    under_way: Mutex<HashMap<JobId, (Arc<Group>, usize)>>,
}

impl Ledger {
    /// A group of so many copies, and the first of their consecutive names.
    pub(crate) fn begin(&self, copies: usize) -> (Copies, u64) {
        let group = Arc::new(Group::default());
        group.state.lock().left = copies;
        let first = self.next.fetch_add(copies as u64, Ordering::Relaxed);
        let mut under_way = self.under_way.lock();
        let names = (first..).map(JobId).take(copies).enumerate();
        under_way.extend(names.map(|(position, job)| (job, (group.clone(), position))));
        (Copies(group), first)
    }

    /// The device did not take them.
    pub(crate) fn refused(&self, copies: &Copies, first: u64, number: usize) {
        let mut under_way = self.under_way.lock();
        for job in (first..).map(JobId).take(number) {
            under_way.remove(&job);
        }
        copies.0.state.lock().left = 0;
    }
}

impl CompletionSink for Ledger {
    fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
        let found = self.under_way.lock().remove(&job);
        let Some((group, position)) = found else { return };
        let result = result.and_then(|verified| {
            // A token for another copy proves nothing about this one.
            if verified.job() == job { Ok(()) } else { Err(TransferError::Down) }
        });
        group.ended(position, result);
    }
}
