//! Recursive least squares in relative terms: learns the coefficients of a sum of known features, one observation
//! at a time, in fixed memory.
//!
//! This is the Kalman form of least squares: coefficients drift slowly (so old observations are forgotten), start
//! from a prior with a stated doubt, and each observation counts by its *relative* error, because what is promised
//! is a relative error. Errors beyond a few times the usual spread count less (Huber, 1964), so one paused process
//! does not spoil what a thousand requests taught.

use super::snapshot::{Damaged, Reader, Writer};

/// Relative drift of every coefficient per observation.
const DRIFT: f64 = 0.004;
/// Errors beyond this many spreads count less.
const HUBER: f64 = 3.0;
/// Larger ratios are taken for this one: it keeps sums finite.
const LARGEST_ERROR: f64 = 1e6;
/// How fast the spread follows.
const SPREAD_RATE: f64 = 0.05;
/// Timers and schedulers are never better than this.
const SMALLEST_SPREAD: f64 = 0.01;
/// Coefficients stay within this factor of their prior. What a prior misses by more is not this kind of thing.
const REACH: f64 = 4096.0;

/// See the module's head. Coefficients are positive.
#[derive(Clone, Debug)]
pub(super) struct Fit<const N: usize> {
    prior: [f64; N],
    theta: [f64; N],
    /// Covariance of the coefficients.
    covariance: [[f64; N]; N],
    /// The largest relative doubt about a coefficient, also after long silence about it.
    doubt: f64,
    /// Usual absolute relative error.
    spread: f64,
}

fn square(x: f64) -> f64 {
    x * x
}

impl<const N: usize> Fit<N> {
    /// `prior` are positive coefficients, believed within a relative standard deviation of `doubt`.
    pub(super) fn new(prior: [f64; N], doubt: f64) -> Self {
        let covariance = std::array::from_fn(|row| {
            std::array::from_fn(|column| if row == column { square(doubt * prior[row]) } else { 0.0 })
        });
        Self { prior, theta: prior, covariance, doubt, spread: 0.3 }
    }

    pub(super) const fn coefficients(&self) -> &[f64; N] {
        &self.theta
    }

    pub(super) fn predict(&self, x: &[f64; N]) -> f64 {
        self.theta.iter().zip(x).map(|(theta, x)| theta * x).sum()
    }

    /// Multiplies all coefficients.
    pub(super) fn scale(&mut self, factor: f64) {
        for row in 0..N {
            self.theta[row] *= factor;
            for column in 0..N {
                self.covariance[row][column] *= factor * factor;
            }
        }
        self.stay_in_reach();
    }

    /// `x` was seen to give `y`. Anything but a positive number is ignored.
    pub(super) fn observe(&mut self, x: &[f64; N], y: f64) {
        let predicted = self.predict(x);
        if !(y > 0.0 && y.is_finite() && predicted > 0.0) {
            return;
        }
        let z = x.map(|x| x / predicted);
        let error = (y / predicted).min(LARGEST_ERROR) - 1.0;
        let trust = (HUBER * self.spread / error.abs()).min(1.0);
        let seen = error.abs().min(4.0 * self.spread);
        self.spread = (self.spread + SPREAD_RATE * (seen - self.spread)).max(SMALLEST_SPREAD);

        let gain: [f64; N] = self.covariance.map(|row| row.iter().zip(&z).map(|(c, z)| c * z).sum());
        let explained: f64 = gain.iter().zip(&z).map(|(g, z)| g * z).sum();
        let total = explained + self.spread * self.spread / trust;
        for row in 0..N {
            self.theta[row] += gain[row] * error / total;
            for column in 0..N {
                self.covariance[row][column] -= gain[row] * gain[column] / total;
            }
        }
        self.stay_in_reach();
        self.drift();
    }

    fn drift(&mut self) {
        for i in 0..N {
            let most = square(self.doubt * self.theta[i].max(self.prior[i]));
            let variance = self.covariance[i][i] + square(DRIFT * self.theta[i]);
            self.covariance[i][i] = variance;
            // Shrinking row and column alike keeps the matrix a covariance.
            if variance > most {
                let shrink = (most / variance).sqrt();
                for j in 0..N {
                    self.covariance[i][j] *= shrink;
                    self.covariance[j][i] *= shrink;
                }
            }
        }
    }

    fn stay_in_reach(&mut self) {
        for (theta, prior) in self.theta.iter_mut().zip(&self.prior) {
            *theta = theta.clamp(prior / REACH, prior * REACH);
        }
    }

    pub(super) fn save(&self, out: &mut Writer) {
        self.theta.iter().chain(self.covariance.iter().flatten()).for_each(|x| out.f64(*x));
        out.f64(self.spread);
    }

    pub(super) fn load(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        for (theta, prior) in self.theta.iter_mut().zip(&self.prior) {
            *theta = from.in_range(prior / REACH, prior * REACH)?;
        }
        for variance in self.covariance.iter_mut().flatten() {
            *variance = from.finite()?;
        }
        self.spread = from.in_range(SMALLEST_SPREAD, 1e9)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn features(i: usize) -> [f64; 2] {
        [1.0, ((i * 37) % 64) as f64]
    }

    #[test]
    fn learns_coefficients_that_the_prior_misses() {
        let truth = [5.0, 0.3];
        let mut fit = Fit::new([1.0, 1.0], 1.0);
        for i in 0..300 {
            let x = features(i);
            let noise = 1.0 + 0.02 * ((i * 7919 % 13) as f64 / 6.0 - 1.0);
            fit.observe(&x, (truth[0] + truth[1] * x[1]) * noise);
        }
        for x in [[1.0, 0.0], [1.0, 10.0], [1.0, 100.0]] {
            let truth = truth[0] + truth[1] * x[1];
            assert!((fit.predict(&x) / truth - 1.0).abs() < 0.03, "{x:?}: {fit:?}");
        }
    }

    #[test]
    fn outliers_do_not_spoil_it() {
        let mut fit = Fit::new([5.0, 0.3], 0.3);
        for i in 0..400 {
            let x = features(i);
            // One in ten is a hundred times slower.
            let spoilt = if i % 10 == 9 { 100.0 } else { 1.0 };
            fit.observe(&x, (5.0 + 0.3 * x[1]) * spoilt);
        }
        assert!((fit.predict(&[1.0, 32.0]) / 14.6 - 1.0).abs() < 0.15, "{fit:?}");
    }

    proptest! {
        #[test]
        fn stays_finite_and_positive(
            seen in prop::collection::vec((0.0..1e6f64, prop::num::f64::ANY), 1..200)
        ) {
            let mut fit = Fit::new([0.02, 3e-5], 3.0);
            for (x, y) in seen {
                fit.observe(&[1.0, x], y);
                prop_assert!(fit.coefficients().iter().all(|c| c.is_finite() && *c > 0.0));
                prop_assert!(fit.covariance.iter().flatten().all(|c| c.is_finite()));
            }
        }
    }
}
