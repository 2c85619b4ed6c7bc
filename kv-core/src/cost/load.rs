//! How long a source takes to deliver: learnt per source, with a distribution per size class.
//!
//! ```text
//!   T(r) = lookup + r * level * (t0 + beta*bytes + gamma*bytes_in_flight) + decode*bytes' + h2d - overlap
//! ```
//!
//! `t0`, `beta` and `gamma` are what is usual, `level` how congested the source is just now, and `r` the distribution of
//! what is left, so a quantile of `r` is a quantile of `T`. The queue delay `gamma*bytes_in_flight` stands inside the
//! product because a link that is slow today also drains its queue slowly; `gamma` starts as `beta` (one queue, first
//! come first served) and is learnt like the others, since stores that serve in parallel have less of it.

use super::fit::Fit;
use super::forecast::{LoadForecast, LoadSize, LoadTimes};
use super::level::Level;
use super::priors::LinkPrior;
use super::sketch::{HIGHEST, Mixture, Sketch};
use super::snapshot::{Damaged, Reader, Writer};
use crate::units::{Bytes, Nanos};

/// How fast the level follows observed loads, and when it is forgotten.
const LEVEL_RATE: f64 = 0.15;
const LEVEL_SURPRISE_RATE: f64 = 0.3;
const LEVEL_FADE: Nanos = Nanos(120_000_000_000);
/// Part of `level - 1` that every observation moves into the coefficients.
const HAND_OVER: f64 = 0.02;
/// Loads whose residuals are remembered, per class.
const MEMORY: f32 = 250.0;
/// A class with fewer loads than this leans on what is known of all classes.
const THIN: f32 = 15.0;
/// Size classes: powers of four from 256 KiB; the first and the last are open.
const CLASSES: usize = 8;
const FIRST_CLASS_LOG4: u32 = 9;
/// Weight of one more look-up or decoding in its average.
const AVERAGE_RATE: f64 = 0.05;
/// Seconds per byte for decoding until measured: 1 GB/s, a scalar codec on one core.
const DECODE_PRIOR: f64 = 1e-9;
/// Residuals believed before any was seen: a heavy tail.
const RESIDUAL_PRIOR: [f64; 6] = [0.6, 0.8, 1.0, 1.3, 2.0, 6.0];
/// Loads and probes to be observed before anything is predicted.
const MEASURED: u8 = 12;
/// From then on residuals are remembered.
const SETTLED: u8 = 6;
/// How many times larger than what was observed a load may be.
const STRETCH: u64 = 4;
/// How fast the P90 is corrected, and how far.
const CORRECTION: f64 = 0.01;
const P90_BOUNDS: (f64, f64) = (0.75, 0.985);
const MIB: f64 = 1048576.0;

/// See the module's head.
#[derive(Clone, Debug)]
pub(super) struct LoadModel {
    fit: Fit<3>,
    level: Level,
    classes: [Sketch; CLASSES],
    all: Sketch,
    lookup: f64,
    decode: f64,
    /// Loads and probes observed, also late ones; counted up to 255.
    measured: u8,
    /// The quantile that nine loads in ten do not exceed. Not 0.9 itself: the distribution of the past is not that of
    /// the next load when regimes change, so it is corrected by every load that could tell (adaptive conformal
    /// inference; Gibbs and Candes, 2021).
    p90_at: f64,
    /// The largest load or probe that has arrived, in bytes.
    largest: u64,
    in_flight: u64,
}

impl LoadModel {
    pub(super) fn new(prior: &LinkPrior) -> Self {
        let mut all = Sketch::new(MEMORY);
        all.believe(&RESIDUAL_PRIOR, 0.25);
        let per_mib = prior.per_byte * MIB;
        Self {
            fit: Fit::new([prior.fixed, per_mib, per_mib], prior.doubt),
            level: Level::new(LEVEL_RATE, LEVEL_SURPRISE_RATE, LEVEL_FADE),
            classes: std::array::from_fn(|_| Sketch::new(MEMORY)),
            all,
            lookup: 0.0,
            decode: DECODE_PRIOR,
            measured: 0,
            p90_at: 0.9,
            largest: 0,
            in_flight: 0,
        }
    }

    /// Whether enough was observed to predict a load of `bytes`: a few loads or probes, and one not much smaller.
    pub(super) const fn knows(&self, bytes: Bytes) -> bool {
        self.measured >= MEASURED && bytes.0 <= self.largest.saturating_mul(STRETCH)
    }

    /// The largest load that could be predicted, if any can.
    pub(super) const fn largest_known(&self) -> Option<Bytes> {
        if self.measured() { Some(Bytes(self.largest.saturating_mul(STRETCH))) } else { None }
    }

    /// Whether anything could be predicted at all.
    pub(super) const fn measured(&self) -> bool {
        self.measured >= MEASURED
    }

    /// When something was last observed.
    pub(super) const fn seen(&self) -> Nanos {
        self.level.seen()
    }

    pub(super) const fn in_flight(&self) -> Bytes {
        Bytes(self.in_flight)
    }

    pub(super) fn begin(&mut self, bytes: Bytes) {
        self.in_flight = self.in_flight.saturating_add(bytes.0);
    }

