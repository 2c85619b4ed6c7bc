//! Promise 2 against an adversary that sees every decision before it chooses what the source does.

use super::*;
use kv_core::cost::{Balance, CREDIT, Ticket};
use proptest::prelude::*;

/// What the source does with a load or probe.
#[derive(Clone, Copy, Debug)]
enum Play {
    /// Delivers after this share of the deadline.
    Deliver(f64),
    /// Delivers one nanosecond before it would be given up.
    JustInTime,
    /// Hangs.
    Hang,
    /// Delivers garbage after this share of the deadline.
    Lie(f64),
    /// The request goes away after this share of the deadline.
    Cancel(f64),
}

#[derive(Clone, Copy, Debug)]
struct Round {
    range: TokenRange,
    race: bool,
    play: Play,
    /// The GPU is this much slower than the curve, for this request only.
    gpu: f64,
    /// How many requests later the outcome is told.
    settle_after: usize,
    dice: u64,
    gap_ms: u64,
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let play = prop_oneof![
        4 => (0.0..1.0f64).prop_map(Play::Deliver),
        1 => Just(Play::JustInTime),
        2 => Just(Play::Hang),
        1 => (0.0..1.0f64).prop_map(Play::Lie),
        1 => (0.0..1.0f64).prop_map(Play::Cancel),
    ];
    let range =
        (0..4u32, 100..40_000u32).prop_map(|(start, len)| TokenRange::new(start * 3000, start * 3000 + len));
    let round = (range, any::<bool>(), play, 0.6..1.8f64, 0..4usize, any::<u64>(), 0..3_000u64).prop_map(
        |(range, race, play, gpu, settle_after, dice, gap_ms)| Round {
            range,
            race,
            play,
            gpu,
            settle_after,
            dice,
            gap_ms,
        },
    );
    prop::collection::vec(round, 1..250)
}

/// The true account, kept beside the model's by somebody who knows what recomputing would have taken.
#[derive(Default)]
struct Truth {
    actual: u64,
    recompute_only: u64,
    /// By how much the model's credit for loads exceeded the truth: possible only where it overestimates.
    over_credit: u64,
    /// What the model was told, to the nanosecond: what its own two totals must have grown by.
    told_actual: u64,
    told_recompute_only: u64,
}

fn play_all(
    rounds: &[Round],
    start: CostModel,
    mut now: Nanos,
) -> Result<(CostModel, Truth, u32), TestCaseError> {
    let mut model = start;
    let mut truth = Truth::default();
    let base = model.balance();
    let mut open: Vec<(usize, Ticket, Outcome)> = Vec::new();
    let mut loads = 0;
    for (i, round) in rounds.iter().enumerate() {
        for at in (0..open.len()).rev().filter(|at| open[*at].0 <= i).collect::<Vec<_>>() {
            let (_, ticket, outcome) = open.swap_remove(at);
            model.settle(now, ticket, outcome);
            check(&model)?;
        }
        let question = Ask {
            range: round.range,
            prompt_end: round.range.end,
            when_late: if round.race { WhenLate::Race } else { WhenLate::GiveUp },
        };
        let offers = [offer(&model, "remote", round.range)];
        let decision = model.decide(now, &question, &offers, round.dice);
        check(&model)?;
        let recompute = nanos(compute(round.range) * round.gpu);
        let due = i + round.settle_after;
        if let Some(probe) = decision.probe {
            let outcome = outcome(round.play, probe.deadline, probe.deadline);
            truth.told_actual += wait(&outcome).0 / 32;
            open.push((due, probe.ticket, outcome));
        }
        truth.recompute_only += recompute.0;
        match decision.load {
            None => {
                truth.actual += recompute.0;
                truth.pass(recompute);
                model.observed_prefill(now, round.range, recompute);
            }
            Some(load) => {
                loads += 1;
                prop_assert!(load.deadline.as_secs_f64() <= 0.5 * decision.why.recompute.surely + 1e-9);
                let last = if round.race { load.deadline + recompute } else { load.deadline };
                let outcome = outcome(round.play, load.deadline, last);
                truth.told_actual += wait(&outcome).0;
                let (waited, came) = match outcome {
                    Outcome::Arrived { waited, .. } => (waited, true),
                    Outcome::Cancelled { waited } => {
                        // It would not have been computed to its end either.
                        truth.recompute_only -= recompute.0;
                        truth.actual += waited.0;
                        open.push((due, load.ticket, outcome));
                        continue;
                    }
                    Outcome::TooLate { waited, .. } | Outcome::Failed { waited } => (waited, false),
                    _ => (Nanos(0), false),
                };
                truth.actual += waited.0;
                if came {
                    let credit = nanos(decision.why.recompute.surely).max(waited - load.deadline);
                    truth.over_credit += credit.0.saturating_sub(recompute.0);
                    truth.told_recompute_only += credit.0;
                } else {
                    truth.actual += recompute.0;
                    truth.pass(recompute);
                    model.observed_prefill(now, round.range, recompute);
                }
                open.push((due, load.ticket, outcome));
            }
        }
        check(&model)?;
        now = now + Nanos::from_millis(round.gap_ms);
    }
    for (_, ticket, outcome) in open {
        model.settle(now, ticket, outcome);
        check(&model)?;
    }
    let Balance { actual, recompute_only, reserved } = model.balance();
    prop_assert_eq!((actual - base.actual).0, truth.told_actual);
    prop_assert_eq!((recompute_only - base.recompute_only).0, truth.told_recompute_only);
    prop_assert_eq!(reserved, Nanos(0));
    Ok((model, truth, loads))
}

