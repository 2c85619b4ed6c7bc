//! The cost model against sources that help, hurt, lie and plot.
#![allow(clippy::expect_used, reason = "helpers of tests fail like tests")]

mod adversary;
mod decisions;
mod snapshot;

use kv_core::cost::{
    Ask, CostConfig, CostModel, LoadSize, LoadTimes, Offer, Outcome, SourceConfig, TokenRange, WhenLate,
    priors,
};
use kv_core::key::Fingerprint;
use kv_core::units::{Bytes, Nanos};

/// 72 KiB per token.
const TOKEN_BYTES: u64 = 73_728;

fn model(sources: &[&str]) -> CostModel {
    let source = |name: &&str| SourceConfig { name: (*name).to_owned(), link: priors::NETWORK };
    CostModel::new(CostConfig {
        fingerprint: Fingerprint([1; 16]),
        curve: priors::UNKNOWN,
        sources: sources.iter().map(source).collect(),
    })
    .expect("a valid configuration")
}

fn offer(model: &CostModel, source: &str, range: TokenRange) -> Offer {
    let source = model.source(source).expect("configured");
    Offer { source, size: LoadSize::raw(Bytes(u64::from(range.len()) * TOKEN_BYTES)) }
}

fn ask(range: TokenRange) -> Ask {
    Ask { range, prompt_end: range.end, when_late: WhenLate::GiveUp }
}

fn nanos(seconds: f64) -> Nanos {
    Nanos((seconds * 1e9) as u64)
}

/// What the runtime's GPU takes for a range beside a pass that is made anyway.
fn compute(range: TokenRange) -> f64 {
    let (n0, n1) = (f64::from(range.start.0), f64::from(range.end.0));
    24.6e-6 * (n1 - n0) + 6.24e-10 * (n1 * n1 - n0 * n0) / 2.0
}

fn pass(range: TokenRange) -> Nanos {
    nanos(0.026 + compute(range))
}

fn arrived(seconds: f64) -> Outcome {
    let transfer = nanos(seconds);
    Outcome::Arrived { waited: transfer, times: LoadTimes { transfer, ..LoadTimes::default() } }
}

/// Teaches the curve, and lets every source answer its first probes in `fixed` seconds plus `per_byte`.
fn teach(model: &mut CostModel, sources: &[&str], fixed: f64, per_byte: f64) -> Nanos {
    let mut now = Nanos(0);
    for i in 0..60 {
        let range = TokenRange::new(0, 1000 + 500 * (i % 40));
        model.observed_prefill(now, range, pass(range));
        let offers: Vec<_> = sources.iter().map(|source| offer(model, source, range)).collect();
        let decision = model.decide(now, &ask(range), &offers, u64::from(i) << 32 | 1 | u64::from(i) << 40);
        if let Some(probe) = decision.probe {
            model.settle(now, probe.ticket, arrived(fixed + probe.bytes.0 as f64 * per_byte));
        }
        if let Some(load) = decision.load {
            model.settle(
                now,
                load.ticket,
                arrived(
                    (fixed + f64::from(range.len()) * TOKEN_BYTES as f64 * per_byte)
                        .min(load.deadline.as_secs_f64()),
                ),
            );
            assert!(load.hedge.is_none() || sources.len() > 1);
            if let Some(hedge) = load.hedge {
                model.settle(now, hedge.ticket, Outcome::NotStarted);
            }
        }
        now = now + Nanos::from_millis(2_000);
    }
    now
}