    pub(super) fn end(&mut self, bytes: Bytes) {
        self.in_flight = self.in_flight.saturating_sub(bytes.0);
    }

    pub(super) fn forecast(&self, now: Nanos, size: &LoadSize) -> LoadForecast {
        let features = [1.0, size.bytes.0 as f64 / MIB, self.in_flight as f64 / MIB];
        let [fixed, per_mib, behind] = *self.fit.coefficients();
        let level = self.level.at(now);
        LoadForecast {
            lookup: self.lookup,
            queue: level * behind * features[2],
            transfer: level * (fixed + per_mib * features[1]),
            level,
            decode: size.decoded.map_or(0.0, |bytes| self.decode * bytes.0 as f64),
            h2d: size.h2d.as_secs_f64(),
            overlap: size.overlap.as_secs_f64(),
            class: class(size.bytes),
            features,
        }
    }

    /// Seconds until the first byte, at the present level.
    pub(super) fn fixed(&self, now: Nanos) -> f64 {
        self.level.at(now) * self.fit.coefficients()[0]
    }

    /// The distribution of residuals for loads like this one.
    pub(super) fn residuals(&self, forecast: &LoadForecast) -> Mixture<'_> {
        Mixture::new(&self.classes[usize::from(forecast.class)], &self.all, THIN)
    }

    /// Seconds that a share `tau` of such loads do not exceed.
    pub(super) fn quantile(&self, forecast: &LoadForecast, tau: f64) -> f64 {
        forecast.time(self.residuals(forecast).quantile(tau))
    }

    /// Seconds that nine such loads in ten do not exceed.
    pub(super) fn p90(&self, forecast: &LoadForecast) -> f64 {
        self.quantile(forecast, self.p90_at)
    }

    /// A load's residual was `ratio`, or more if it was not waited for.
    fn correct_p90(&mut self, forecast: &LoadForecast, ratio: f64, censored: bool) {
        let exceeded = ratio > self.residuals(forecast).quantile(self.p90_at);
        if exceeded || !censored {
            let step = if exceeded { 0.9 } else { 0.9 - 1.0 };
            self.p90_at = (self.p90_at + CORRECTION * step).clamp(P90_BOUNDS.0, P90_BOUNDS.1);
        }
    }

    /// A load that was predicted like this has arrived.
    pub(super) fn arrived(
        &mut self,
        now: Nanos,
        forecast: &LoadForecast,
        size: &LoadSize,
        times: &LoadTimes,
    ) {
        self.measured = self.measured.saturating_add(1);
        self.largest = self.largest.max(size.bytes.0);
        let average = |old: &mut f64, new: f64| *old += AVERAGE_RATE * (new - *old);
        average(&mut self.lookup, times.lookup.as_secs_f64());
        if let Some(decoded) = size.decoded.filter(|bytes| bytes.0 > 0) {
            average(&mut self.decode, times.decode.as_secs_f64() / decoded.0 as f64);
        }
        let took = times.transfer.as_secs_f64();
        let ratio = took / (forecast.queue + forecast.transfer);
        // What is off at first is the prior and not the source.
        if self.measured > SETTLED {
            self.correct_p90(forecast, ratio, false);
            self.classes[usize::from(forecast.class)].add(now, ratio);
            self.all.add(now, ratio);
        }
        self.learn(now, forecast, took);
    }

    /// A load that was predicted like this has not arrived after `waited` seconds.
    pub(super) fn late(&mut self, now: Nanos, forecast: &LoadForecast, waited: f64) {
        self.measured = self.measured.saturating_add(1);
        let ratio = forecast.ratio(waited).clamp(0.0, HIGHEST);
        self.correct_p90(forecast, ratio, true);
        let likely = self.residuals(forecast).median_beyond(ratio).min(2.0 * ratio);
        self.classes[usize::from(forecast.class)].add_more_than(now, ratio);
        self.all.add_more_than(now, ratio);
        // Of a time that is known to be longer only an excess says something about what is usual.
        if ratio > 1.0 {
            self.learn(now, forecast, likely * (forecast.queue + forecast.transfer));
        }
    }

    fn learn(&mut self, now: Nanos, forecast: &LoadForecast, took: f64) {
        // Against what is believed now, which may be more than when the load began.
        let level = self.level.at(now);
        let expected = level * self.fit.predict(&forecast.features);
        self.fit.observe(&forecast.features, took / level);
        self.level.observe(now, took / expected);
        self.fit.scale(self.level.hand_over(HAND_OVER));
    }

    pub(super) fn save(&self, out: &mut Writer, now: Nanos) {
        self.fit.save(out);
        self.level.save(out, now);
        self.classes.iter().chain([&self.all]).for_each(|sketch| sketch.save(out));
        out.f64(self.lookup);
        out.f64(self.decode);
        out.u8(self.measured);
        out.u64(self.largest);
        out.f64(self.p90_at);
    }

    pub(super) fn load(&mut self, from: &mut Reader<'_>, now: Nanos) -> Result<(), Damaged> {
        self.fit.load(from)?;
        self.level.load(from, now)?;
        for sketch in self.classes.iter_mut().chain([&mut self.all]) {
            sketch.load(from, now)?;
        }
        self.lookup = from.in_range(0.0, 1e9)?;
        self.decode = from.in_range(0.0, 1e9)?;
        self.measured = from.u8()?;
        self.largest = from.u64()?;
        self.p90_at = from.in_range(P90_BOUNDS.0, P90_BOUNDS.1)?;
        Ok(())
    }
}

