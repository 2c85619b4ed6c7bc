//! Simulated remote stores: they outlive crashes, answer when the simulator says so, lie, lose, mix up and damage.

use std::collections::HashMap;
use std::sync::Arc;

use kv_core::cost::{
    Ask, CostConfig, CostModel, LoadSize, LoadTimes, Offer, Outcome, SourceConfig, TokenRange, WhenLate,
    priors,
};
use kv_core::ids::{JobId, RemoteId};
use kv_core::job::{RemoteAnswer, RemoteJob, RemoteOp, RemoteRead, RemoteWrite, TransferError};
use kv_core::key::{BlockKey, Fingerprint};
use kv_core::planner::{RemoteSource, SlowSources};
use kv_core::units::{Bytes, Nanos};
use kv_core::{RecordIdentity, Verified, payload_checksum};
use kv_tiers::arena::Arena;
use kvtier_benches::SplitMix64;
use parking_lot::Mutex;

/// Tokens of a block. What recomputing one takes is far more than a load ever does, so that loads are tried.
pub(super) const BLOCK_TOKENS: u32 = 512;
pub(super) const PER_BLOCK: Nanos = Nanos::from_millis(3_000);

/// A value: what its record says, and its bytes.
#[derive(Clone)]
struct Value {
    identity: RecordIdentity,
    checksum: u64,
    bytes: Vec<u8>,
}

/// What stores hold, in whatever life of the machine.
#[derive(Clone, Default)]
pub(super) struct Stores(Arc<Mutex<[HashMap<BlockKey, Value>; 2]>>);

/// The stores as one life's hand sees them.
pub(super) struct SimRemotes {
    stores: Stores,
    arena: Arc<Arena>,
    taken: Mutex<Vec<RemoteJob>>,
    rng: Mutex<SplitMix64>,
    /// Something goes wrong once in so many times; 0 is never.
    faults: u64,
}

/// NVMe or not, and two stores of which one may be read-only.
pub(super) fn sources(rng: &mut SplitMix64, fingerprint: Fingerprint, block: usize) -> SlowSources {
    let remote = |name: &str, writes| RemoteSource { name: name.to_owned(), link: priors::NETWORK, writes };
    SlowSources {
        tokens_per_block: BLOCK_TOKENS,
        block_bytes: Bytes(block as u64),
        fingerprint,
        curve: priors::UNKNOWN,
        nvme: rng.once_in(4).then_some(priors::NVME_GEN4),
        remotes: vec![remote("near", true), remote("far", rng.once_in(2))],
        seed: rng.next_u64(),
    }
}

/// What a model knows that has seen all sources deliver in a tenth of a second.
pub(super) fn taught(sources: &SlowSources) -> Vec<u8> {
    let names = sources.nvme.map(|_| SlowSources::NVME).into_iter();
    let names = names.chain(sources.remotes.iter().map(|r| r.name.as_str()));
    let source = |name: &str| SourceConfig { name: name.to_owned(), link: priors::NETWORK };
    let mut model = CostModel::new(CostConfig {
        fingerprint: sources.fingerprint,
        curve: sources.curve,
        sources: names.map(source).collect(),
    })
    .expect("names and priors that work");
    let mut now = Nanos(0);
    let range = TokenRange::new(0, 8 * BLOCK_TOKENS);
    let ask = Ask { range, prompt_end: range.end, when_late: WhenLate::GiveUp };
    let names: Vec<_> = sources.remotes.iter().map(|r| r.name.as_str()).chain([SlowSources::NVME]).collect();
    for round in 0..60_u64 {
        model.observed_prefill(now, range, Nanos(8 * PER_BLOCK.0));
        let ids = names.iter().filter_map(|name| model.source(name));
        let size = LoadSize::raw(Bytes(16 * sources.block_bytes.0));
        let offers: Vec<_> = ids.map(|source| Offer { source, size }).collect();
        let decision = model.decide(now, &ask, &offers, round << 40 | 1);
        let times = LoadTimes { transfer: Nanos::from_millis(100), ..LoadTimes::default() };
        let arrived = Outcome::Arrived { waited: times.transfer, times };
        if let Some(load) = decision.load {
            model.settle(now, load.ticket, arrived);
            load.hedge.into_iter().for_each(|hedge| model.settle(now, hedge.ticket, Outcome::NotStarted));
        }
        if let Some(probe) = decision.probe {
            model.settle(now, probe.ticket, arrived);
        }
        now = now + Nanos::from_millis(2_500);
    }
    model.snapshot(now)
}

