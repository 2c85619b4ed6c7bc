//! What encoding or decoding took: the terms of the cost model that a codec is responsible for.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kv_core::units::{Bytes, Nanos};
use serde::Serialize;

use super::counters::add;

/// Blocks that went through the codec, together. Those that were never offered to it do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coding {
    /// Bytes in the store, headers not counted.
    pub stored_bytes: u64,
    /// Bytes of KV.
    pub payload_bytes: u64,
    /// Time on the thread that did it.
    pub nanos: u64,
}

impl Coding {
    pub(crate) fn new(stored_bytes: usize, payload_bytes: usize, time: Duration) -> Self {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self { stored_bytes: stored_bytes as u64, payload_bytes: payload_bytes as u64, nanos }
    }

    /// What [`LoadTimes::decode`](kv_core::cost::LoadTimes::decode) is to be told.
    #[must_use]
    pub const fn time(&self) -> Nanos {
        Nanos(self.nanos)
    }

    /// Bytes that so much KV is likely to take in the store, judged by what was seen; as it is if nothing was. The
    /// [`LoadSize::bytes`](kv_core::cost::LoadSize::bytes) of a load whose record was not looked at yet.
    ///
    /// ```
    /// # use kv_core::units::Bytes;
    /// # use kv_tiers::remote::Coding;
    /// let seen = Coding { stored_bytes: 200, payload_bytes: 300, nanos: 1 };
    /// assert_eq!(seen.stored(Bytes(3 << 30)), Bytes(2 << 30));
    /// assert_eq!(Coding::default().stored(Bytes(7)), Bytes(7));
    /// ```
    #[must_use]
    pub fn stored(&self, payload: Bytes) -> Bytes {
        let ratio = u128::from(self.stored_bytes) * u128::from(payload.0);
        let stored = ratio.checked_div(u128::from(self.payload_bytes));
        stored.map_or(payload, |bytes| Bytes(u64::try_from(bytes).unwrap_or(u64::MAX)))
    }
}

impl AddAssign for Coding {
    fn add_assign(&mut self, other: Self) {
        self.stored_bytes += other.stored_bytes;
        self.payload_bytes += other.payload_bytes;
        self.nanos += other.nanos;
    }
}

/// The same, counting.
#[derive(Debug, Default)]
pub(crate) struct CodingCounter {
    stored_bytes: AtomicU64,
    payload_bytes: AtomicU64,
    nanos: AtomicU64,
}

impl CodingCounter {
    pub(crate) fn add(&self, coding: Coding) {
        add(&self.stored_bytes, coding.stored_bytes);
        add(&self.payload_bytes, coding.payload_bytes);
        add(&self.nanos, coding.nanos);
    }

    pub(crate) fn read(&self) -> Coding {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Coding {
            stored_bytes: read(&self.stored_bytes),
            payload_bytes: read(&self.payload_bytes),
            nanos: read(&self.nanos),
        }
    }
}
