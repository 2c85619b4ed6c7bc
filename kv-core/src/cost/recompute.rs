//! What it takes to compute the KV of a range of tokens: the recompute curve, corrected by every observed prefill.
//!
//! ```text
//!   R(n0, n1) = g * (c0 + a*(n1-n0) + b*(n1^2-n0^2)/2)        g: load on the GPU, follows fast
//! ```
//!
//! `a` is the linear part of a transformer per token, `b` attention's per pair of tokens, `c0` the cost of a pass. The
//! form fits public figures (gpt-oss-120b on H200, 2 K to 48 K tokens) within 0.7 %.

use super::fit::Fit;
use super::level::Level;
use super::priors::CurvePrior;
use super::sketch::Sketch;
use super::snapshot::{Damaged, Reader, Writer};
use crate::units::{Nanos, Tokens};

/// How fast `g` follows the observed passes, how much of a surprise it believes (a GPU is rarely slow for one pass only),
/// and when it is forgotten.
const LOAD_RATE: f64 = 0.22;
const LOAD_SURPRISE_RATE: f64 = 0.8;
const LOAD_FADE: Nanos = Nanos(20_000_000_000);
/// Part of `g - 1` that every observation moves into the coefficients.
const HAND_OVER: f64 = 0.03;
/// Passes whose errors are remembered.
const MEMORY: f32 = 200.0;
/// Share of passes that are faster than what [`RecomputeForecast::surely`] says.
const SURELY: f64 = 0.1;

/// Tokens of a sequence, `start..end`, by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRange {
    /// The first.
    pub start: Tokens,
    /// One past the last. A range that ends before it starts is empty.
    pub end: Tokens,
}

impl TokenRange {
    /// `start..end`.
    #[must_use]
    pub const fn new(start: u32, end: u32) -> Self {
        Self { start: Tokens(start), end: Tokens(end) }
    }

    /// Number of tokens.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Tokens, and pairs of a token and one before it; both in thousands, so that coefficients are of one size.
    fn features(self) -> [f64; 2] {
        if self.is_empty() {
            return [0.0; 2];
        }
        let (n0, n1) = (f64::from(self.start.0) / 1e3, f64::from(self.end.0) / 1e3);
        [n1 - n0, (n1 * n1 - n0 * n0) / 2.0]
    }
}

/// What computing a range would add to a pass that is made anyway.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecomputeForecast {
    /// The load factor `g`. 1 is usual.
    pub load: f64,
    /// Seconds expected.
    pub expected: f64,
    /// Seconds that nine passes in ten would exceed. Time saved is credited with this, so that an overestimate buys
    /// nothing.
    pub surely: f64,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct RecomputeCurve {
    fit: Fit<3>,
    load: Level,
    /// Observed over expected, of whole passes.
    errors: Sketch,
}

impl RecomputeCurve {
    /// Starts from a prior.
    #[must_use]
    pub fn new(prior: &CurvePrior) -> Self {
        let mut errors = Sketch::new(MEMORY);
        // What the prior's doubt means for a pass, until passes were seen.
        errors.believe(&[1.0 / (1.0 + prior.doubt), 1.0, 1.0 + prior.doubt], 1.0);
        Self {
            fit: Fit::new([prior.per_pass, prior.per_token * 1e3, prior.per_pair * 1e6], prior.doubt),
            load: Level::new(LOAD_RATE, LOAD_SURPRISE_RATE, LOAD_FADE),
            errors,
        }
    }

    /// A prefill pass over `range` took `took`. Empty ranges and passes without duration teach nothing.
    pub fn observe(&mut self, now: Nanos, range: TokenRange, took: Nanos) {
        let expected = self.pass(now, range);
        if range.is_empty() || took.0 == 0 || expected <= 0.0 {
            return;
        }
        let took = took.as_secs_f64();
        let load = self.load.at(now);
        self.errors.add(now, took / expected);
        let [tokens, pairs] = range.features();
        self.fit.observe(&[1.0, tokens, pairs], took / load);
        self.load.observe(now, took / expected);
        self.fit.scale(self.load.hand_over(HAND_OVER));
    }

    /// Seconds expected for a prefill pass over `range`.
    #[must_use]
    pub fn pass(&self, now: Nanos, range: TokenRange) -> f64 {
        let [tokens, pairs] = range.features();
        self.load.at(now) * self.fit.predict(&[1.0, tokens, pairs])
    }

    /// What `range` adds to a pass. A runtime that has loaded a whole prompt still runs a pass for its last token, so
    /// `c0` is paid either way and is no part of what loading saves.
    #[must_use]
    pub fn forecast(&self, now: Nanos, range: TokenRange) -> RecomputeForecast {
        let [tokens, pairs] = range.features();
        let load = self.load.at(now);
        let expected = load * self.fit.predict(&[0.0, tokens, pairs]);
        RecomputeForecast { load, expected, surely: expected * self.errors.quantile(SURELY).min(1.0) }
    }

