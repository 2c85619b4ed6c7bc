//! What kvtier wants to reach on a data-centre GPU, and whether it does. The numbers are those of the design,
//! set on an H200.

use serde::Serialize;

use super::Figure;
use super::figure::LIMIT;
use super::hbm::PERMUTE;
use super::link::BARE;
use super::load::{ALONE, DEMAND};
use crate::ByteSize;

/// Fragments below it are not promised anything.
const SMALLEST: ByteSize = ByteSize(4 << 10);
/// CTAs that copies may take.
const MOST_CTAS: u32 = 2;

/// A goal and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mark {
    /// What is promised.
    pub goal: &'static str,
    /// The worst case measured, as it counts for the goal.
    pub measured: Option<f64>,
    /// Which case that was.
    pub worst: Option<String>,
    /// Least value that passes.
    pub at_least: f64,
    /// `PASS`, `FAIL` or `not measured`.
    pub verdict: &'static str,
}

fn mark(goal: &'static str, at_least: f64, cases: impl Iterator<Item = (String, f64)>) -> Mark {
    let worst = cases.min_by(|a, b| a.1.total_cmp(&b.1));
    let verdict = match &worst {
        Some((_, value)) if *value >= at_least => "PASS",
        Some(_) => "FAIL",
        None => "not measured",
    };
    let (worst, measured) = worst.unzip();
    Mark { goal, measured, worst, at_least, verdict }
}

/// All goals.
pub(super) fn of(figures: &[Figure]) -> Vec<Mark> {
    let auto = |work: &'static str| {
        figures.iter().filter(move |figure| {
            let large = figure.fragment.is_some_and(|fragment| fragment >= SMALLEST);
            figure.work == work && figure.contender == "auto" && large && figure.ctas <= MOST_CTAS
        })
    };
    let share = |figure: &Figure| Some((case(figure), figure.share?.median));
    let permutes =
        figures.iter().filter(|figure| figure.work.starts_with(PERMUTE) && figure.contender != LIMIT);
    vec![
        mark(
            "host to device at 95 % of a contiguous copy, at most 2 CTAs",
            0.95,
            auto("h2d").filter_map(share),
        ),
        mark(
            "device to host at 90 % of a contiguous copy, at most 2 CTAs",
            0.90,
            auto("d2h").filter_map(share),
        ),
        mark("both ways at 95 % of contiguous copies both ways", 0.95, auto("both").filter_map(share)),
        mark("permutes at 85 % of a plain copy in the GPU", 0.85, best_of_each(permutes).filter_map(share)),
        mark("never slower than the copy engine alone (within the spread)", 1.0, against_engine(figures)),
        mark("a demand load behind write-backs in its own time and that of 4 MiB", 1.0, overtaking(figures)),
    ]
}

fn case(figure: &Figure) -> String {
    let fragment = figure.fragment.map(|fragment| format!(", {fragment}")).unwrap_or_default();
    format!("{}{fragment}", figure.work)
}

/// Of several kernels that do the same work the fastest.
fn best_of_each<'a>(figures: impl Iterator<Item = &'a Figure>) -> impl Iterator<Item = &'a Figure> {
    let mut best: Vec<&Figure> = Vec::new();
    for figure in figures {
        match best.iter_mut().find(|best| best.work == figure.work) {
            Some(best) if best.value.median < figure.value.median => *best = figure,
            Some(_) => {}
            None => best.push(figure),
        }
    }
    best.into_iter()
}

/// For each way and fragment how much faster kvtier is than the better of the two ways to use the copy engine
/// without it; 1 where the two cannot be told apart.
fn against_engine(figures: &[Figure]) -> impl Iterator<Item = (String, f64)> {
    let autos = figures.iter().filter(|figure| figure.contender == "auto" && figure.share.is_some());
    autos.filter_map(|auto| {
        let same = |figure: &&Figure| figure.work == auto.work && figure.fragment == auto.fragment;
        let bare = figures.iter().filter(same).filter(|figure| BARE.contains(&figure.contender.as_str()));
        let best = bare.max_by(|a, b| a.value.median.total_cmp(&b.value.median))?;
        let ratio = auto.value.median / best.value.median;
        let apart = auto.value.max < best.value.min;
        Some((case(auto), if apart { ratio } else { ratio.max(1.0) }))
    })
}

