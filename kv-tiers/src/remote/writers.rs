//! Which puts may still be writing, so that a sweep cannot claim more than is true.

use std::collections::HashMap;
use std::sync::Arc;

use kv_core::key::NamespaceId;
use kv_core::units::Epoch;
use parking_lot::Mutex;

use super::RemoteKey;

/// Puts of one store that have not really ended, by namespace and epoch.
#[derive(Default)]
pub(crate) struct Writers(Mutex<HashMap<(NamespaceId, Epoch), u64>>);

impl Writers {
    pub(crate) fn enter(self: &Arc<Self>, key: &RemoteKey) -> Writer {
        let of = (key.namespace, key.epoch);
        *self.0.lock().entry(of).or_default() += 1;
        Writer { writers: Arc::clone(self), of }
    }

    /// How many there are in the epochs up to this one.
    pub(crate) fn up_to(&self, namespace: NamespaceId, epoch: Epoch) -> u64 {
        self.0
            .lock()
            .iter()
            .filter(|((n, e), _)| *n == namespace && *e <= epoch)
            .map(|(_, count)| count)
            .sum()
    }
}

/// One of them. Travels with the record, and ends when the back end has let go of it.
pub(crate) struct Writer {
    writers: Arc<Writers>,
    of: (NamespaceId, Epoch),
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut writers = self.writers.0.lock();
        if let Some(count) = writers.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                writers.remove(&self.of);
            }
        }
    }
}
