//! The hand for remote stores: it begins calls, leaves them at their deadlines, and asks the hedge when it is time.
//!
//! ```text
//!   submit ─► to_start ─► a worker begins the call ─► flying ─┬─ the store says that it is done ─► landed ─┐
//!                                                             └─ the deadline, or the hedge's time ────────┤
//!                                     AnswerSink ◄── bytes copied to their slots and verified ◄── a worker ┘
//! ```
//!
//! A few workers serve all stores: none of them ever waits for a store, only for work.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use kv_core::Verified;
use kv_core::ids::{JobId, RemoteId};
use kv_core::job::{
    AnswerSink, RemoteAnswer, RemoteJob, RemoteOp, RemoteRead, RemoteWrite, TransferError, Urgency,
};
use kv_core::units::{Bytes, Nanos};
use parking_lot::{Condvar, Mutex};

use crate::arena::Arena;
use crate::codec::Elements;
use crate::remote::{Pending, PendingGet, Put, RemoteError, RemoteKey, RemoteStore, Want};

/// Copying and checking what has come is their work: one is at most at memory speed, and a node has few links.
const WORKERS: usize = 3;

/// A call that was begun.
struct Flying {
    id: JobId,
    remote: RemoteId,
    deadline: Instant,
    /// `None` while it is being begun.
    call: Option<Call>,
    /// The store has answered.
    done: bool,
}

enum Call {
    Exists(Pending<bool>),
    Get { reads: Vec<RemoteRead>, first: PendingGet, hedge: Option<HedgeAt>, second: Option<PendingGet> },
    Put(Pending<()>),
}

#[derive(Clone, Copy)]
struct HedgeAt {
    remote: RemoteId,
    at: Instant,
}

impl Flying {
    /// When somebody has to look after it, whatever the store does.
    fn due(&self) -> Instant {
        match &self.call {
            Some(Call::Get { hedge: Some(hedge), second: None, .. }) => hedge.at.min(self.deadline),
            _ => self.deadline,
        }
    }
}

#[derive(Default)]
struct Board {
    demand: VecDeque<RemoteJob>,
    background: VecDeque<RemoteJob>,
    flying: HashMap<u64, Flying>,
    landed: VecDeque<u64>,
    next: u64,
    closed: bool,
}

/// A store, and how blocks are encoded that are stored there.
pub(super) struct Remote {
    pub(super) store: Arc<dyn RemoteStore>,
    pub(super) elements: Option<Elements>,
}

struct Shared {
    stores: Vec<Remote>,
    arena: Arc<Arena>,
    sink: Arc<dyn AnswerSink>,
    /// The planner's time 0.
    start: Instant,
    board: Mutex<Board>,
    work: Condvar,
}

/// What a worker does next.
enum Work {
    Begin(RemoteJob),
    LookAfter(u64, Flying),
}

/// See the module's head.
pub(super) struct RemoteHands {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl RemoteHands {
    /// Starts the workers. Deadlines of jobs count from `start`.
    pub(super) fn start(
        stores: Vec<Remote>,
        arena: Arc<Arena>,
        start: Instant,
        sink: Arc<dyn AnswerSink>,
    ) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { stores, arena, sink, start, board: Mutex::default(), work: Condvar::new() });
        let hands = Self { shared, workers: Mutex::default() };
        for n in 0..WORKERS {
            let shared = Arc::clone(&hands.shared);
            let builder = std::thread::Builder::new().name(format!("kvtier-remote-{n}"));
            hands.workers.lock().push(builder.spawn(move || shared.run())?);
        }
        Ok(hands)
    }

    /// Takes calls on; returns those that it did not.
    pub(super) fn submit(&self, jobs: Vec<RemoteJob>) -> Vec<(JobId, TransferError)> {
        let mut board = self.shared.board.lock();
        if board.closed {
            return jobs.iter().map(|job| (job.id, TransferError::Down)).collect();
        }
        for job in jobs {
            match job.urgency {
                Urgency::Demand => board.demand.push_back(job),
                Urgency::WriteBack => board.background.push_back(job),
            }
            self.shared.work.notify_one();
        }
        Vec::new()
    }

    /// Takes no more calls and leaves those that are under way: each is reported. What a store still does with them is
    /// its affair.
    pub(super) fn close(&self) {
        let mut board = self.shared.board.lock();
        board.closed = true;
        let now = Instant::now();
        board.flying.values_mut().for_each(|flying| flying.deadline = flying.deadline.min(now));
        drop(board);
        self.shared.work.notify_all();
        for worker in std::mem::take(&mut *self.workers.lock()) {
            if worker.join().is_err() {
                tracing::error!("a worker for remote stores had panicked");
            }
        }
    }
}

impl Drop for RemoteHands {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn run(self: &Arc<Self>) {
        while let Some(work) = self.next() {
            match work {
                Work::Begin(job) => self.begin(job),
                Work::LookAfter(n, flying) => self.look_after(n, flying),
            }
        }
    }