/// The time that a demand load may take behind write-backs, over the time that it takes: a copy engine ends what
/// it has begun, and is given no more than 4 MiB at once.
fn overtaking(figures: &[Figure]) -> impl Iterator<Item = (String, f64)> {
    let demand = |alone: bool| {
        figures.iter().filter(move |figure| figure.work == DEMAND && (figure.contender == ALONE) == alone)
    };
    let own = demand(true).map(|figure| figure.value.median).next();
    let limits = figures.iter().filter(|figure| figure.work == "d2h" && figure.contender == LIMIT);
    let slowest = limits.map(|figure| figure.value.median).min_by(f64::total_cmp);
    let allowed = own.zip(slowest).map(|(own, rate)| own + f64::from(4 << 20) / 1e9 / rate * 1e6);
    demand(false).filter_map(move |figure| Some((figure.contender.clone(), allowed? / figure.value.median)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Sample;

    fn figure(work: &str, fragment: u64, contender: &str, rate: f64, share: f64) -> Figure {
        let around = |x: f64| Sample { median: x, min: x * 0.98, max: x * 1.02 };
        Figure {
            work: work.to_owned(),
            fragment: Some(ByteSize(fragment)),
            contender: contender.to_owned(),
            ctas: 2,
            unit: "GB/s".to_owned(),
            value: around(rate),
            share: Some(around(share)),
        }
    }

    fn verdicts(figures: &[Figure]) -> Vec<&'static str> {
        of(figures).iter().map(|mark| mark.verdict).collect()
    }

    #[test]
    fn nothing_measured_is_not_a_pass() {
        assert_eq!(verdicts(&[]), ["not measured"; 6]);
    }

    #[test]
    fn the_worst_case_counts() {
        let mut figures = vec![
            figure("h2d", 65536, "auto", 54.0, 0.99),
            figure("h2d", 4096, "auto", 52.0, 0.951),
            figure("h2d", 2048, "auto", 10.0, 0.2),
            figure("h2d", 4096, "kernel x1", 10.0, 0.2),
            figure("permute a", 256, "contiguous", 2000.0, 1.0),
            figure("permute a", 256, "bulk", 1000.0, 0.5),
            figure("permute a", 256, "kernel", 1800.0, 0.9),
        ];
        assert_eq!(verdicts(&figures)[..4], ["PASS", "not measured", "not measured", "PASS"]);
        figures.push(figure("h2d", 8192, "auto", 51.0, 0.94));
        figures.push(figure("permute b", 256, "kernel", 1600.0, 0.8));
        let marks = of(&figures);
        assert_eq!((marks[0].verdict, marks[0].worst.as_deref()), ("FAIL", Some("h2d, 8 KiB")));
        assert_eq!((marks[0].measured, marks[3].verdict), (Some(0.94), "FAIL"));
    }

    #[test]
    fn too_many_ctas_do_not_count() {
        let four = Figure { ctas: 4, ..figure("d2h", 4096, "auto", 54.0, 0.99) };
        assert_eq!(verdicts(&[four])[1], "not measured");
    }

    #[test]
    fn slower_than_the_engine_within_the_spread_is_no_failure() {
        let against = |rate| {
            let figures = [
                figure("h2d", 4096, "auto", rate, 0.9),
                figure("h2d", 4096, BARE[0], 10.0, 0.2),
                figure("h2d", 4096, BARE[1], 50.0, 0.9),
                figure("h2d", 8192, BARE[1], 99.0, 0.9),
            ];
            of(&figures).remove(4)
        };
        assert_eq!((against(49.0).verdict, against(49.0).measured), ("PASS", Some(1.0)));
        assert_eq!((against(45.0).verdict, against(45.0).measured), ("FAIL", Some(0.9)));
        assert_eq!(against(55.0).verdict, "PASS");
    }

    #[test]
    fn a_demand_load_may_wait_for_four_megabytes() {
        let demand = |contender: &str, us| Figure {
            work: DEMAND.to_owned(),
            share: None,
            ..figure("", 0, contender, us, 0.0)
        };
        let behind = |us| {
            // 4 MiB at 41.94304 GB/s are 100 us.
            let limit = figure("d2h", 4096, LIMIT, 41.943_04, 1.0);
            of(&[limit, demand(ALONE, 20.0), demand("behind 200 MB", us)]).remove(5)
        };
        assert_eq!((behind(60.0).verdict, behind(240.0).verdict), ("PASS", "FAIL"));
        assert!((behind(60.0).measured.unwrap() - 2.0).abs() < 1e-9);
    }
}
