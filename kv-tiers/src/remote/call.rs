//! A call in flight: who waits, what it may use, and what is left of it when nobody waits any more.
//!
//! ```text
//!   Pending (caller) ──────┐                        ┌────── Reply (backend), one for each block
//!     wait, or leave       ├──► Batch: the answers ◄┤         answer, or be dropped
//!                          └──► Flight: the permit ◄┘
//! ```
//!
//! The caller leaves at its deadline whatever the backend does. The permit goes back when both sides are done
//! with the call, so what a hung store still holds stays counted until the store lets go of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::RemoteError;
use super::counters::Counters;
use super::limits::Permit;

/// What both sides know of a call.
pub(crate) struct Flight {
    deadline: Instant,
    left: AtomicBool,
    /// What the backend does when the caller leaves early: forget what has not begun.
    on_leave: OnceLock<Box<dyn Fn() + Send + Sync>>,
    _permit: Permit,
}

impl Flight {
    pub(crate) fn new(deadline: Instant, permit: Permit) -> Arc<Self> {
        Arc::new(Self { deadline, left: AtomicBool::new(false), on_leave: OnceLock::new(), _permit: permit })
    }

    /// False when nobody wants the answer any more.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.left.load(Ordering::Acquire) && Instant::now() < self.deadline
    }

    /// When the caller leaves.
    #[cfg_attr(not(feature = "_event-loop"), allow(dead_code))] // only clients with their own timers look
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// To be called once, before the call can be left.
    pub(crate) fn when_left(&self, forget: impl Fn() + Send + Sync + 'static) {
        if self.on_leave.set(Box::new(forget)).is_err() {
            tracing::error!("a call was submitted twice");
        }
    }

    fn leave(&self) {
        self.left.store(true, Ordering::Release);
        if let Some(forget) = self.on_leave.get() {
            forget();
        }
    }
}

struct Batch<T> {
    state: Mutex<Answers<T>>,
    all_there: Condvar,
}

struct Answers<T> {
    answers: Vec<Option<Result<T, RemoteError>>>,
    missing: usize,
    /// Called once when nothing is missing any more.
    when_done: Option<Box<dyn FnOnce() + Send>>,
}

/// The backend's end for one block. Answers once; dropped without an answer it says [`RemoteError::Closed`].
pub(crate) struct Reply<T> {
    batch: Arc<Batch<T>>,
    index: usize,
    /// `None` once answered.
    flight: Option<Arc<Flight>>,
}

impl<T> Reply<T> {
    pub(crate) fn answer(mut self, answer: Result<T, RemoteError>) {
        self.give(answer);
    }

    /// The call that it belongs to.
    pub(crate) fn flight(&self) -> Option<&Arc<Flight>> {
        self.flight.as_ref()
    }

    /// Whether anybody waits for the answer.
    pub(crate) fn is_wanted(&self) -> bool {
        self.flight.as_ref().is_some_and(|flight| flight.is_wanted())
    }

    fn give(&mut self, answer: Result<T, RemoteError>) {
        // Before the caller can know, so that who has its answer has its permit back.
        drop(self.flight.take());
        let mut state = self.batch.state.lock();
        if let Some(room) = state.answers.get_mut(self.index) {
            *room = Some(answer);
        }
        state.missing -= 1;
        if state.missing == 0 {
            self.batch.all_there.notify_all();
            let when_done = state.when_done.take();
            drop(state);
            when_done.into_iter().for_each(|tell| tell());
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if self.flight.is_some() {
            self.give(Err(if self.is_wanted() { RemoteError::Closed } else { RemoteError::Late }));
        }
    }
}

/// A call that was started: [`Pending::wait`] for it, or drop it to cancel it.
///
/// Nothing of the caller's memory is lent to the store, so both may be done at any time.
#[must_use = "dropping it cancels the call"]
pub struct Pending<T> {
    batch: Arc<Batch<T>>,
    /// `None` for a call that was refused before it began.
    flight: Option<Arc<Flight>>,
    counters: Arc<Counters>,
    /// How a success is counted.
    served: fn(&Counters, &T),
}

impl<T> Pending<T> {
    /// A call about `n` blocks, and the backend's ends of it.
    pub(crate) fn start(
        n: usize,
        flight: Arc<Flight>,
        counters: Arc<Counters>,
        served: fn(&Counters, &T),
    ) -> (Self, Vec<Reply<T>>) {
        let answers = Answers { answers: (0..n).map(|_| None).collect(), missing: n, when_done: None };
        let batch = Arc::new(Batch { state: Mutex::new(answers), all_there: Condvar::new() });
        let reply = |index| Reply { batch: Arc::clone(&batch), index, flight: Some(Arc::clone(&flight)) };
        let replies = (0..n).map(reply).collect();
        (Self { batch, flight: Some(flight), counters, served }, replies)
    }

    /// A call that did not begin.
    pub(crate) fn refused(n: usize, why: RemoteError, counters: Arc<Counters>) -> Self {
        let answers =
            Answers { answers: (0..n).map(|_| Some(Err(why))).collect(), missing: 0, when_done: None };
        let batch = Arc::new(Batch { state: Mutex::new(answers), all_there: Condvar::new() });
        Self { batch, flight: None, counters, served: |_, _| {} }
    }

