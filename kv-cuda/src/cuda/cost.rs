//! How long a copy takes, from what was measured on this device.
//!
//! ```text
//! engine   fixed + runs * t(run)
//! kernel   pieces * fixed + runs * t(run)
//! staged   fixed of both + max(blocks * engine t(block), runs * hbm t(run)) + the last piece's way through HBM
//! ```
//!
//! `t` is a curve through measured points, so that no constant says where one method overtakes another.

use super::method::{KERNEL_PIECES, Method, Shape};
use crate::device::Direction;

/// Seconds for one contiguous run, as a function of its bytes, by measured points.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Curve(Vec<(f64, f64)>);

impl Curve {
    /// A curve through (bytes, seconds) points. Points that are not positive numbers are left out.
    #[must_use]
    pub fn new(points: impl IntoIterator<Item = (usize, f64)>) -> Self {
        let usable = |&(bytes, seconds): &(usize, f64)| bytes > 0 && seconds.is_finite() && seconds > 0.0;
        let mut points: Vec<_> =
            points.into_iter().filter(usable).map(|(bytes, seconds)| (bytes as f64, seconds)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.dedup_by(|a, b| a.0 == b.0);
        Self(points)
    }

    /// The measured points: bytes of a run, seconds for it.
    #[must_use]
    pub fn points(&self) -> &[(f64, f64)] {
        &self.0
    }

    /// Seconds for a run. Between points on a straight line of logarithms; below the first point its
    /// time, which is overhead; beyond the last in proportion. `None` without points.
    #[must_use]
    pub fn at(&self, bytes: usize) -> Option<f64> {
        let bytes = bytes as f64;
        let after = self.0.partition_point(|&(x, _)| x < bytes);
        let (first, last) = (self.0.first()?, self.0.last()?);
        Some(match (after.checked_sub(1).and_then(|before| self.0.get(before)), self.0.get(after)) {
            (None, _) => first.1,
            (_, None) => last.1 * bytes / last.0,
            (Some(&(x0, y0)), Some(&(x1, y1))) => {
                let share = (bytes / x0).ln() / (x1 / x0).ln();
                y0 * (y1 / y0).powf(share)
            }
        })
    }
}

/// What one way of copying costs in one direction.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Cost {
    /// Seconds to begin and end: of a transfer for the copy engine, of a launch for kernels.
    pub fixed: f64,
    /// Seconds for one run.
    pub run: Curve,
}

/// Costs of one direction.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct DirectionCosts {
    /// [`Method::EngineLoop`].
    pub engine_loop: Cost,
    /// [`Method::EngineBatch`], if the driver has it.
    pub engine_batch: Option<Cost>,
    /// [`Method::Kernel`], by number of CTAs.
    pub kernel: Vec<(u32, Cost)>,
    /// [`Method::Bulk`], by number of CTAs; empty where the GPU has no bulk copies.
    pub bulk: Vec<(u32, Cost)>,
    /// The kernel half of [`Method::Staged`], between the pool and staging, by number of CTAs.
    pub stage: Vec<(u32, Cost)>,
}

/// All that is known of a device and its link.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Calibration {
    /// Multiprocessors of the GPU: what a CTA is a share of.
    pub multiprocessors: u32,
    /// Host to device.
    pub to_device: DirectionCosts,
    /// Device to host.
    pub to_host: DirectionCosts,
}

impl Calibration {
    /// Costs of one direction.
    #[must_use]
    pub const fn costs(&self, direction: Direction) -> &DirectionCosts {
        match direction {
            Direction::ToDevice => &self.to_device,
            Direction::ToHost => &self.to_host,
        }
    }

