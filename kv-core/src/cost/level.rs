//! How much slower than usual something is just now: one ratio that follows the latest observations.
//!
//! The fits learn what is usual and are slow on purpose. Load on a GPU or congestion of a link comes and goes within
//! a few requests; this factor follows it, is bounded against single outliers, and is forgotten when nothing is
//! observed for a while, because congestion that was not looked at is not known to go on.

use super::snapshot::{Damaged, Reader, Writer};
use crate::units::Nanos;

/// One observation moves the level as if it had been at most this factor off.
const CLIP: f64 = 3.0;
/// A level beyond these bounds would be a broken fit, not load.
const BOUNDS: (f64, f64) = (1.0 / 1024.0, 1024.0);

/// See the module's head. 1 is "as usual".
#[derive(Clone, Debug)]
pub(super) struct Level {
    value: f64,
    seen: Nanos,
    /// Share of an observation's deviation that is believed at once.
    rate: f64,
    /// Time without observations after which half of the deviation is believed to be over.
    fade: Nanos,
}

impl Level {
    pub(super) const fn new(rate: f64, fade: Nanos) -> Self {
        Self { value: 1.0, seen: Nanos(0), rate, fade }
    }

    /// The factor at `now`.
    pub(super) fn at(&self, now: Nanos) -> f64 {
        // Hyperbolic and not exponential: no library function whose last bit differs between machines.
        let idle = (now - self.seen).as_secs_f64() / self.fade.as_secs_f64();
        1.0 + (self.value - 1.0) / (1.0 + idle)
    }

    /// Something took `ratio` times what was expected with the level as it is at `now`.
    pub(super) fn observe(&mut self, now: Nanos, ratio: f64) {
        let step = 1.0 + self.rate * (ratio.clamp(1.0 / CLIP, CLIP) - 1.0);
        self.value = (self.at(now) * step).clamp(BOUNDS.0, BOUNDS.1);
        self.seen = self.seen.max(now);
    }

    /// Takes a small part of the deviation out of the level and returns it as a factor for the fit: what lasts is
    /// usual. Level times fit does not change.
    pub(super) fn hand_over(&mut self, share: f64) -> f64 {
        let factor = 1.0 + share * (self.value - 1.0);
        self.value /= factor;
        factor
    }

    pub(super) fn save(&self, out: &mut Writer, now: Nanos) {
        // As it is now: the next process has another clock.
        out.f64(self.at(now));
    }

    pub(super) fn load(&mut self, from: &mut Reader<'_>, now: Nanos) -> Result<(), Damaged> {
        self.value = from.in_range(BOUNDS.0, BOUNDS.1)?;
        self.seen = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_and_forgets() {
        let mut level = Level::new(0.3, Nanos::from_millis(1000));
        let now = Nanos(5);
        for _ in 0..20 {
            level.observe(now, 4.0 / level.at(now));
        }
        assert!((level.at(now) - 4.0).abs() < 0.1, "{level:?}");
        let later = now + Nanos::from_millis(1000);
        assert!((level.at(later) - 2.5).abs() < 0.1, "half of the deviation is forgotten");
    }

    #[test]
    fn one_outlier_moves_it_little() {
        let mut level = Level::new(0.1, Nanos::from_millis(1000));
        level.observe(Nanos(0), 1e9);
        assert!(level.at(Nanos(0)) <= 1.2 + 1e-9);
        level.observe(Nanos(0), f64::INFINITY);
        level.observe(Nanos(0), 0.0);
        assert!(level.at(Nanos(0)).is_finite());
    }

    #[test]
    fn handing_over_keeps_the_product() {
        let mut level = Level::new(0.5, Nanos::from_millis(1000));
        level.observe(Nanos(0), 3.0);
        let before = level.at(Nanos(0));
        let factor = level.hand_over(0.1);
        assert!((before - level.at(Nanos(0)) * factor).abs() < 1e-12 && factor > 1.0);
    }
}