    /// `g * (a, b)` in seconds per token and per pair, for the split point.
    pub(super) fn slopes(&self, now: Nanos) -> (f64, f64) {
        let [_, a, b] = self.fit.coefficients().map(|c| c * self.load.at(now));
        (a / 1e3, b / 1e6)
    }

    pub(super) fn save(&self, out: &mut Writer, now: Nanos) {
        self.fit.save(out);
        self.load.save(out, now);
        self.errors.save(out);
    }

    pub(super) fn load(&mut self, from: &mut Reader<'_>, now: Nanos) -> Result<(), Damaged> {
        self.fit.load(from)?;
        self.load.load(from, now)?;
        self.errors.load(from, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::priors;

    fn truth(range: TokenRange) -> f64 {
        let (n0, n1) = (f64::from(range.start.0), f64::from(range.end.0));
        0.026 + 24.6e-6 * (n1 - n0) + 6.24e-10 * (n1 * n1 - n0 * n0) / 2.0
    }

    fn ranges(seed: u32) -> impl Iterator<Item = TokenRange> {
        (0..).map(move |i: u32| {
            let mixed = (i + seed).wrapping_mul(2_654_435_761);
            let start = mixed % 7 * (mixed >> 20);
            TokenRange::new(start, start + 64 + (mixed >> 8) % 30_000)
        })
    }

    fn at(i: usize) -> Nanos {
        Nanos::from_millis(300 * i as u64)
    }

    fn mean_error(curve: &RecomputeCurve, now: Nanos, factor: f64) -> f64 {
        let errors =
            ranges(1_000_003).take(200).map(|r| (curve.pass(now, r) / (factor * truth(r)) - 1.0).abs());
        errors.sum::<f64>() / 200.0
    }

    fn nanos(seconds: f64) -> Nanos {
        Nanos((seconds * 1e9) as u64)
    }

    #[test]
    fn an_unknown_model_is_learnt() {
        let mut curve = RecomputeCurve::new(&priors::UNKNOWN);
        for (i, range) in ranges(0).take(300).enumerate() {
            curve.observe(at(i), range, nanos(truth(range)));
        }
        let error = mean_error(&curve, at(300), 1.0);
        assert!(error < 0.02, "{error}: {curve:?}");
    }

    #[test]
    fn load_is_followed_within_a_few_passes_and_a_new_usual_is_learnt() {
        let mut curve = RecomputeCurve::new(&priors::GPT_OSS_120B_H200);
        for (i, range) in ranges(0).take(10).enumerate() {
            curve.observe(at(i), range, nanos(2.0 * truth(range)));
        }
        assert!(mean_error(&curve, at(10), 2.0) < 0.10, "{:.3}", mean_error(&curve, at(10), 2.0));
        for (i, range) in ranges(0).take(400).enumerate() {
            curve.observe(at(i), range, nanos(2.0 * truth(range)));
        }
        assert!((curve.load.at(at(400)) - 1.0).abs() < 0.1, "what lasts is usual");
        assert!(mean_error(&curve, at(400), 2.0) < 0.02);
    }

    #[test]
    fn what_is_surely_saved_is_less_than_expected_and_more_so_when_unsure() {
        let range = TokenRange::new(0, 8000);
        let unsure = RecomputeCurve::new(&priors::UNKNOWN).forecast(Nanos(0), range);
        assert!(unsure.surely < 0.5 * unsure.expected);
        let mut curve = RecomputeCurve::new(&priors::GPT_OSS_120B_H200);
        for (i, range) in ranges(0).take(300).enumerate() {
            curve.observe(at(i), range, nanos(truth(range)));
        }
        let sure = curve.forecast(at(300), range);
        assert!(sure.surely > 0.9 * sure.expected && sure.surely <= sure.expected);
        assert!(sure.expected < truth(range), "a pass costs c0 whatever is loaded");
    }

    #[test]
    fn nonsense_changes_nothing() {
        let mut curve = RecomputeCurve::new(&priors::GPT_OSS_120B_H200);
        let before = curve.pass(Nanos(0), TokenRange::new(0, 100));
        curve.observe(Nanos(0), TokenRange::new(9, 9), Nanos(5));
        curve.observe(Nanos(0), TokenRange::new(9, 3), Nanos(5));
        curve.observe(Nanos(0), TokenRange::new(0, 9), Nanos(0));
        assert_eq!(curve.pass(Nanos(0), TokenRange::new(0, 100)), before);
        assert_eq!(curve.forecast(Nanos(0), TokenRange::new(9, 3)).expected, 0.0);
    }
}