    /// Waits for work; `None` once there will be none any more.
    fn next(&self) -> Option<Work> {
        let mut board = self.board.lock();
        loop {
            while let Some(n) = board.landed.pop_front() {
                if let Some(flying) = board.flying.remove(&n) {
                    return Some(Work::LookAfter(n, flying));
                }
            }
            // Those that are being begun are looked after when they have been.
            let begun = board.flying.iter().filter(|(_, flying)| flying.call.is_some());
            let first = begun.map(|(n, flying)| (flying.due(), *n)).min();
            if let Some((due, n)) = first
                && due <= Instant::now()
            {
                return board.flying.remove(&n).map(|flying| Work::LookAfter(n, flying));
            }
            if let Some(job) = board.demand.pop_front().or_else(|| board.background.pop_front()) {
                return Some(Work::Begin(job));
            }
            if board.closed && board.flying.is_empty() {
                return None;
            }
            match first {
                Some((due, _)) => {
                    let _timed_out = self.work.wait_until(&mut board, due);
                }
                None => self.work.wait(&mut board),
            }
        }
    }

    fn instant(&self, at: Nanos) -> Instant {
        // Beyond what the clock can say is never: a day is.
        let longest = std::time::Duration::from_secs(24 * 3600);
        let at = std::time::Duration::from_nanos(at.0);
        self.start.checked_add(at).unwrap_or_else(|| Instant::now() + longest)
    }

    fn begin(self: &Arc<Self>, job: RemoteJob) {
        let deadline = self.instant(job.deadline);
        let Some(Remote { store, elements }) = self.stores.get(usize::from(job.remote.0)) else {
            return self.sink.answered(job.id, failed(&job.op, TransferError::Down));
        };
        let n = {
            let mut board = self.board.lock();
            let deadline = if board.closed { Instant::now() } else { deadline };
            let n = board.next;
            board.next += 1;
            let flying = Flying { id: job.id, remote: job.remote, deadline, call: None, done: false };
            board.flying.insert(n, flying);
            n
        };
        let landed = self.landed(n);
        let call = match job.op {
            RemoteOp::Exists(blocks) => {
                let keys: Vec<_> = blocks.iter().map(RemoteKey::of).collect();
                let pending = store.exists(&keys, deadline);
                pending.when_done(landed);
                Call::Exists(pending)
            }
            RemoteOp::Get { reads, hedge } => {
                let first = store.get(&self.wants(&reads), deadline);
                first.when_done(landed);
                let hedge = hedge.map(|plan| HedgeAt { remote: plan.remote, at: self.instant(plan.after) });
                Call::Get { reads, first, hedge, second: None }
            }
            RemoteOp::Put(writes) => {
                let pending = self.put(store.as_ref(), *elements, &writes, deadline);
                pending.when_done(landed);
                Call::Put(pending)
            }
        };
        self.took_off(n, call);
    }

    fn wants(&self, reads: &[RemoteRead]) -> Vec<Want> {
        let payload_bytes = self.arena.payload_bytes();
        let want = |read: &RemoteRead| Want { key: RemoteKey::of(&read.expect), payload_bytes };
        reads.iter().map(want).collect()
    }

    fn put(
        &self,
        store: &dyn RemoteStore,
        elements: Option<Elements>,
        writes: &[RemoteWrite],
        deadline: Instant,
    ) -> Pending<()> {
        let put = |write: &RemoteWrite| Put {
            meta: write.record,
            elements,
            // SAFETY: the slot is one of this arena's, and the planner keeps it pinned until this job has been answered:
            // a pinned slot is written by nobody. The store copies the bytes before `put` returns.
            payload: unsafe { self.arena.payload(write.host) },
        };
        let puts: Vec<_> = writes.iter().map(put).collect();
        store.put(&puts, deadline)
    }

