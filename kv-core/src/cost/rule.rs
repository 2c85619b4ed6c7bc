//! The rule: what a load with a deadline is expected to cost, and the deadline that costs least.
//!
//! ```text
//!   give up at d    cost(d) = (1-p) * E[ T <= d: T;  else d + R ]        + p * (d + R)
//!   race from d     cost(d) = (1-p) * E[ min(T, d + R) ]                 + p * (d + R)
//! ```
//!
//! `R` is the recompute that a load saves, `p` the risk that it fails, `T` its time. A request that gives up recomputes
//! everything: serial load-then-recompute is concave in the split point, so all or nothing is best, and what has
//! arrived by the deadline is not counted on. In a race GPU time that the load makes useless has a price, or every race
//! would begin at once.

use super::forecast::{LoadForecast, upper_edge};
use super::sketch::{BUCKETS, Mixture, edge};

/// lambda: nobody waits longer than this part of what the request surely takes without any source. So none takes more
/// than 1.5 times as long as without, and a little is left for what `surely` misses.
pub(super) const MOST_WAIT: f64 = 0.48;
/// A load must save at least this part of the recompute: estimates are no better than this. With 2 % a race, whose
/// failure costs next to nothing, is now and then tried with sources that are never faster.
pub(super) const MARGIN: f64 = 0.05;
/// Of deadlines whose cost differs by less than this part of the recompute, the latest: the end of the observed
/// distribution is not the end of the true one.
const INDIFFERENT: f64 = 0.01;
/// What a second of GPU time spent beside a load in vain counts, in seconds of waiting: others wait behind it.
const GPU_PRICE: f64 = 0.25;
/// When a second source is asked.
pub(super) const HEDGE_AT: f64 = 0.95;

/// What the runtime does with a load that is not there at its deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenLate {
    /// Gives it up and recomputes.
    #[default]
    GiveUp,
    /// Begins to recompute and lets the load go on; what is ready first is used.
    Race,
}

/// A deadline and what it is expected to cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// Seconds from the decision.
    pub(super) deadline: f64,
    /// Expected seconds until the prefix is there, one way or the other.
    pub(super) cost: f64,
    /// Part of `cost` because the load may be late.
    pub(super) for_lateness: f64,
    /// Part of `cost` because it may fail.
    pub(super) for_failure: f64,
}

/// A load under consideration, in seconds.
#[derive(Clone, Copy)]
pub(super) struct Trade<'a> {
    pub(super) recompute: f64,
    pub(super) risk: f64,
    pub(super) load: &'a LoadForecast,
    pub(super) residuals: Mixture<'a>,
    pub(super) when_late: WhenLate,
}

impl Trade<'_> {
    /// The best deadline up to `longest`.
    pub(super) fn best(&self, longest: f64) -> Candidate {
        match self.when_late {
            WhenLate::GiveUp => self.best_to_give_up(longest),
            WhenLate::Race => self.best_to_race(longest),
        }
    }

    /// Walks along the distribution once. Inside a bucket times are spread evenly.
    fn best_to_give_up(&self, longest: f64) -> Candidate {
        let (mut in_time, mut spent) = (0.0, 0.0);
        let mut best = self.given_up(0.0, 0.0, 0.0);
        let mut least = best.cost;
        for (bucket, p) in self.residuals.iter() {
            let (from, to) = (self.load.time(edge(bucket)), upper_edge(self.load, bucket));
            if from >= longest {
                break;
            }
            let end = to.min(longest);
            let share = if to > from { (end - from) / (to - from) } else { 1.0 };
            in_time += p * share;
            spent += p * share * (from + end) / 2.0;
            let candidate = self.given_up(end, in_time, spent);
            least = least.min(candidate.cost);
            if candidate.cost <= least + INDIFFERENT * self.recompute {
                best = candidate;
            }
        }
        best
    }

    /// `in_time`: share of loads that arrive by `deadline`; `spent`: their times, weighted.
    fn given_up(&self, deadline: f64, in_time: f64, spent: f64) -> Candidate {
        let vain = deadline + self.recompute;
        let late = (1.0 - in_time).max(0.0);
        let works = 1.0 - self.risk;
        Candidate {
            deadline,
            cost: works * (spent + late * vain) + self.risk * vain,
            for_lateness: works * late * vain,
            for_failure: self.risk * vain,
        }
    }

    /// The later the recompute begins beside the load, the less of it is in vain, and the longer an unlucky request takes.
    fn best_to_race(&self, longest: f64) -> Candidate {
        let times = Cumulative::new(self);
        let works = 1.0 - self.risk;
        let mut best: Option<(f64, Candidate)> = None;
        let (mut start, mut end) = (0, 0);
        let mut deadline = 0.0;
        loop {
            let vain = deadline + self.recompute;
            start = times.count(start, deadline);
            end = times.count(end, vain);
            let late = (1.0 - times.share[end]).max(0.0);
            let spent = times.spent[end];
            let candidate = Candidate {
                deadline,
                cost: works * (spent + late * vain) + self.risk * vain,
                for_lateness: works * late * vain,
                for_failure: self.risk * vain,
            };
            // The GPU works until the load arrives, or to the end.
            let raced = (spent - times.spent[start]) - deadline * (times.share[end] - times.share[start]);
            let gpu = works * (raced.max(0.0) + late * self.recompute) + self.risk * self.recompute;
            let price = candidate.cost + GPU_PRICE * gpu;
            if best.is_none_or(|(least, _)| price < least) {
                best = Some((price, candidate));
            }
            let next = times.upper.get(start).copied().unwrap_or(f64::INFINITY).min(longest);
            if next <= deadline {
                return best.map_or(candidate, |(_, best)| best);
            }
            deadline = next;
        }
    }
}

