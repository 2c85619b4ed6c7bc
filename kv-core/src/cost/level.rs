//! How much slower than usual something is just now: one ratio that follows the latest observations.
//!
//! The fits learn what is usual and are slow on purpose. Load on a GPU or congestion of a link comes and goes within
//! a few requests; this factor follows it, is bounded against single outliers, and is forgotten when nothing is
//! observed for a while, because congestion that was not looked at is not known to go on. One surprise may be noise; two
//! in a row to the same side are a change, and most of it is believed at once. Being very much faster than expected is
//! believed at the first time: things are slow by accident, but not fast.

use super::snapshot::{Damaged, Reader, Writer};
use crate::units::Nanos;

/// Beyond this many usual deviations an observation is a surprise.
const SURPRISE: f64 = 3.5;
/// One observation moves the level as if it had been at most this factor off; the second surprise in a row, this.
const CLIP: f64 = 2.0;
const CLIP_CHANGE: f64 = 8.0;
/// How much of a change is believed at once.
const CHANGE_RATE: f64 = 0.8;
/// How fast the usual deviation follows, and the least that it is.
const NOISE_RATE: f64 = 0.05;
const LEAST_NOISE: f64 = 0.02;
/// A level beyond these bounds would be a broken fit, not load.
const BOUNDS: (f64, f64) = (1.0 / 1024.0, 1024.0);

/// To which side the last observation was a surprise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Surprise {
    None,
    Slower,
    Faster,
}

/// See the module's head. 1 is "as usual".
#[derive(Clone, Debug)]
pub(super) struct Level {
    value: f64,
    seen: Nanos,
    /// Share of an observation's deviation that is believed at once.
    rate: f64,
    /// The same if it is a surprise, for the first time.
    surprise_rate: f64,
    /// Time without observations after which half of the deviation is believed to be over.
    fade: Nanos,
    /// Usual factor, minus 1, by which observations are off.
    noise: f64,
    last: Surprise,
}

impl Level {
    pub(super) const fn new(rate: f64, surprise_rate: f64, fade: Nanos) -> Self {
        Self { value: 1.0, seen: Nanos(0), rate, surprise_rate, fade, noise: 0.1, last: Surprise::None }
    }

    /// The factor at `now`.
    pub(super) fn at(&self, now: Nanos) -> f64 {
        // Hyperbolic and not exponential: no library function whose last bit differs between machines.
        let idle = (now - self.seen).as_secs_f64() / self.fade.as_secs_f64();
        1.0 + (self.value - 1.0) / (1.0 + idle)
    }

    /// When something was last observed.
    pub(super) const fn seen(&self) -> Nanos {
        self.seen
    }

    /// Something took `ratio` times what was expected with the level as it is at `now`.
    pub(super) fn observe(&mut self, now: Nanos, ratio: f64) {
        let off = (ratio.max(1.0 / ratio) - 1.0).min(CLIP_CHANGE);
        let surprise = match off > SURPRISE * self.noise {
            false => Surprise::None,
            true if ratio > 1.0 => Surprise::Slower,
            true => Surprise::Faster,
        };
        let (rate, clip) = match surprise {
            Surprise::None => (self.rate, CLIP),
            again if again == self.last => (CHANGE_RATE, CLIP_CHANGE),
            Surprise::Faster if off > 2.0 * SURPRISE * self.noise => (CHANGE_RATE, CLIP_CHANGE),
            Surprise::Slower | Surprise::Faster => (self.surprise_rate, CLIP),
        };
        let step = 1.0 + rate * (ratio.clamp(1.0 / clip, clip) - 1.0);
        self.value = (self.at(now) * step).clamp(BOUNDS.0, BOUNDS.1);
        self.seen = self.seen.max(now);
        self.last = surprise;
        // Surprises are taken for changes, but not wholly: noise may have grown.
        let noise = off.min(2.0 * SURPRISE * self.noise);
        self.noise = (self.noise + NOISE_RATE * (noise - self.noise)).max(LEAST_NOISE);
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
        let mut level = Level::new(0.3, 0.3, Nanos::from_millis(1000));
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
        let mut level = Level::new(0.1, 0.1, Nanos::from_millis(1000));
        level.observe(Nanos(0), 1e9);
        assert!(level.at(Nanos(0)) <= 1.1 + 1e-9);
        level.observe(Nanos(0), 0.0);
        level.observe(Nanos(0), f64::INFINITY);
        level.observe(Nanos(0), 0.0);
        assert!(level.at(Nanos(0)).is_finite());
    }

    #[test]
    fn two_surprises_to_one_side_are_a_change() {
        let mut level = Level::new(0.1, 0.1, Nanos::from_millis(1000));
        for _ in 0..3 {
            level.observe(Nanos(0), 8.0 / level.at(Nanos(0)));
        }
        assert!((6.0..9.0).contains(&level.at(Nanos(0))), "{level:?}");
        for _ in 0..3 {
            level.observe(Nanos(0), 1.0 / level.at(Nanos(0)));
        }
        assert!((0.8..2.0).contains(&level.at(Nanos(0))), "{level:?}");
    }

    #[test]
    fn handing_over_keeps_the_product() {
        let mut level = Level::new(0.5, 0.5, Nanos::from_millis(1000));
        level.observe(Nanos(0), 3.0);
        let before = level.at(Nanos(0));
        let factor = level.hand_over(0.1);
        assert!((before - level.at(Nanos(0)) * factor).abs() < 1e-12 && factor > 1.0);
    }
}