fn class(bytes: Bytes) -> u8 {
    let log4 = bytes.0.max(1).ilog2() / 2;
    log4.saturating_sub(FIRST_CLASS_LOG4 - 1).min(CLASSES as u32 - 1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::priors;

    fn mib(n: u64) -> LoadSize {
        LoadSize::raw(Bytes(n << 20))
    }

    fn arrive(model: &mut LoadModel, now: Nanos, size: &LoadSize, seconds: f64) {
        let forecast = model.forecast(now, size);
        let transfer = Nanos((seconds * 1e9) as u64);
        model.arrived(now, &forecast, size, &LoadTimes { transfer, ..LoadTimes::default() });
    }

    #[test]
    fn classes_are_powers_of_four() {
        assert_eq!(
            [0, 1 << 17, 1 << 18, (1 << 20) - 1, 1 << 20, 1 << 30, u64::MAX].map(|b| class(Bytes(b))),
            [0, 0, 1, 1, 2, 7, 7]
        );
    }

    #[test]
    fn a_link_that_the_prior_misses_by_far_is_learnt() {
        let mut model = LoadModel::new(&priors::NETWORK);
        let truth = |mib: u64| 0.05 + 0.02 * mib as f64;
        for i in 0..400u64 {
            let size = 1 + i * 7 % 64;
            arrive(&mut model, Nanos::from_millis(100 * i), &mib(size), truth(size));
        }
        let now = Nanos::from_millis(40_000);
        for size in [1, 8, 64] {
            let median = model.quantile(&model.forecast(now, &mib(size)), 0.5);
            assert!((median / truth(size) - 1.0).abs() < 0.1, "{size} MiB: {median}, not {}", truth(size));
        }
    }

    #[test]
    fn bytes_in_flight_delay_and_how_much_is_learnt() {
        let mut model = LoadModel::new(&priors::NETWORK);
        for i in 0..600u64 {
            let ahead = i % 3 * 32;
            model.begin(Bytes(ahead << 20));
            let forecast = model.forecast(Nanos(i), &mib(16));
            // Served in parallel: what is in flight delays by a quarter.
            let transfer = Nanos(((0.01 + 1e-3 * (16.0 + 0.25 * ahead as f64)) * 1e9) as u64);
            model.arrived(Nanos(i), &forecast, &mib(16), &LoadTimes { transfer, ..LoadTimes::default() });
            model.end(Bytes(ahead << 20));
        }
        assert_eq!(model.in_flight(), Bytes(0));
        model.begin(Bytes(64 << 20));
        let queue = model.forecast(Nanos(600), &mib(16)).queue;
        assert!((queue / 0.016 - 1.0).abs() < 0.1, "{queue}");
    }

    #[test]
    fn a_load_that_does_not_arrive_makes_the_next_ones_unlikely() {
        let mut model = LoadModel::new(&priors::NETWORK);
        for i in 0..100 {
            arrive(&mut model, Nanos(i), &mib(16), 0.03);
        }
        let before = model.quantile(&model.forecast(Nanos(100), &mib(16)), 0.9);
        for i in 0..5 {
            let forecast = model.forecast(Nanos(100 + i), &mib(16));
            model.late(Nanos(100 + i), &forecast, 0.5);
        }
        let after = model.quantile(&model.forecast(Nanos(105), &mib(16)), 0.9);
        assert!(after > 4.0 * before, "{before} to {after}");
    }

    #[test]
    fn terms_add_up() {
        let mut model = LoadModel::new(&priors::NETWORK);
        let size = LoadSize {
            bytes: Bytes(10 << 20),
            decoded: Some(Bytes(15 << 20)),
            h2d: Nanos::from_millis(3),
            overlap: Nanos::from_millis(1),
        };
        let times = LoadTimes {
            lookup: Nanos::from_millis(2),
            transfer: Nanos::from_millis(20),
            decode: Nanos::from_millis(30),
        };
        for i in 0..300 {
            let forecast = model.forecast(Nanos(i), &size);
            model.arrived(Nanos(i), &forecast, &size, &times);
        }
        let forecast = model.forecast(Nanos(300), &size);
        assert!((forecast.lookup / 2e-3 - 1.0).abs() < 0.01 && (forecast.decode / 30e-3 - 1.0).abs() < 0.01);
        assert!((model.quantile(&forecast, 0.5) / 54e-3 - 1.0).abs() < 0.05);
        assert!((forecast.ratio(forecast.time(2.5)) - 2.5).abs() < 1e-9);
        let hidden = LoadSize { overlap: Nanos::from_millis(10_000), ..size };
        assert_eq!(model.forecast(Nanos(300), &hidden).time(1.0), 0.0, "no load takes less than nothing");
    }
}