/// The distribution of a load's time, added up: of the first `n` buckets.
struct Cumulative {
    /// Where each non-empty bucket ends; infinite beyond the last.
    upper: [f64; BUCKETS + 1],
    /// Probability.
    share: [f64; BUCKETS + 1],
    /// Times, weighted with it.
    spent: [f64; BUCKETS + 1],
}

impl Cumulative {
    fn new(trade: &Trade<'_>) -> Self {
        let mut sums = Self {
            upper: [f64::INFINITY; BUCKETS + 1],
            share: [0.0; BUCKETS + 1],
            spent: [0.0; BUCKETS + 1],
        };
        let (mut n, mut share, mut spent) = (0, 0.0, 0.0);
        for (bucket, p) in trade.residuals.iter() {
            let (from, to) = (trade.load.time(edge(bucket)), upper_edge(trade.load, bucket));
            share += p;
            spent += p * (from + to) / 2.0;
            sums.upper[n] = to;
            n += 1;
            (sums.share[n], sums.spent[n]) = (share, spent);
        }
        sums.share[n..].fill(share);
        sums.spent[n..].fill(spent);
        sums
    }

    /// Buckets that end by `time`, if at least `from` do.
    fn count(&self, from: usize, time: f64) -> usize {
        from + self.upper[from..].iter().take_while(|upper| **upper <= time).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::forecast::{LoadSize, LoadTimes};
    use crate::cost::load::LoadModel;
    use crate::cost::priors;
    use crate::units::{Bytes, Nanos};
    use proptest::prelude::*;

    const SIZE: LoadSize = LoadSize::raw(Bytes(16 << 20));

    /// A model that has seen loads of these durations, in ms; 0 stands for one that was given up after 400 ms.
    fn seen(ms: &[u64]) -> LoadModel {
        let mut model = LoadModel::new(&priors::NETWORK);
        for ms in ms {
            let forecast = model.forecast(Nanos(0), &SIZE);
            let times = LoadTimes { transfer: Nanos::from_millis(*ms), ..LoadTimes::default() };
            match ms {
                0 => model.late(Nanos(0), &forecast, 0.4),
                _ => model.arrived(Nanos(0), &forecast, &SIZE, &times),
            }
        }
        model
    }

    fn trade<'a>(
        model: &'a LoadModel,
        load: &'a LoadForecast,
        recompute: f64,
        when_late: WhenLate,
    ) -> Trade<'a> {
        Trade { recompute, risk: 0.01, load, residuals: model.residuals(load), when_late }
    }

    #[test]
    fn a_fast_source_is_worth_it_and_a_slow_one_is_not() {
        let model = seen(&[30; 100]);
        let load = model.forecast(Nanos(0), &SIZE);
        let best = trade(&model, &load, 1.0, WhenLate::GiveUp).best(0.5);
        assert!(best.cost < 0.1 && best.deadline > 0.03, "{best:?}");
        let best = trade(&model, &load, 0.02, WhenLate::GiveUp).best(0.01);
        assert!(best.cost > 0.0199, "{best:?}");
    }

    #[test]
    fn two_speeds_are_cut_between() {
        let both: Vec<u64> = (0..200).map(|i| if i % 3 == 0 { 400 } else { 20 }).collect();
        let model = seen(&both);
        let load = model.forecast(Nanos(0), &SIZE);
        let best = trade(&model, &load, 0.3, WhenLate::GiveUp).best(0.45);
        assert!(best.deadline < 0.2, "waiting for the slow third costs more than it brings: {best:?}");
    }

    #[test]
    fn whoever_may_go_on_waiting_loses_nothing_by_it() {
        let mostly: Vec<u64> = (0..200).map(|i| if i % 25 == 0 { 250 } else { 20 }).collect();
        let model = seen(&mostly);
        let load = model.forecast(Nanos(0), &SIZE);
        let best = trade(&model, &load, 0.3, WhenLate::GiveUp).best(0.15);
        let race = trade(&model, &load, 0.3, WhenLate::Race).best(0.15);
        assert!(race.cost <= best.cost + 0.01 * 0.3, "{race:?}, {best:?}");
    }

    /// The cost of one deadline by the definition, on the same buckets.
    fn by_definition(t: &Trade<'_>, deadline: f64) -> f64 {
        const STEPS: u32 = 64;
        let mut expected = 0.0;
        for (bucket, p) in t.residuals.iter() {
            let (from, to) = (t.load.time(edge(bucket)), upper_edge(t.load, bucket));
            for step in 0..STEPS {
                let time = from + (to - from) * (f64::from(step) + 0.5) / f64::from(STEPS);
                let cost = if time <= deadline { time } else { deadline + t.recompute };
                expected += p * cost / f64::from(STEPS);
            }
        }
        (1.0 - t.risk) * expected + t.risk * (deadline + t.recompute)
    }

    proptest! {
        #[test]
        fn the_walk_finds_the_least_cost(
            ms in prop::collection::vec(prop_oneof![Just(0u64), 5..60u64, 100..1500u64], 5..60),
            recompute in 0.01..3.0f64,
        ) {
            let model = seen(&ms);
            let load = model.forecast(Nanos(0), &SIZE);
            let trade = trade(&model, &load, recompute, WhenLate::GiveUp);
            let longest = MOST_WAIT * recompute;
            let best = trade.best(longest);
            prop_assert!(best.deadline <= longest);
            let cost = by_definition(&trade, best.deadline);
            prop_assert!((cost - best.cost).abs() < 0.02 * recompute, "{best:?}, by definition {cost}");
            for step in 0..=50 {
                let other = by_definition(&trade, longest * f64::from(step) / 50.0);
                prop_assert!(best.cost <= other + 0.03 * recompute, "{best:?}, but {other} at {step}");
            }
        }
    }
}
