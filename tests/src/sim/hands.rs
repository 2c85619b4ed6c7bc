//! Hands that work when the simulator says so.

use std::sync::Arc;

use kv_core::Verified;
use kv_core::ids::{JobId, SlotId};
use kv_core::job::{Job, Op, RemoteJob, TransferError};
use kv_tiers::arena::Arena;
use kv_tiers::engine::Hand;
use kv_tiers::nvme::Segments;
use kvtier_benches::SplitMix64;
use parking_lot::Mutex;

use super::remotes::SimRemotes;

type Outcome = Result<Verified, TransferError>;

/// A job that was taken on. It was carried out when it was submitted, or will be when it is reported: a
/// real hand works at any time between the two.
struct Taken {
    job: Job,
    outcome: Option<Outcome>,
}

/// Device and log in one.
pub(super) struct SimHands {
    segments: Option<Arc<Segments>>,
    arena: Arc<Arena>,
    /// Slots of simulated GPU memory.
    hbm: Mutex<Vec<Vec<u8>>>,
    taken: Mutex<Vec<Taken>>,
    rng: Mutex<SplitMix64>,
    /// A copy between HBM and host fails once in so many times; 0 is never.
    copy_errors: u64,
    remotes: Arc<SimRemotes>,
    /// Destinations of copies that were left in doubt: the GPU goes on writing to them.
    in_doubt: Mutex<Vec<Place>>,
    closed: Mutex<bool>,
}

#[derive(Clone, Copy)]
enum Place {
    Hbm(SlotId),
    Host(SlotId),
}

impl SimHands {
    /// Hands for one engine.
    #[must_use]
    pub(super) fn new(
        segments: Option<Arc<Segments>>,
        arena: Arc<Arena>,
        hbm_slots: u32,
        copy_errors: u64,
        remotes: Arc<SimRemotes>,
        seed: u64,
    ) -> Self {
        let hbm = vec![vec![0; arena.payload_bytes()]; hbm_slots as usize];
        Self {
            segments,
            arena,
            hbm: Mutex::new(hbm),
            taken: Mutex::default(),
            rng: Mutex::new(SplitMix64::new(seed)),
            copy_errors,
            remotes,
            in_doubt: Mutex::default(),
            closed: Mutex::new(false),
        }
    }

    /// Jobs that have not been reported.
    pub(super) fn outstanding(&self) -> usize {
        self.taken.lock().len()
    }

    /// Ends the `nth` job, to be reported to the engine.
    pub(super) fn end(&self, nth: usize) -> (JobId, Outcome) {
        let taken = self.taken.lock().remove(nth);
        let outcome = taken.outcome.unwrap_or_else(|| self.work(&taken.job));
        (taken.job.id, outcome)
    }

    /// What the runtime sees and does in GPU memory.
    pub(super) fn with_hbm<R>(&self, slot: SlotId, act: impl FnOnce(&mut [u8]) -> R) -> R {
        act(&mut self.hbm.lock()[slot.0 as usize])
    }

    /// Late bytes of copies in doubt.
    fn scribble(&self) {
        for place in &*self.in_doubt.lock() {
            match *place {
                Place::Hbm(slot) => self.with_hbm(slot, |block| block.fill(0xEE)),
                // SAFETY: a host slot in doubt is never used again, or else the simulation shall show it.
                Place::Host(slot) => unsafe { self.arena.payload_mut(slot) }.fill(0xEE),
            }
        }
    }

    fn work(&self, job: &Job) -> Outcome {
        match job.op {
            Op::Offload { hbm, host } => self.copy(job.id, hbm, host, false),
            Op::Onboard { host, hbm } => self.copy(job.id, hbm, host, true),
            _ => self.segments.as_ref().ok_or(TransferError::Down)?.execute(job),
        }
    }

    fn copy(&self, id: JobId, hbm_slot: SlotId, host: SlotId, to_hbm: bool) -> Outcome {
        let fails = self.rng.lock().once_in(self.copy_errors);
        self.with_hbm(hbm_slot, |hbm| {
            // A copy that fails has written some of it.
            let len = if fails { hbm.len() / 2 } else { hbm.len() };
            if to_hbm {
                // SAFETY: an `Onboard` job holds a pin of the host slot: nobody writes it meanwhile.
                let host = unsafe { self.arena.payload(host) };
                hbm[..len].copy_from_slice(&host[..len]);
            } else {
                // SAFETY: an `Offload` job owns its destination until it is reported.
                let host = unsafe { self.arena.payload_mut(host) };
                host[..len].copy_from_slice(&hbm[..len]);
            }
        });
        match (fails, self.rng.lock().once_in(8)) {
            (false, _) => Ok(Verified::by_status(id, 1, 1)?),
            (true, false) => Err(TransferError::Io(libc::EIO)),
            (true, true) => {
                self.in_doubt.lock().push(if to_hbm { Place::Hbm(hbm_slot) } else { Place::Host(host) });
                Err(TransferError::InDoubt)
            }
        }
    }
}

impl Hand for SimHands {
    fn submit(&self, jobs: Vec<Job>) -> Vec<(JobId, TransferError)> {
        if *self.closed.lock() {
            return jobs.iter().map(|job| (job.id, TransferError::Down)).collect();
        }
        self.scribble();
        for job in jobs {
            let at_once = self.rng.lock().once_in(2);
            let outcome = at_once.then(|| self.work(&job));
            self.taken.lock().push(Taken { job, outcome });
        }
        Vec::new()
    }

    fn call(&self, calls: Vec<RemoteJob>) -> Vec<(JobId, TransferError)> {
        if *self.closed.lock() {
            return calls.iter().map(|call| (call.id, TransferError::Down)).collect();
        }
        self.remotes.take(calls);
        Vec::new()
    }

    fn sync(&self) -> Result<(), TransferError> {
        self.segments.as_ref().map_or(Ok(()), |segments| segments.sync())
    }

    fn close(&self) {
        *self.closed.lock() = true;
    }
}
