//! A distribution of ratios (observed over expected) in fixed memory, with forgetting.
//!
//! Buckets are sixteenths of an octave, read off the bits of the number: every quantile is within 6 % of the true
//! one, no logarithm is taken, and the same observations give the same sketch on any machine. Weights grow instead of
//! old counts shrinking (forward decay; Cormode et al., ICDE 2009), so an observation costs one addition. They grow with
//! every observation and with time: what was rarely looked at must not be remembered for hours.

use super::snapshot::{Damaged, Reader, Writer};
use crate::units::Nanos;

/// Sixteen octaves of sixteen buckets, from 2^-4 to 2^12. What lies outside is counted at the end.
pub(super) const BUCKETS: usize = 256;
const SUB_BITS: u32 = 4;
const LOWEST_OCTAVE: i64 = -4;
/// The first bucket begins here.
const LOWEST: f64 = 1.0 / 16.0;
/// The last bucket ends here.
pub(super) const HIGHEST: f64 = 4096.0;
/// Time after which an observation counts twice as much as the one before it.
const FORGET: Nanos = Nanos::from_millis(300_000);
/// A long pause counts no more than this many times that.
const IDLE_AT_MOST: f64 = 9.0;
/// Weight of the imagined tail of a censored observation, in observations.
const IMAGINED: f32 = 0.2;
/// Weights are scaled back when one observation weighs this much.
const HEAVY: f32 = 1e6;

/// See the module's head.
#[derive(Clone, Debug)]
pub(super) struct Sketch {
    weights: [f32; BUCKETS],
    total: f32,
    /// Weight of the next observation.
    next: f32,
    /// By how much an observation outweighs the one before, if no time passes.
    growth: f32,
    seen: Nanos,
}

/// The bucket of a positive number.
fn bucket(ratio: f64) -> usize {
    if ratio.is_nan() || ratio <= LOWEST {
        return 0;
    }
    if ratio >= HIGHEST {
        return BUCKETS - 1;
    }
    // Exponent and top mantissa bits of a double, as one integer, are its logarithm cut to sixteenths.
    let cut = (ratio.to_bits() >> (52 - SUB_BITS)) as i64;
    (cut - ((1023 + LOWEST_OCTAVE) << SUB_BITS)) as usize
}

/// Where a bucket begins; `edge(i + 1)` is where it ends.
pub(super) fn edge(bucket: usize) -> f64 {
    f64::from_bits((bucket as u64 + ((1023 + LOWEST_OCTAVE) << SUB_BITS) as u64) << (52 - SUB_BITS))
}

impl Sketch {
    /// Forgets such that the last `memory` observations carry 63 % of the weight.
    pub(super) fn new(memory: f32) -> Self {
        Self {
            weights: [0.0; BUCKETS],
            total: 0.0,
            next: 1.0,
            growth: 1.0 / (1.0 - 1.0 / memory),
            seen: Nanos(0),
        }
    }

    /// The ratio was `ratio`.
    pub(super) fn add(&mut self, now: Nanos, ratio: f64) {
        self.age(now);
        self.put(bucket(ratio), self.next);
    }

    /// The ratio was more than `ratio`; how much more is not known, because nobody waited for it.
    ///
    /// The observation is spread over what was seen beyond (Efron's redistribution to the right, 1967). Beside that
    /// stands a fraction of an imagined observation with a Pareto tail of index 1, so that what was never let happen is neither
    /// taken for impossible nor for just around the corner.
    pub(super) fn add_more_than(&mut self, now: Nanos, ratio: f64) {
        self.age(now);
        let above = (bucket(ratio) + 1).min(BUCKETS - 1);
        let beyond: f32 = self.weights[above..].iter().sum();
        let weight = self.next;
        let seen_share = beyond / (beyond + IMAGINED * weight);
        if beyond > 0.0 {
            let factor = 1.0 + weight * seen_share / beyond;
            self.weights[above..].iter_mut().for_each(|w| *w *= factor);
            self.total += weight * seen_share;
        }
        let mut left = weight * (1.0 - seen_share);
        let mut at = above + 8;
        while at < BUCKETS - 1 {
            left /= 2.0;
            self.put(at, left);
            at += 1 << SUB_BITS;
        }
        self.put(BUCKETS - 1, left);
    }

    /// Adds what is believed before anything was seen, with the weight of `weight` observations each.
    pub(super) fn believe(&mut self, ratios: &[f64], weight: f32) {
        ratios.iter().for_each(|ratio| self.put(bucket(*ratio), weight * self.next));
    }

    fn put(&mut self, bucket: usize, weight: f32) {
        self.weights[bucket] += weight;
        self.total += weight;
    }

    fn age(&mut self, now: Nanos) {
        let idle = (now - self.seen).as_secs_f64() / FORGET.as_secs_f64();
        self.seen = self.seen.max(now);
        self.next *= self.growth * (1.0 + idle.min(IDLE_AT_MOST)) as f32;
        if self.next > HEAVY {
            let scale = 1.0 / self.next;
            self.weights.iter_mut().for_each(|w| *w *= scale);
            self.total = self.weights.iter().sum();
            self.next = 1.0;
        }
    }

    /// The ratio that a share `tau` of the distribution does not exceed.
    pub(super) fn quantile(&self, tau: f64) -> f64 {
        Mixture { own: self, wide: self, wide_factor: 0.0 }.quantile(tau)
    }

