//! What a load is asked to do, what it is expected to take, and what it took.

use super::sketch::edge;
use crate::units::{Bytes, Nanos};

/// What a source could deliver for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadSize {
    /// Bytes that travel.
    pub bytes: Bytes,
    /// Bytes after decoding, if they travel encoded.
    pub decoded: Option<Bytes>,
    /// The copy into GPU memory afterwards, as predicted by whoever makes it.
    pub h2d: Nanos,
    /// Time of all this that passes while the request computes something anyway.
    pub overlap: Nanos,
}

impl LoadSize {
    /// Raw bytes, nothing overlapped.
    #[must_use]
    pub const fn raw(bytes: Bytes) -> Self {
        Self { bytes, decoded: None, h2d: Nanos(0), overlap: Nanos(0) }
    }
}

/// How the time of a load was spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadTimes {
    /// Asking whether the blocks are there.
    pub lookup: Nanos,
    /// From asking for the first byte until the last has arrived, waiting in queues included.
    pub transfer: Nanos,
    /// Decoding, unless hidden behind the transfer.
    pub decode: Nanos,
}

/// A load's predicted time in seconds, term by term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadForecast {
    /// Asking whether the blocks are there.
    pub lookup: f64,
    /// Waiting behind bytes in flight, at the present level.
    pub queue: f64,
    /// The bytes themselves, at the present level.
    pub transfer: f64,
    /// Congestion now; 1 is usual. `queue` and `transfer` contain it.
    pub level: f64,
    /// Decoding.
    pub decode: f64,
    /// Copy to the GPU.
    pub h2d: f64,
    /// What the request does not notice.
    pub overlap: f64,
    pub(super) class: u8,
    /// What the fit multiplies its coefficients with.
    pub(super) features: [f64; 3],
}

impl LoadForecast {
    /// Time of a load whose residual is `ratio`.
    #[must_use]
    pub fn time(&self, ratio: f64) -> f64 {
        (self.besides() + ratio * (self.queue + self.transfer)).max(0.0)
    }

    /// The residual of a load that takes `seconds`.
    pub(super) fn ratio(&self, seconds: f64) -> f64 {
        (seconds - self.besides()) / (self.queue + self.transfer)
    }

    /// What the residual does not stretch.
    fn besides(&self) -> f64 {
        self.lookup + self.decode + self.h2d - self.overlap
    }
}

/// Upper edges of residual buckets, as times of one load.
pub(super) fn upper_edge(forecast: &LoadForecast, bucket: usize) -> f64 {
    forecast.time(edge(bucket + 1))
}
