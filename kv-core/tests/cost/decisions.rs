//! What is decided, and what decided it.

use super::*;
use kv_core::cost::{Decided, Term};

const LONG: TokenRange = TokenRange::new(0, 20_000);

#[test]
fn a_fast_source_is_used_once_it_is_measured_and_not_before() {
    let mut model = model(&["remote"]);
    let offers = [offer(&model, "remote", LONG)];
    let first = model.decide(Nanos(0), &ask(LONG), &offers, 1);
    assert!(first.load.is_none());
    assert_eq!(first.why.decided, Decided::Unmeasured);
    let probe = first.probe.expect("it is measured beside the recompute");
    model.settle(Nanos(0), probe.ticket, Outcome::NotStarted);

    let now = teach(&mut model, &["remote"], 0.005, 1e-10);
    let decision = model.decide(now, &ask(LONG), &offers, 1);
    assert_eq!(decision.why.decided, Decided::Saves, "{}", decision.why);
    let Some(load) = decision.load else { panic!("it saves, so it loads") };
    assert!(load.deadline.as_secs_f64() <= 0.5 * compute(LONG) * 1.1);
    let terms = decision.why.source.expect("there is a source");
    assert!((terms.median / (0.005 + 20_000.0 * 73_728.0 * 1e-10) - 1.0).abs() < 0.3, "{}", decision.why);
    assert_eq!(decision.why.after.reserved, load.deadline);
    model.settle(now, load.ticket, arrived(0.3));
    assert_eq!(model.balance().reserved, Nanos(0));
}