    pub(super) fn save(&self, out: &mut Writer) {
        out.u16(self.weights.iter().filter(|w| **w > 0.0).count() as u16);
        for (bucket, weight) in self.weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            out.u8(bucket as u8);
            out.f32(weight / self.next);
        }
    }

    pub(super) fn load(&mut self, from: &mut Reader<'_>, now: Nanos) -> Result<(), Damaged> {
        self.seen = now;
        self.weights = [0.0; BUCKETS];
        (self.total, self.next) = (0.0, 1.0);
        for _ in 0..from.u16()? {
            let at = from.u8()?;
            self.put(usize::from(at), Some(from.f32()?).filter(|w| (0.0..1e9).contains(w)).ok_or(Damaged)?);
        }
        Ok(())
    }
}

/// What was seen of one kind, filled up with what was seen of all kinds as long as the former is thin.
#[derive(Clone, Copy)]
pub(super) struct Mixture<'a> {
    own: &'a Sketch,
    wide: &'a Sketch,
    wide_factor: f32,
}

impl<'a> Mixture<'a> {
    /// `wide` counts like `weight` observations of `own`.
    pub(super) fn new(own: &'a Sketch, wide: &'a Sketch, weight: f32) -> Self {
        let wide_factor = if wide.total > 0.0 { weight * own.next / wide.total } else { 0.0 };
        Self { own, wide, wide_factor }
    }

    fn weight(&self, bucket: usize) -> f64 {
        f64::from(self.own.weights[bucket] + self.wide_factor * self.wide.weights[bucket])
    }

    fn total(&self) -> f64 {
        f64::from(self.own.total + self.wide_factor * self.wide.total)
    }

    /// Non-empty buckets from the lowest: (bucket, probability).
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        let total = self.total().max(f64::MIN_POSITIVE);
        (0..BUCKETS).map(move |bucket| (bucket, self.weight(bucket) / total)).filter(|(_, p)| *p > 0.0)
    }

    /// Of what is more than `ratio`, half is no more than this.
    pub(super) fn median_beyond(&self, ratio: f64) -> f64 {
        let first = bucket(ratio) + 1;
        let total: f64 = (first..BUCKETS).map(|bucket| self.weight(bucket)).sum();
        let mut below = 0.0;
        for bucket in first..BUCKETS {
            below += self.weight(bucket);
            if below >= total / 2.0 && below > 0.0 {
                return edge(bucket);
            }
        }
        // Nothing was seen beyond: the median of a Pareto tail of index 1.
        2.0 * ratio
    }

    /// See [`Sketch::quantile`].
    pub(super) fn quantile(&self, tau: f64) -> f64 {
        let mut below = 0.0;
        let mut last = 0;
        for (bucket, p) in self.iter() {
            if below + p >= tau {
                let (from, to) = (edge(bucket), edge(bucket + 1));
                return from + (to - from) * ((tau - below) / p).clamp(0.0, 1.0);
            }
            below += p;
            last = bucket;
        }
        edge(last + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_lies_in_its_bucket(ratio in 0.07..4000.0f64) {
            let at = bucket(ratio);
            prop_assert!(edge(at) <= ratio && ratio < edge(at + 1));
            prop_assert!(edge(at + 1) / edge(at) <= 1.0626);
        }

        #[test]
        fn quantiles_are_those_of_the_sorted_numbers(
            mut seen in prop::collection::vec(0.1..100.0f64, 20..300), tau in 0.05..0.95f64
        ) {
            let mut sketch = Sketch::new(1e6);
            seen.iter().for_each(|r| sketch.add(Nanos(0), *r));
            seen.sort_by(f64::total_cmp);
            let at = ((seen.len() as f64 * tau).ceil() as usize).clamp(1, seen.len()) - 1;
            let (low, high) = (seen[at.saturating_sub(1)] / 1.07, seen[(at + 1).min(seen.len() - 1)] * 1.07);
            let found = sketch.quantile(tau);
            prop_assert!(low <= found && found <= high, "{found} outside {low}..{high}");
        }
    }

    #[test]
    fn odd_numbers_have_a_place() {
        for ratio in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE, 1e300] {
            assert!(bucket(ratio) < BUCKETS);
        }
        assert_eq!(edge(0), LOWEST);
        assert_eq!(edge(BUCKETS), HIGHEST);
    }

    #[test]
    fn forgets() {
        let mut sketch = Sketch::new(100.0);
        (0..1000).for_each(|_| sketch.add(Nanos(0), 1.0));
        (0..300).for_each(|_| sketch.add(Nanos(0), 10.0));
        assert!(sketch.quantile(0.1) > 9.0, "three memories later the past weighs 5 %");
        (0..100_000).for_each(|_| sketch.add(Nanos(0), 2.0));
        assert!((sketch.quantile(0.5) - 2.0).abs() < 0.15 && sketch.total.is_finite());
    }

    #[test]
    fn censored_observations_count_as_longer_than_the_wait() {
        let mut sketch = Sketch::new(100.0);
        (0..50).for_each(|_| sketch.add(Nanos(0), 1.0));
        (0..50).for_each(|_| sketch.add_more_than(Nanos(0), 4.0));
        let beyond: f64 =
            Mixture::new(&sketch, &sketch, 0.0).iter().filter(|(b, _)| edge(*b) >= 4.0).map(|b| b.1).sum();
        assert!((0.55..0.68).contains(&beyond), "the latter half weighs 62 %: {beyond}");
        assert!((sketch.weights.iter().sum::<f32>() / sketch.total - 1.0).abs() < 1e-4);
    }

    #[test]
    fn thin_evidence_is_filled_up() {
        let (mut own, mut wide) = (Sketch::new(100.0), Sketch::new(100.0));
        (0..100).for_each(|_| wide.add(Nanos(0), 8.0));
        assert!(Mixture::new(&own, &wide, 10.0).quantile(0.5) > 7.0);
        (0..100).for_each(|_| own.add(Nanos(0), 1.0));
        assert!(Mixture::new(&own, &wide, 10.0).quantile(0.5) < 1.1);
    }
}