impl SimRemotes {
    pub(super) fn new(stores: Stores, arena: Arc<Arena>, faults: u64, seed: u64) -> Self {
        Self { stores, arena, taken: Mutex::default(), rng: Mutex::new(SplitMix64::new(seed)), faults }
    }

    pub(super) fn take(&self, jobs: Vec<RemoteJob>) {
        self.taken.lock().extend(jobs);
    }

    /// Calls that have not been answered.
    pub(super) fn outstanding(&self) -> usize {
        self.taken.lock().len()
    }

    /// A call whose deadline has come; nobody waits for its store any longer.
    pub(super) fn late(&self, now: Nanos) -> Option<usize> {
        self.taken.lock().iter().position(|job| job.deadline <= now)
    }

    /// Ends the `nth` call, to be reported to the engine.
    pub(super) fn end(&self, nth: usize, late: bool) -> (JobId, RemoteAnswer) {
        let job = self.taken.lock().remove(nth);
        let mut rng = self.rng.lock();
        let mut stores = self.stores.0.lock();
        let store = &mut stores[usize::from(job.remote.0)];
        let whole = match (late, rng.once_in(self.faults)) {
            (true, _) => Some(TransferError::Late),
            (false, true) => {
                Some(if rng.once_in(2) { TransferError::Down } else { TransferError::Io(libc::EIO) })
            }
            (false, false) => None,
        };
        let answer = match &job.op {
            RemoteOp::Exists(blocks) => {
                let there = |b: &&RecordIdentity| store.contains_key(&b.key);
                let lie = rng.once_in(self.faults);
                let found = if lie { blocks.len() } else { blocks.iter().take_while(there).count() };
                RemoteAnswer::Exists(whole.map_or(Ok(found as u32), Err))
            }
            RemoteOp::Get { reads, .. } => {
                let mut read = |read: &RemoteRead| {
                    let error = whole.filter(|_| !rng.once_in(3));
                    (read.job, error.map_or_else(|| self.read(store, read, &mut rng), Err))
                };
                let blocks: Vec<_> = reads.iter().map(&mut read).collect();
                RemoteAnswer::Get { blocks, wire: Bytes(100), decode: Nanos(10), by: RemoteId(job.remote.0) }
            }
            RemoteOp::Put(writes) => {
                let mut write =
                    |write: &RemoteWrite| whole.map_or_else(|| self.write(store, write, &mut rng), Err);
                RemoteAnswer::Put(writes.iter().map(&mut write).collect())
            }
        };
        (job.id, answer)
    }

    fn read(
        &self,
        store: &HashMap<BlockKey, Value>,
        read: &RemoteRead,
        rng: &mut SplitMix64,
    ) -> Result<Verified, TransferError> {
        let mut value = store.get(&read.expect.key).ok_or(TransferError::Absent)?.clone();
        if rng.once_in(self.faults) {
            match rng.below(3) {
                0 => {
                    let at = rng.below(value.bytes.len() as u64) as usize;
                    value.bytes[at] ^= 1 << rng.below(8);
                }
                1 => value.bytes.truncate(rng.below(value.bytes.len() as u64) as usize),
                // Somebody else's.
                _ => value = store.values().min_by_key(|v| v.checksum).ok_or(TransferError::Absent)?.clone(),
            }
        }
        // SAFETY: the slot is the destination of this read alone until the answer.
        let into = unsafe { self.arena.payload_mut(read.host) };
        let len = value.bytes.len().min(into.len());
        into[..len].copy_from_slice(&value.bytes[..len]);
        let found = &into[..len];
        let (expect, identity) = (&read.expect, &value.identity);
        Ok(Verified::by_record(
            read.job,
            expect,
            identity,
            self.arena.payload_bytes(),
            found,
            value.checksum,
        )?)
    }

    fn write(
        &self,
        store: &mut HashMap<BlockKey, Value>,
        write: &RemoteWrite,
        rng: &mut SplitMix64,
    ) -> Result<(), TransferError> {
        if rng.once_in(self.faults) {
            return Err(TransferError::NoSpace);
        }
        // SAFETY: the planner keeps the slot pinned until the answer.
        let bytes = unsafe { self.arena.payload(write.host) }.to_vec();
        let identity = write.record.identity;
        store.insert(identity.key, Value { identity, checksum: payload_checksum(&bytes), bytes });
        Ok(())
    }
}