    /// Whether [`Pending::wait`] would return at once with every answer.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.batch.state.lock().missing == 0
    }

    /// Has `tell` called once, when every answer is there: at once if that is so already, else on a thread of the store,
    /// which it must not keep. Not at the deadline: that is for whoever has a clock. The latest one told counts.
    pub fn when_done(&self, tell: impl FnOnce() + Send + 'static) {
        let mut state = self.batch.state.lock();
        if state.missing > 0 {
            state.when_done = Some(Box::new(tell));
            return;
        }
        drop(state);
        tell();
    }

    /// One answer for each block asked for, in that order, at the deadline at the latest. What is not there by
    /// then is [`RemoteError::Late`].
    pub fn wait(self) -> Vec<Result<T, RemoteError>> {
        let served = self.served;
        let Finished { answers, counters, _flight } = self.finish();
        for answer in &answers {
            match answer {
                Ok(value) => served(&counters, value),
                Err(error) => counters.miss(*error),
            }
        }
        answers
    }

    /// The same without counting.
    pub(crate) fn finish(self) -> Finished<T> {
        let mut state = self.batch.state.lock();
        if let Some(flight) = &self.flight {
            while state.missing > 0
                && !self.batch.all_there.wait_until(&mut state, flight.deadline).timed_out()
            {}
        }
        let answers = state.answers.iter_mut().map(|a| a.take().unwrap_or(Err(RemoteError::Late))).collect();
        drop(state);
        Finished { answers, counters: Arc::clone(&self.counters), _flight: self.flight.clone() }
    }
}

/// The answers, and what keeps the permit while they are in use.
pub(crate) struct Finished<T> {
    pub(crate) answers: Vec<Result<T, RemoteError>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) _flight: Option<Arc<Flight>>,
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        match &self.flight {
            Some(flight) if self.batch.state.lock().missing > 0 => flight.leave(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::remote::limits::{Gate, InFlight, Limits};

    fn start(gate: &Arc<Gate>, deadline: Instant) -> (Pending<u32>, Vec<Reply<u32>>, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        let flight = Flight::new(deadline, gate.enter(10).unwrap());
        let (pending, replies) =
            Pending::start(2, flight, Arc::clone(&counters), |c, _| super::super::counters::add(&c.hits, 1));
        (pending, replies, counters)
    }

    #[test]
    fn answers_come_in_the_order_asked_for() {
        let gate = Gate::new(Limits::default());
        let (pending, mut replies, counters) = start(&gate, Instant::now() + Duration::from_secs(600));
        replies.pop().unwrap().answer(Ok(2));
        assert!(!pending.is_done());
        drop(replies.pop());
        assert!(pending.is_done());
        assert_eq!(pending.wait(), [Err(RemoteError::Closed), Ok(2)]);
        assert_eq!((counters.read().hits, counters.read().failed), (1, 1));
        assert_eq!(gate.in_flight(), InFlight::default());
    }

    #[test]
    fn what_a_hung_backend_holds_stays_counted() {
        let gate = Gate::new(Limits::default());
        let (pending, mut replies, counters) = start(&gate, Instant::now());
        replies.pop().unwrap().answer(Ok(2));
        assert_eq!(pending.wait(), [Err(RemoteError::Late), Ok(2)]);
        assert_eq!(counters.read().late, 1);
        assert_eq!(gate.in_flight(), InFlight { calls: 1, bytes: 10 });
        replies.pop().unwrap().answer(Ok(1));
        assert_eq!(gate.in_flight(), InFlight::default());
    }

    #[test]
    fn whoever_does_not_wait_is_told_once() {
        let gate = Gate::new(Limits::default());
        let (pending, mut replies, _) = start(&gate, Instant::now() + Duration::from_secs(600));
        let told = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let tell = |pending: &Pending<u32>| {
            let told = Arc::clone(&told);
            pending.when_done(move || {
                told.fetch_add(1, Ordering::Relaxed);
            });
        };
        tell(&pending);
        replies.pop().unwrap().answer(Ok(2));
        assert_eq!(told.load(Ordering::Relaxed), 0);
        drop(replies);
        assert_eq!(told.load(Ordering::Relaxed), 1);
        tell(&pending);
        assert_eq!(told.load(Ordering::Relaxed), 2, "at once");
    }

    #[test]
    fn leaving_tells_the_backend_once_it_has_begun() {
        let gate = Gate::new(Limits::default());
        let (pending, replies, _) = start(&gate, Instant::now() + Duration::from_secs(600));
        let told = Arc::new(AtomicBool::new(false));
        let flight = Arc::clone(replies[0].flight().unwrap());
        flight.when_left({
            let told = Arc::clone(&told);
            move || told.store(true, Ordering::Relaxed)
        });
        assert!(flight.is_wanted());
        drop(pending);
        assert!(told.load(Ordering::Relaxed) && !flight.is_wanted());
    }
}