/// Negative control: no request ever waits for a source that is slower than recomputing.
#[test]
fn a_slow_source_is_never_waited_for() {
    let mut model = model(&["remote"]);
    for i in 0..2000u64 {
        let now = Nanos::from_millis(i * 300);
        let range = TokenRange::new(0, 1000 + (i as u32 * 7919) % 30_000);
        let offers = [offer(&model, "remote", range)];
        let decision = model.decide(now, &ask(range), &offers, i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        assert!(decision.load.is_none(), "request {i}: {}", decision.why);
        if let Some(probe) = decision.probe {
            model.settle(now, probe.ticket, arrived(0.05 + probe.bytes.0 as f64 * 2e-9));
        }
        model.observed_prefill(now, range, pass(range));
    }
    let range = TokenRange::new(0, 8_000);
    let offers = [offer(&model, "remote", range)];
    let why = model.decide(Nanos::from_millis(600_000), &ask(range), &offers, 1).why;
    assert_eq!(why.decided, Decided::TooSlow(Term::Transfer), "{why}");
    assert!(why.to_string().contains("mostly because of: transfer"));
}

#[test]
fn the_decided_term_is_the_one_that_is_large() {
    let mut model = model(&["remote"]);
    let now = teach(&mut model, &["remote"], 0.005, 1e-10);
    let offer = offer(&model, "remote", LONG);
    let size = LoadSize { h2d: Nanos::from_millis(900), ..offer.size };
    let why = model.decide(now, &ask(LONG), &[Offer { size, ..offer }], 1).why;
    assert_eq!(why.decided, Decided::TooSlow(Term::HostToDevice), "{why}");
    let size = LoadSize { decoded: Some(Bytes(offer.size.bytes.0 * 2)), ..offer.size };
    let why = model.decide(now, &ask(LONG), &[Offer { size, ..offer }], 1).why;
    assert_eq!(why.decided, Decided::TooSlow(Term::Decode), "{why}");
}

#[test]
fn bytes_in_flight_make_a_source_too_slow() {
    let mut model = model(&["remote"]);
    let now = teach(&mut model, &["remote"], 0.005, 1e-10);
    let offers = [offer(&model, "remote", LONG)];
    let mut tickets = Vec::new();
    for _ in 0..20 {
        let decision = model.decide(now, &ask(LONG), &offers, 1);
        if let Some(probe) = decision.probe {
            model.settle(now, probe.ticket, Outcome::NotStarted);
        }
        match decision.load {
            Some(load) => tickets.push(load.ticket),
            None => break,
        }
    }
    assert!((1..20).contains(&tickets.len()), "{} loads at once", tickets.len());
    let in_flight = model.in_flight(offers[0].source);
    assert_eq!(in_flight.0, tickets.len() as u64 * offers[0].size.bytes.0);
    tickets.into_iter().for_each(|ticket| model.settle(now, ticket, Outcome::Cancelled { waited: Nanos(0) }));
    assert_eq!((model.in_flight(offers[0].source), model.balance().reserved), (Bytes(0), Nanos(0)));
    assert!(model.decide(now, &ask(LONG), &offers, 1).load.is_some(), "an idle source is used again");
}

#[test]
fn failures_open_the_breaker_and_a_probe_that_nobody_waits_for_closes_it() {
    let mut model = model(&["remote"]);
    let mut now = teach(&mut model, &["remote"], 0.005, 1e-10);
    let offers = [offer(&model, "remote", LONG)];
    for _ in 0..3 {
        let Some(load) = model.decide(now, &ask(LONG), &offers, 1).load else { panic!("still trusted") };
        model.settle(now, load.ticket, Outcome::Failed { waited: Nanos(1000) });
    }
    let decision = model.decide(now, &ask(LONG), &offers, 1);
    assert_eq!(decision.why.decided, Decided::BreakerOpen);
    assert!(decision.probe.is_none());
    now = now + Nanos::from_millis(1000);
    let decision = model.decide(now, &ask(LONG), &offers, 1);
    assert!(decision.load.is_none());
    let probe = decision.probe.expect("half-open");
    assert!(model.decide(now, &ask(LONG), &offers, 1).probe.is_none(), "one at a time");
    model.settle(now, probe.ticket, arrived(0.005));
    assert!(model.decide(now, &ask(LONG), &offers, 1).load.is_some());
}

#[test]
fn the_faster_of_two_sources_is_used_and_the_other_stands_by() {
    let mut model = model(&["near", "far"]);
    let range = TokenRange::new(0, 40_000);
    let mut now = teach(&mut model, &["near", "far"], 0.005, 5e-11);
    let offers = [offer(&model, "far", range), offer(&model, "near", range)];
    let mut hedged = 0;
    for i in 0..300u64 {
        let decision = model.decide(now, &ask(range), &offers, i * i);
        if let Some(load) = decision.load {
            let far = model.source_name(load.source) == "far";
            // `near` now takes less than `far`.
            model.settle(now, load.ticket, arrived(if far { 0.152 } else { 0.093 }));
            if let Some(hedge) = load.hedge {
                hedged += 1;
                assert!(hedge.source != load.source && hedge.after < load.deadline);
                model.settle(now, hedge.ticket, Outcome::NotStarted);
            }
            assert!(i < 150 || !far, "request {i} should use the faster source");
        }
        if let Some(probe) = decision.probe {
            let per_byte = if model.source_name(probe.source) == "far" { 5e-11 } else { 3e-11 };
            model.settle(now, probe.ticket, arrived(0.005 + probe.bytes.0 as f64 * per_byte));
        }
        now = now + Nanos::from_millis(500);
    }
    assert!(hedged > 0);
    assert_eq!(offers.map(|o| model.in_flight(o.source)), [Bytes(0); 2]);
}

#[test]
fn a_quote_is_what_the_decision_will_expect_and_changes_nothing() {
    let mut model = model(&["remote"]);
    let now = teach(&mut model, &["remote"], 0.005, 1e-10);
    let offers = [offer(&model, "remote", LONG)];
    let before = model.snapshot(now);
    let quote = model.quote(now, &ask(LONG), &offers);
    assert_eq!(model.snapshot(now), before);
    let decision = model.decide(now, &ask(LONG), &offers, 1);
    let terms = decision.why.source.expect("a source");
    assert_eq!((quote.expected, quote.source), (terms.cost, Some(terms.source)));
    assert!(quote.expected < quote.recompute && quote.p90 >= terms.median);
    let nothing = model.quote(now, &ask(LONG), &[]);
    assert_eq!((nothing.expected, nothing.source), (nothing.recompute, None));
}

/// The same inputs give the same decisions, to the bit.
#[test]
fn decisions_are_a_function_of_their_inputs() {
    let run = || {
        let mut model = model(&["remote"]);
        let now = teach(&mut model, &["remote"], 0.005, 1e-10);
        let offers = [offer(&model, "remote", LONG)];
        (model.decide(now, &ask(LONG), &offers, 1).why, model.snapshot(now))
    };
    assert_eq!(run(), run());
}

#[test]
fn nothing_is_decided_about_nothing() {
    let mut model = model(&["remote"]);
    let now = teach(&mut model, &["remote"], 0.005, 1e-10);
    let empty = TokenRange::new(7, 7);
    let decision = model.decide(now, &ask(empty), &[offer(&model, "remote", empty)], 0);
    assert!(decision.load.is_none() && decision.probe.is_none());
    assert_eq!(model.decide(now, &ask(LONG), &[], 0).why.decided, Decided::NothingOffered);
}