    /// What a store calls when it has answered.
    fn landed(self: &Arc<Self>, n: u64) -> impl FnOnce() + Send + 'static {
        let shared = Arc::downgrade(self);
        move || {
            let Some(shared) = shared.upgrade() else { return };
            let mut board = shared.board.lock();
            let Some(flying) = board.flying.get_mut(&n) else { return };
            flying.done = true;
            if flying.call.is_some() {
                board.landed.push_back(n);
                shared.work.notify_one();
            }
        }
    }

    /// The call is under way, or was answered at once.
    fn took_off(&self, n: u64, call: Call) {
        let mut board = self.board.lock();
        let Some(flying) = board.flying.get_mut(&n) else { return };
        flying.call = Some(call);
        if flying.done {
            board.landed.push_back(n);
        }
        // Also whoever sleeps may have to wake earlier now.
        self.work.notify_one();
    }

    /// A call was answered, or its time has come.
    fn look_after(self: &Arc<Self>, n: u64, mut flying: Flying) {
        let over = flying.deadline <= Instant::now();
        let Some(call) = flying.call.take() else { return };
        let answer = match call {
            Call::Exists(pending) => RemoteAnswer::Exists(prefix(&pending.wait())),
            Call::Put(pending) => RemoteAnswer::Put(
                pending.wait().into_iter().map(|r| r.map_err(TransferError::from)).collect(),
            ),
            Call::Get { reads, first, hedge, second } => match (second, hedge) {
                (None, Some(hedge)) if !first.is_done() && !over => {
                    return self.ask_second(n, flying, reads, first, hedge);
                }
                (None, _) => self.fetched(&reads, first, flying.remote),
                (Some(second), Some(hedge)) if !first.is_done() && second.is_done() => {
                    let answer = self.fetched(&reads, second, hedge.remote);
                    if !over && !all_there(&answer) {
                        // The first may still come.
                        let call = Call::Get { reads, first, hedge: None, second: None };
                        return self.wait_on(n, flying, call);
                    }
                    answer
                }
                (Some(second), hedge) if first.is_done() => {
                    let answer = self.fetched(&reads, first, flying.remote);
                    match hedge {
                        Some(hedge) if !all_there(&answer) && !over => {
                            let call = Call::Get { reads, first: second, hedge: None, second: None };
                            flying.remote = hedge.remote;
                            return self.wait_on(n, flying, call);
                        }
                        _ => answer,
                    }
                }
                (Some(second), _) if !over => {
                    // Neither is there: somebody woke for nothing.
                    let call = Call::Get { reads, first, hedge, second: Some(second) };
                    return self.wait_on(n, flying, call);
                }
                (Some(_), _) => self.fetched(&reads, first, flying.remote),
            },
        };
        self.sink.answered(flying.id, answer);
    }

    fn ask_second(
        self: &Arc<Self>,
        n: u64,
        flying: Flying,
        reads: Vec<RemoteRead>,
        first: PendingGet,
        hedge: HedgeAt,
    ) {
        let store = self.stores.get(usize::from(hedge.remote.0));
        let second = store.map(|remote| remote.store.get(&self.wants(&reads), flying.deadline));
        let hedge = second.is_some().then_some(hedge);
        self.wait_on(n, flying, Call::Get { reads, first, hedge, second });
    }

    /// Puts a call back among those under way.
    fn wait_on(self: &Arc<Self>, n: u64, flying: Flying, call: Call) {
        self.board.lock().flying.insert(n, Flying { call: None, done: false, ..flying });
        if let Call::Get { first, second, .. } = &call {
            first.when_done(self.landed(n));
            if let Some(second) = second {
                second.when_done(self.landed(n));
            }
        }
        self.took_off(n, call);
    }

    /// Copies what has come to its slots, and verifies it there.
    fn fetched(&self, reads: &[RemoteRead], pending: PendingGet, by: RemoteId) -> RemoteAnswer {
        let destination = |read: &RemoteRead| {
            // SAFETY: the slot is one of this arena's, and the planner has given it to this read alone, as `Filling` or
            // `Private`, until the answer: nobody else reads or writes it. No slot is named twice in a job.
            (read.job, unsafe { self.arena.payload_mut(read.host) })
        };
        let mut into: Vec<_> = reads.iter().map(destination).collect();
        let (results, coding) = pending.wait_into_measured(&mut into);
        let there = results.iter().filter(|result| result.is_ok()).count();
        let wire = coding.stored(Bytes((there * self.arena.payload_bytes()) as u64));
        let jobs = reads.iter().map(|read| read.job);
        let blocks =
            jobs.zip(results.into_iter().map(|result| result.map_err(TransferError::from))).collect();
        RemoteAnswer::Get { blocks, wire, decode: coding.time(), by }
    }
}

/// Blocks from the first on that are said to be there. Nothing is known if the very first has no answer.
fn prefix(answers: &[Result<bool, RemoteError>]) -> Result<u32, TransferError> {
    match answers.first() {
        Some(Err(error)) => Err((*error).into()),
        _ => Ok(answers.iter().take_while(|there| matches!(there, Ok(true))).count() as u32),
    }
}

fn all_there(answer: &RemoteAnswer) -> bool {
    let ok = |(_, result): &(JobId, Result<Verified, TransferError>)| result.is_ok();
    matches!(answer, RemoteAnswer::Get { blocks, .. } if blocks.iter().all(ok))
}

/// The answer that nothing was done.
fn failed(op: &RemoteOp, error: TransferError) -> RemoteAnswer {
    match op {
        RemoteOp::Exists(_) => RemoteAnswer::Exists(Err(error)),
        RemoteOp::Get { reads, .. } => RemoteAnswer::Get {
            blocks: reads.iter().map(|read| (read.job, Err(error))).collect(),
            wire: Bytes(0),
            decode: Nanos(0),
            by: RemoteId(0),
        },
        RemoteOp::Put(writes) => RemoteAnswer::Put(vec![Err(error); writes.len()]),
    }
}
