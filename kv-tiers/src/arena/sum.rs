//! What is known of a payload's checksum.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The checksum of one payload, or nothing. Only the owner of a slot that is being filled notes or forgets it; readers
/// come later, by way of the planner's lock, which orders it all.
#[derive(Debug, Default)]
pub(super) struct Sum {
    known: AtomicBool,
    value: AtomicU64,
}

impl Sum {
    pub(super) fn note(&self, checksum: u64) {
        self.value.store(checksum, Ordering::Relaxed);
        self.known.store(true, Ordering::Release);
    }

    pub(super) fn forget(&self) {
        self.known.store(false, Ordering::Release);
    }

    pub(super) fn noted(&self) -> Option<u64> {
        self.known.load(Ordering::Acquire).then(|| self.value.load(Ordering::Relaxed))
    }
}
