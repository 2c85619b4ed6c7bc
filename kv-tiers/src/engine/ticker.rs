//! The thread that calls the planner when time alone has to make something happen.

use super::Shared;
use crate::sync::{Condvar, Mutex, lock, wait_for};
use kv_core::units::Nanos;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Upper bound on how long a retry of a failing tier can be late; deadlines are met to the microsecond.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// Wakes the ticker.
#[derive(Default)]
pub(super) struct Alarm {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Until when the thread sleeps.
    until: Nanos,
    /// Something that is due earlier has come in.
    look_again: bool,
    stop: bool,
}

impl Alarm {
    /// Makes sure that the planner is ticked at `at`.
    pub(super) fn look_before(&self, at: Nanos) {
        let mut state = lock(&self.state);
        if at < state.until {
            state.look_again = true;
            self.changed.notify_one();
        }
    }
}

pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let thread = std::thread::Builder::new().name("kvtier-ticker".into()).spawn({
            let shared = shared.clone();
            move || run(&shared, &shared.alarm)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

fn run(shared: &Shared, alarm: &Alarm) {
    loop {
        let due = lock(&shared.core).planner.next_deadline().unwrap_or(Nanos::NEVER);
        let now = shared.clock.now();
        if due <= now {
            shared.call(|planner, now, out| planner.tick(now, out));
            continue;
        }
        let mut state = lock(&alarm.state);
        if state.stop {
            return;
        }
        if !std::mem::take(&mut state.look_again) {
            let sleep = Duration::from_nanos((due - now).0).min(LONGEST_SLEEP);
            state.until = due;
            state = wait_for(&alarm.changed, state, sleep);
            // Awake: whoever comes now is seen by the look that follows, or asks for another.
            state.until = Nanos::NEVER;
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        lock(&self.shared.alarm.state).stop = true;
        self.shared.alarm.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine's ticker thread had panicked");
        }
    }
}