    /// The methods that can copy `shape`, each with the number of CTAs it was measured with.
    pub fn methods(&self, shape: &Shape) -> impl Iterator<Item = Method> {
        let costs = self.costs(shape.direction);
        let batch = costs.engine_batch.is_some().then_some(Method::EngineBatch);
        let (direct, wide) = (shape.whole_runs && shape.mapped, shape.alignment == 16);
        let kernel = if direct { &costs.kernel[..] } else { &[] };
        let bulk = if direct && wide { &costs.bulk[..] } else { &[] };
        let stage = if shape.whole_runs { &costs.stage[..] } else { &[] };
        [Method::EngineLoop]
            .into_iter()
            .chain(batch)
            .chain(kernel.iter().map(|&(ctas, _)| Method::Kernel { ctas }))
            .chain(bulk.iter().map(|&(ctas, _)| Method::Bulk { ctas }))
            .chain(stage.iter().map(|&(ctas, _)| Method::Staged { ctas }))
    }

    /// Seconds that `method` will take; `None` if it was never measured.
    #[must_use]
    pub fn seconds(&self, shape: &Shape, method: Method) -> Option<f64> {
        let costs = self.costs(shape.direction);
        let runs = shape.runs() as f64;
        let engine = |cost: &Cost, copies: f64, bytes| Some(cost.fixed + copies * cost.run.at(bytes)?);
        let kernel = |cost: &Cost| {
            let pieces = shape.bytes().div_ceil(KERNEL_PIECES * shape.piece_bytes.max(1));
            Some(pieces as f64 * cost.fixed + runs * cost.run.at(shape.run_bytes)?)
        };
        match method {
            Method::EngineLoop => engine(&costs.engine_loop, runs, shape.run_bytes),
            Method::EngineBatch => engine(costs.engine_batch.as_ref()?, runs, shape.run_bytes),
            Method::Kernel { ctas } => kernel(with(&costs.kernel, ctas)?),
            Method::Bulk { ctas } => kernel(with(&costs.bulk, ctas)?),
            Method::Staged { ctas } => {
                let stage = with(&costs.stage, ctas)?;
                let link = costs.engine_batch.as_ref().unwrap_or(&costs.engine_loop);
                let over_link = engine(link, shape.blocks as f64, shape.block_bytes)?;
                let in_hbm = runs * stage.run.at(shape.run_bytes)?;
                let last_piece = (shape.piece_bytes as f64 / shape.bytes() as f64).min(1.0) * in_hbm;
                Some(over_link.max(in_hbm) + stage.fixed + last_piece)
            }
        }
    }
}

/// The cost measured with so many CTAs.
fn with(measured: &[(u32, Cost)], ctas: u32) -> Option<&Cost> {
    measured.iter().find(|&&(with, _)| with == ctas).map(|(_, cost)| cost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_curve_meets_its_points_and_bends_between_them() {
        let curve = Curve::new([(65536, 2e-6), (4096, 1e-6)]);
        let close = |bytes, seconds: f64| (curve.at(bytes).unwrap() / seconds - 1.0).abs() < 1e-9;
        assert!(close(4096, 1e-6) && close(65536, 2e-6));
        assert!(close(16384, 2e-6 / 2f64.sqrt()), "half of the way in logarithms");
        assert!(close(1, 1e-6), "overhead does not vanish");
        assert!(close(131_072, 4e-6), "bandwidth does not grow");
        assert_eq!(Curve::new([(0, 1.0), (8, f64::NAN), (8, -1.0)]).at(8), None);
    }

    proptest! {
        /// More bytes never take less time, whatever was measured in order.
        #[test]
        fn a_curve_of_rising_points_rises(steps in proptest::collection::vec((1usize..1000, 0.0f64..1e-3), 1..8), at in 0usize..10_000) {
            let (mut bytes, mut seconds) = (0, 1e-6);
            let curve = Curve::new(steps.into_iter().map(|(more, longer)| {
                bytes += more;
                seconds += longer;
                (bytes, seconds)
            }));
            prop_assert!(curve.at(at).unwrap() <= curve.at(at + 1).unwrap() * (1.0 + 1e-12));
        }
    }
}
