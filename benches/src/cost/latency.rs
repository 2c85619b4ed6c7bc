//! What one decision takes, and whether it allocates.

use std::time::Instant;

use kv_core::cost::{Ask, CostModel, LoadSize, Offer, Outcome, TokenRange, WhenLate};
use kv_core::units::{Bytes, Nanos};
use serde::Serialize;

use super::world::TOKEN_BYTES;
use crate::SplitMix64;
use crate::heap;

/// Decisions that are timed one by one.
const TIMED: usize = 200_000;
/// Decisions in which allocations are counted.
const COUNTED: usize = 10_000;

/// Figures of single decisions with one source, on a model that has learnt.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Nanoseconds that half of the decisions do not exceed, the clock's own included.
    pub p50_ns: f64,
    /// The same for 99 %.
    pub p99_ns: f64,
    /// Allocations per decision and settlement; `None` when the heap is not counted.
    pub allocations: Option<f64>,
}

fn decide(model: &mut CostModel, rng: &mut SplitMix64, i: usize) {
    let Some(source) = model.source("remote") else { return };
    let range = TokenRange::new(0, rng.between(500, 60_000) as u32);
    let size = LoadSize::raw(Bytes(u64::from(range.len()) * TOKEN_BYTES));
    let ask = Ask {
        range,
        prompt_end: range.end,
        when_late: if i.is_multiple_of(2) { WhenLate::GiveUp } else { WhenLate::Race },
    };
    let now = Nanos(i as u64);
    let decision = std::hint::black_box(model.decide(now, &ask, &[Offer { source, size }], rng.next_u64()));
    for ticket in
        decision.load.map(|load| load.ticket).into_iter().chain(decision.probe.map(|probe| probe.ticket))
    {
        model.settle(now, ticket, Outcome::Cancelled { waited: Nanos(0) });
    }
}

/// Times decisions of `model`; what it has learnt stays as it is.
#[must_use]
pub(super) fn measure(mut model: CostModel) -> Latency {
    let mut rng = SplitMix64::new(1);
    let mut times: Vec<u64> = (0..TIMED)
        .map(|i| {
            let start = Instant::now();
            decide(&mut model, &mut rng, i);
            start.elapsed().as_nanos() as u64
        })
        .collect();
    times.sort_unstable();
    let ((), growth) = heap::measure(|| (0..COUNTED).for_each(|i| decide(&mut model, &mut rng, i)));
    Latency {
        p50_ns: times[TIMED / 2] as f64,
        p99_ns: times[TIMED * 99 / 100] as f64,
        allocations: growth.map(|growth| growth.allocations as f64 / COUNTED as f64),
    }
}
