//! Leaves a source alone that fails again and again, and looks after it at growing intervals.
//!
//! ```text
//!            3 bad in a row             its time has come
//!   Closed ───────────────► Open ─────────────────────────► one probe ──► good: Closed
//!                            ▲                                   │
//!                            └──── bad: half as long again ◄─────┘
//! ```
//!
//! Nobody waits for the probe: a request that meets a half-open breaker recomputes.

use crate::units::Nanos;

/// Bad outcomes in a row that open it.
const BAD_IN_A_ROW: u8 = 3;
/// How long it stays open at first, and at most.
const FIRST: Nanos = Nanos::from_millis(1_000);
const LONGEST: Nanos = Nanos::from_millis(30_000);

/// What may be asked of a source now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Loads.
    Loads,
    /// One probe, which must be told with [`Breaker::probing`].
    OneProbe,
    /// Nothing.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { bad: u8 },
    Open { until: Nanos, pause: Nanos },
}

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Breaker(State);

impl Breaker {
    pub(super) const fn new() -> Self {
        Self(State::Closed { bad: 0 })
    }

    pub(super) fn gate(&self, now: Nanos) -> Gate {
        match self.0 {
            State::Closed { .. } => Gate::Loads,
            State::Open { until, .. } if now >= until => Gate::OneProbe,
            State::Open { .. } => Gate::Nothing,
        }
    }

    /// The probe is on its way. One that is never heard of again counts as bad after another pause.
    pub(super) fn probing(&mut self, now: Nanos) {
        if let State::Open { until, pause } = self.0
            && now >= until
        {
            self.open(now, pause + Nanos(pause.0 / 2));
        }
    }

    /// A load or probe came in time and was right.
    pub(super) fn good(&mut self) {
        self.0 = State::Closed { bad: 0 };
    }

    /// A load or probe failed, was refused or came too late.
    pub(super) fn bad(&mut self, now: Nanos) {
        match self.0 {
            State::Closed { bad } if bad + 1 < BAD_IN_A_ROW => self.0 = State::Closed { bad: bad + 1 },
            State::Closed { .. } => self.open(now, FIRST),
            // `probing` has set the next date already; loads that were under way say nothing new.
            State::Open { .. } => {}
        }
    }

    fn open(&mut self, now: Nanos, pause: Nanos) {
        let pause = pause.min(LONGEST);
        self.0 = State::Open { until: now + pause, pause };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Nanos {
        Nanos::from_millis(1000 * seconds)
    }

    #[test]
    fn opens_probes_and_closes() {
        let mut breaker = Breaker::new();
        breaker.bad(s(0));
        breaker.bad(s(0));
        breaker.good();
        breaker.bad(s(0));
        breaker.bad(s(0));
        assert_eq!(breaker.gate(s(0)), Gate::Loads, "never three in a row");
        breaker.bad(s(0));
        assert_eq!(breaker.gate(s(0)), Gate::Nothing);
        assert_eq!(breaker.gate(s(1)), Gate::OneProbe);
        breaker.probing(s(1));
        assert_eq!(breaker.gate(s(1)), Gate::Nothing, "one probe at a time");
        breaker.good();
        assert_eq!(breaker.gate(s(1)), Gate::Loads);
    }

    #[test]
    fn pauses_grow_up_to_a_limit_even_when_a_probe_is_never_heard_of() {
        let mut breaker = Breaker::new();
        (0..3).for_each(|_| breaker.bad(s(0)));
        let mut now = s(1);
        let mut pause = FIRST;
        for _ in 0..12 {
            assert_eq!(breaker.gate(now), Gate::OneProbe);
            breaker.probing(now);
            breaker.bad(now);
            pause = Nanos(pause.0 * 3 / 2).min(LONGEST);
            assert_eq!(breaker.gate(now + pause - Nanos(1)), Gate::Nothing);
            now = now + pause;
        }
        assert_eq!(pause, LONGEST);
    }
}
