//! A figure, and how contenders take turns for it.

use serde::{Deserialize, Serialize};

use super::GpuError;
use crate::ByteSize;
use crate::report::Sample;

/// One thing measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What is done: `h2d`, `d2h`, `both`, `d2d`, or the name of what is done within the GPU or with loads.
    pub work: String,
    /// Bytes of the contiguous pieces in device memory, where that matters.
    pub fragment: Option<ByteSize>,
    /// Who does it.
    pub contender: String,
    /// Blocks of threads that it takes from the GPU's other work.
    pub ctas: u32,
    /// `GB/s` of 10^9 bytes, `us` or `%`.
    pub unit: String,
    /// The figure.
    pub value: Sample,
    /// Its share of the limit in the same round.
    pub share: Option<Sample>,
}

/// The name of the limit among the contenders.
pub(super) const LIMIT: &str = "contiguous";

/// Somebody who can do a piece of work, and says how many seconds it took.
pub(super) struct Contender<'a> {
    pub(super) name: String,
    pub(super) ctas: u32,
    pub(super) run: Box<dyn FnMut() -> Result<f64, GpuError> + 'a>,
}

impl<'a> Contender<'a> {
    pub(super) fn new(
        name: impl Into<String>,
        ctas: u32,
        run: impl FnMut() -> Result<f64, GpuError> + 'a,
    ) -> Self {
        Self { name: name.into(), ctas, run: Box::new(run) }
    }
}

/// What all contenders of a run do.
pub(super) struct Work<'a> {
    pub(super) name: &'a str,
    pub(super) fragment: Option<ByteSize>,
    pub(super) bytes: usize,
}

/// Lets contenders take turns; the first one is the limit. The first round is warm-up.
pub(super) fn take_turns(
    work: &Work<'_>,
    rounds: usize,
    contenders: &mut [Contender<'_>],
) -> Result<Vec<Figure>, GpuError> {
    let count = contenders.len();
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); count];
    for round in 0..=rounds {
        for turn in 0..count {
            let at = (round + turn) % count;
            let seconds = (contenders[at].run)()?;
            if round > 0 {
                rates[at].push(work.bytes as f64 / 1e9 / seconds);
            }
        }
    }
    let limit = rates.first().cloned().unwrap_or_default();
    let figure = |(contender, rates): (&Contender<'_>, Vec<f64>)| {
        let shares = rates.iter().zip(&limit).map(|(rate, limit)| rate / limit).collect();
        Some(Figure {
            work: work.name.to_owned(),
            fragment: work.fragment,
            contender: contender.name.clone(),
            ctas: contender.ctas,
            unit: "GB/s".to_owned(),
            value: Sample::of(rates)?,
            share: Sample::of(shares),
        })
    };
    Ok(contenders.iter().zip(rates).filter_map(figure).collect())
}

/// A figure without a limit.
pub(super) fn plain(work: &str, contender: &str, unit: &str, values: Vec<f64>) -> Option<Figure> {
    Some(Figure {
        work: work.to_owned(),
        fragment: None,
        contender: contender.to_owned(),
        ctas: 0,
        unit: unit.to_owned(),
        value: Sample::of(values)?,
        share: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_same_round_and_the_first_is_not_counted() {
        let seconds = [[9.0, 1.0, 2.0], [9.0, 2.0, 8.0]];
        let mut at = [0, 0];
        let [mut limit_at, mut other_at] = at;
        let mut contenders = [
            Contender::new(LIMIT, 0, || {
                limit_at += 1;
                Ok(seconds[0][limit_at - 1])
            }),
            Contender::new("other", 2, || {
                other_at += 1;
                Ok(seconds[1][other_at - 1])
            }),
        ];
        let work = Work { name: "h2d", fragment: None, bytes: 8_000_000_000 };
        let figures = take_turns(&work, 2, &mut contenders).unwrap();
        drop(contenders);
        at = [limit_at, other_at];
        assert_eq!(at, [3, 3]);
        assert_eq!(figures[0].value, Sample { median: 6.0, min: 4.0, max: 8.0 });
        assert_eq!(figures[1].share, Some(Sample { median: 0.375, min: 0.25, max: 0.5 }));
        assert_eq!(figures[1].ctas, 2);
    }
}
