//! Which way a transfer is copied, and why.

use std::fmt;

use super::cost::Calibration;
use super::method::{Method, Shape};
use crate::device::Direction;

/// Share of a new observation in the running correction.
const WEIGHT: f64 = 0.2;
/// With every choice, a correction that was not renewed moves so much of the way back to 1: a method that
/// was once slow, because the GPU was busy, is tried again after some hundred transfers. (A trial that
/// waits 1.6 ms behind a prefill then costs a percent of the transfers in between.)
const FORGET: f64 = 0.001;
/// An observation counts at most so many times more, or less, than predicted: one stall is not a rule.
const OUTLIER: f64 = 20.0;
/// Corrections are kept by powers of four of the run, from 256 bytes up.
const CLASSES: usize = 8;

/// Predicts each method's time from the calibration and from how far off earlier predictions were.
#[derive(Clone, Debug)]
pub struct Chooser {
    calibration: Calibration,
    forced: Option<Method>,
    /// Observed over predicted, by direction, kind of method and class of run.
    corrections: [[[f64; CLASSES]; 5]; 2],
}

/// One method as the chooser saw it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The method.
    pub method: Method,
    /// Seconds by calibration.
    pub predicted: f64,
    /// Observed over predicted, in the recent past.
    pub correction: f64,
    /// What is compared: seconds, and the GPU time that its CTAs take from others.
    pub price: f64,
}

/// A choice and all that led to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// What was to be copied.
    pub shape: Shape,
    /// All methods that could do it, the cheapest first.
    pub candidates: Vec<Candidate>,
    /// The one that was chosen.
    pub chosen: Method,
    /// Chosen by [`CopyTuning`](super::CopyTuning), not by price.
    pub forced: bool,
}

impl Chooser {
    /// Chooses by `calibration`, or always `forced`.
    #[must_use]
    pub fn new(calibration: Calibration, forced: Option<Method>) -> Self {
        Self { calibration, forced, corrections: [[[1.0; CLASSES]; 5]; 2] }
    }

    /// What was measured.
    #[must_use]
    pub const fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// The method for `shape` and the seconds that it should take.
    pub fn choose(&mut self, shape: &Shape) -> (Method, f64) {
        let cheapest = self
            .calibration
            .methods(shape)
            .filter_map(|method| self.candidate(shape, method))
            .min_by(|a, b| a.price.total_cmp(&b.price));
        for correction in self.corrections.iter_mut().flatten().flatten() {
            *correction += (1.0 - *correction) * FORGET;
        }
        let chosen = match self.forced.filter(|&method| self.is_possible(shape, method)) {
            Some(forced) => self.candidate(shape, forced).map(|c| (forced, c.predicted * c.correction)),
            None => cheapest.map(|c| (c.method, c.predicted * c.correction)),
        };
        // Without a calibration there is still the method that needs none.
        chosen.unwrap_or((Method::EngineLoop, 0.0))
    }

    /// Tells how long a piece of a transfer took.
    pub fn observe(&mut self, shape: &Shape, method: Method, seconds: f64) {
        let Some(predicted) = self.calibration.seconds(shape, method) else { return };
        let ratio = seconds / predicted;
        if ratio.is_finite() && ratio > 0.0 {
            let correction = self.correction_mut(shape, method);
            *correction += (ratio.clamp(1.0 / OUTLIER, OUTLIER) - *correction) * WEIGHT;
        }
    }

    /// What [`Chooser::choose`] would choose now, and why.
    #[must_use]
    pub fn explain(&self, shape: &Shape) -> Explanation {
        let mut candidates: Vec<_> =
            self.calibration.methods(shape).filter_map(|method| self.candidate(shape, method)).collect();
        candidates.sort_by(|a, b| a.price.total_cmp(&b.price));
        let forced = self.forced.filter(|&method| self.is_possible(shape, method));
        let cheapest = candidates.first().map(|candidate| candidate.method);
        let chosen = forced.or(cheapest).unwrap_or(Method::EngineLoop);
        Explanation { shape: *shape, candidates, chosen, forced: forced.is_some() }
    }

    fn is_possible(&self, shape: &Shape, method: Method) -> bool {
        self.calibration.methods(shape).any(|possible| possible == method)
    }

    fn candidate(&self, shape: &Shape, method: Method) -> Option<Candidate> {
        let predicted = self.calibration.seconds(shape, method)?;
        let [direction, kind, class] = place(shape, method);
        let correction = self.corrections[direction][kind][class];
        let share = f64::from(method.ctas()) / f64::from(self.calibration.multiprocessors.max(1));
        Some(Candidate { method, predicted, correction, price: predicted * correction * (1.0 + share) })
    }

    fn correction_mut(&mut self, shape: &Shape, method: Method) -> &mut f64 {
        let [direction, kind, class] = place(shape, method);
        &mut self.corrections[direction][kind][class]
    }
}

fn place(shape: &Shape, method: Method) -> [usize; 3] {
    let direction = match shape.direction {
        Direction::ToDevice => 0,
        Direction::ToHost => 1,
    };
    let class = (shape.run_bytes.max(256).ilog2() as usize - 8) / 2;
    [direction, method.kind(), class.min(CLASSES - 1)]
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { direction, blocks, block_bytes, run_bytes, alignment, .. } = self.shape;
        let way = match direction {
            Direction::ToDevice => "host to device",
            Direction::ToHost => "device to host",
        };
        writeln!(
            f,
            "{blocks} blocks of {block_bytes} bytes, {way}, runs of {run_bytes} bytes, accesses of {alignment}"
        )?;
        for &Candidate { method, predicted, correction, price } in &self.candidates {
            let rate = self.shape.bytes() as f64 / (predicted * correction) / 1e9;
            let mark = if method == self.chosen { "->" } else { "  " };
            writeln!(
                f,
                "{mark} {method:<14} {:>9.1} us {rate:>7.2} GB/s  (measured {:.1} us, correction {correction:.2}, price {:.1} us)",
                predicted * correction * 1e6,
                predicted * 1e6,
                price * 1e6,
            )?;
        }
        match self.forced {
            true => write!(f, "{} is what KVTIER_COPY_METHOD or the configuration asks for", self.chosen),
            false => write!(f, "{} has the least time, its share of the GPU counted in", self.chosen),
        }
    }
}

#[cfg(test)]
mod tests;
