//! Plays an inference runtime on an engine: checks what is ready, computes what is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kv_core::index::NamespaceIndex;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::planner::Ready;
use kv_core::units::Epoch;
use kv_cuda::Device;
use kv_tiers::engine::{Acquire, Engine, Lease};
use kvtier_benches::replay::Pattern;

/// An answer, or quiet, that takes longer than this never comes.
pub const LONG: Duration = Duration::from_secs(60);

/// An engine and the runtime that is played on it. May be used from many threads.
pub struct Runtime {
    /// The engine.
    pub engine: Engine,
    device: Option<Arc<dyn Device>>,
    namespace: NamespaceIndex,
    pattern: Pattern,
    verified: AtomicU64,
}

impl Runtime {
    /// A runtime whose blocks hold what [`Pattern`] says.
    ///
    /// # Panics
    /// If the engine does not take the namespace.
    #[must_use]
    pub fn new(engine: Engine, device: Option<Arc<dyn Device>>) -> Self {
        let namespace = engine
            .namespace(NamespaceId([1; 16]), Fingerprint([2; 16]), Epoch(0))
            .expect("the first namespace");
        Self { engine, device, namespace, pattern: Pattern::new(1), verified: AtomicU64::new(0) }
    }

    /// Whose blocks they are.
    #[must_use]
    pub fn namespace(&self) -> NamespaceIndex {
        self.namespace
    }

    /// Blocks compared so far.
    #[must_use]
    pub fn verified(&self) -> u64 {
        self.verified.load(Ordering::Relaxed)
    }

    /// Starts a request.
    ///
    /// # Panics
    /// If it is refused.
    pub fn acquire(&self, keys: &[BlockKey], patience: Option<Duration>) -> Lease {
        let request = Acquire { namespace: self.namespace, keys, patience, notify: None };
        self.engine.acquire(&request).expect("a sane request")
    }

    /// A whole request: waits, compares what is ready, computes the rest and has it cached.
    pub fn serve(&self, keys: &[BlockKey]) -> Ready {
        self.finish(keys, self.acquire(keys, None))
    }

    /// Compares what can be had and computes nothing.
    ///
    /// # Panics
    /// If a byte differs.
    pub fn read(&self, keys: &[BlockKey]) -> Ready {
        let lease = self.acquire(keys, None);
        let ready = self.compare(keys, &lease);
        lease.commit(ready.ready).expect("nothing was computed");
        ready
    }

    /// The rest of a request that was started.
    ///
    /// # Panics
    /// If a byte differs.
    pub fn finish(&self, keys: &[BlockKey], mut lease: Lease) -> Ready {
        let ready = self.compare(keys, &lease);
        let mut computed = Vec::new();
        for index in ready.ready..ready.granted {
            let key = keys[index as usize];
            match &self.device {
                None => self.pattern.fill(key, lease.host_block_mut(index).expect("granted")),
                Some(device) => {
                    computed.resize(device.placement().layout().bytes_per_block(), 0);
                    self.pattern.fill(key, &mut computed);
                    device.upload(lease.slots()[index as usize], &computed).expect("the device works");
                }
            }
        }
        lease.commit(ready.granted).expect("all that was granted");
        ready
    }

    fn compare(&self, keys: &[BlockKey], lease: &Lease) -> Ready {
        let ready = lease.wait_for(LONG).expect("an answer");
        let mut found = Vec::new();
        for index in 0..ready.ready {
            let key = keys[index as usize];
            let same = match &self.device {
                None => self.pattern.matches(key, lease.host_block(index).expect("ready")),
                Some(device) => {
                    found.resize(device.placement().layout().bytes_per_block(), 0);
                    device.download(lease.slots()[index as usize], &mut found).expect("the device works");
                    self.pattern.matches(key, &found)
                }
            };
            assert!(same, "block {index} of {ready:?}, {key:?}, is not what was stored");
        }
        self.verified.fetch_add(u64::from(ready.ready), Ordering::Relaxed);
        ready
    }
}
