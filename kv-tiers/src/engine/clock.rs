//! The engine's notion of now. The planner gets its time from here and nowhere else.

use kv_core::units::Nanos;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Real or simulated time, in nanoseconds since the engine was built.
#[derive(Debug)]
pub enum Clock {
    /// The system's monotonic clock, counted from this instant.
    Monotonic(Instant),
    /// Stands still until [`Clock::advance_to`].
    Virtual(AtomicU64),
}

impl Clock {
    /// Real time, starting now.
    #[must_use]
    pub fn monotonic() -> Self {
        Self::Monotonic(Instant::now())
    }

    /// Simulated time, starting at zero.
    #[must_use]
    pub const fn simulated() -> Self {
        Self::Virtual(AtomicU64::new(0))
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Nanos {
        match self {
            // 2^64 ns are 584 years.
            Self::Monotonic(start) => Nanos(start.elapsed().as_nanos() as u64),
            Self::Virtual(now) => Nanos(now.load(Ordering::Relaxed)),
        }
    }

    /// Moves simulated time forward; real time does not care.
    pub fn advance_to(&self, at: Nanos) {
        if let Self::Virtual(now) = self {
            now.fetch_max(at.0, Ordering::Relaxed);
        }
    }
}