impl Truth {
    fn pass(&mut self, took: Nanos) {
        self.told_actual += took.0;
        self.told_recompute_only += took.0;
    }
}

fn wait(outcome: &Outcome) -> Nanos {
    match *outcome {
        Outcome::Arrived { waited, .. }
        | Outcome::TooLate { waited, .. }
        | Outcome::Overtaken { waited }
        | Outcome::Failed { waited }
        | Outcome::Cancelled { waited } => waited,
        Outcome::NotStarted => Nanos(0),
    }
}

fn outcome(play: Play, deadline: Nanos, last: Nanos) -> Outcome {
    let share = |of: Nanos, share: f64| Nanos((of.0 as f64 * share) as u64);
    match play {
        Play::Deliver(part) => arrived(share(last, part).as_secs_f64()),
        Play::JustInTime => arrived((last - Nanos(1)).as_secs_f64()),
        Play::Hang => Outcome::TooLate { waited: deadline, ran: last },
        Play::Lie(part) => Outcome::Failed { waited: share(deadline, part) },
        Play::Cancel(part) => Outcome::Cancelled { waited: share(deadline, part) },
    }
}

fn check(model: &CostModel) -> Result<(), TestCaseError> {
    let balance = model.balance();
    prop_assert!(balance.actual + balance.reserved <= balance.limit(), "{balance:?}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("KVTIER_SOAK").is_some() { 20_000 } else { 200 }))]

    /// The account as the model keeps it holds at every step, and so does the true one, but for what the model was
    /// credited with for loads because it took the GPU to be slower than it is.
    #[test]
    fn total_time_stays_within_the_promise(rounds in rounds(), learnt in any::<bool>()) {
        let mut start = model(&["remote"]);
        let mut now = Nanos(0);
        if learnt {
            now = teach(&mut start, &["remote"], 0.005, 1e-10);
        }
        let base = start.balance();
        let (_, truth, _) = play_all(&rounds, start, now)?;
        let spare = base.limit() - base.actual - CREDIT;
        let limit = truth.recompute_only + truth.recompute_only / 50 + CREDIT.0 + spare.0 + truth.over_credit * 51 / 50;
        prop_assert!(truth.actual <= limit + 100, "{} of {}", truth.actual, limit);
    }
}

/// The adversary that the ledger is for: honest until trusted, then it hangs for ever. It gets something, but only the
/// credit and what the ledger allows.
#[test]
fn a_trusted_source_that_turns_against_us_gets_no_more_than_the_credit() {
    let mut start = model(&["remote"]);
    let now = teach(&mut start, &["remote"], 0.005, 1e-10);
    let hang = |i: u64| Round {
        range: TokenRange::new(0, 20_000),
        race: false,
        play: Play::Hang,
        gpu: 1.0,
        settle_after: 0,
        dice: i.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        gap_ms: 500,
    };
    let (model, truth, loads) =
        play_all(&(0..2000).map(hang).collect::<Vec<_>>(), start, now).expect("within bounds");
    assert!(loads > 0, "it was trusted");
    assert!(loads < 100, "and then it was not: {loads}");
    assert!(truth.actual as f64 <= 1.02 * truth.recompute_only as f64 + 1e9);
    assert!(model.balance().room() > Nanos(0));
}
