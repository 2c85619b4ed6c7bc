//! `kvtier bench copy`: gathers and scatters of blocks as a share of what memcpy does.
//!
//! A host block is page-first: its fragments lie one after the other. On the runtime's side they are
//! scattered, one per layer and per K or V. A contender is any closure that moves the whole set once, so
//! that a device's copy engine or kernel is measured exactly like the loop over `copy_from_slice` here.

mod device;

use std::fmt;
use std::time::Instant;

use serde::Serialize;

use device::StandIn;
pub use device::StandInError;

use crate::report::{Machine, Sample, Table};
use crate::{ByteSize, SplitMix64};

/// What is copied. All sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Geometry {
    /// One page-first block.
    pub block: usize,
    /// One contiguous piece on the scattered side; divides `block`.
    pub fragment: usize,
    /// Number of blocks.
    pub blocks: usize,
}

/// The sizes do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{blocks} blocks of {block} bytes in fragments of {fragment}: sizes must not be 0 and fragments must divide blocks"
)]
pub struct BadGeometry {
    block: usize,
    fragment: usize,
    blocks: usize,
}

impl Geometry {
    /// Checks that fragments fill blocks.
    ///
    /// # Errors
    /// [`BadGeometry`].
    pub fn new(block: usize, fragment: usize, blocks: usize) -> Result<Self, BadGeometry> {
        let fits = block.checked_rem(fragment) == Some(0) && block.checked_mul(blocks).is_some_and(|b| b > 0);
        if fits { Ok(Self { block, fragment, blocks }) } else { Err(BadGeometry { block, fragment, blocks }) }
    }

    fn bytes(&self) -> usize {
        self.block * self.blocks
    }
}

/// Both sides of the copies and where each fragment lies on the scattered one.
pub struct Blocks {
    geometry: Geometry,
    page_first: Vec<u8>,
    scattered: Vec<u8>,
    /// Offset on the scattered side of each fragment, in page-first order. A permutation.
    fragments: Vec<usize>,
    /// The order in which blocks are visited.
    order: Vec<usize>,
}

impl Blocks {
    /// Fills the page-first side with bytes that differ everywhere, and touches every page of both.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        let mut rng = SplitMix64::new(geometry.fragment as u64);
        let mut page_first = vec![0; geometry.bytes()];
        for chunk in page_first.chunks_mut(8) {
            chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]);
        }
        let mut fragments: Vec<_> = (0..geometry.bytes()).step_by(geometry.fragment).collect();
        let mut order: Vec<_> = (0..geometry.blocks).collect();
        rng.shuffle(&mut fragments);
        rng.shuffle(&mut order);
        Self { geometry, page_first, scattered: vec![0xA5; geometry.bytes()], fragments, order }
    }

    /// Page-first blocks to scattered fragments: a load into the runtime's cache.
    pub fn scatter(&mut self) {
        let (Geometry { block, fragment, .. }, per_block) = (self.geometry, self.per_block());
        for at in &self.order {
            let source = &self.page_first[at * block..][..block];
            let places = &self.fragments[at * per_block..][..per_block];
            for (from, to) in source.chunks_exact(fragment).zip(places) {
                self.scattered[*to..][..fragment].copy_from_slice(from);
            }
        }
    }

    /// Scattered fragments to page-first blocks: a store out of the runtime's cache.
    pub fn gather(&mut self) {
        let (Geometry { block, fragment, .. }, per_block) = (self.geometry, self.per_block());
        for at in &self.order {
            let target = &mut self.page_first[at * block..][..block];
            let places = &self.fragments[at * per_block..][..per_block];
            for (to, from) in target.chunks_exact_mut(fragment).zip(places) {
                to.copy_from_slice(&self.scattered[*from..][..fragment]);
            }
        }
    }

    /// The limit: the same bytes, block by block in the same order, contiguous on both sides.
    pub fn memcpy(&mut self) {
        let block = self.geometry.block;
        for at in &self.order {
            let range = at * block..(at + 1) * block;
            self.scattered[range.clone()].copy_from_slice(&self.page_first[range]);
        }
    }

    fn per_block(&self) -> usize {
        self.geometry.block / self.geometry.fragment
    }
}

/// Moves all blocks of `S` once and returns when they are there.
pub type Copier<'a, S> = Box<dyn FnMut(&mut S) + 'a>;

/// Everything that is copied in one run.
pub struct Sides {
    memory: Blocks,
    stand_in: StandIn,
}

impl Sides {
    /// Both kinds, of the same sizes. Four times the bytes of `geometry` are used.
    ///
    /// # Errors
    /// [`StandInError`].
    pub fn new(geometry: Geometry) -> Result<Self, StandInError> {
        Ok(Self { memory: Blocks::new(geometry), stand_in: StandIn::new(geometry)? })
    }

    /// Who takes part; the first one is the limit.
    #[must_use]
    pub fn contenders() -> [(&'static str, Copier<'static, Self>); 5] {
        [
            ("memcpy", Box::new(|sides: &mut Self| sides.memory.memcpy())),
            ("scatter", Box::new(|sides: &mut Self| sides.memory.scatter())),
            ("gather", Box::new(|sides: &mut Self| sides.memory.gather())),
            ("HBM stand-in, load", Box::new(|sides: &mut Self| sides.stand_in.load())),
            ("HBM stand-in, store", Box::new(|sides: &mut Self| sides.stand_in.store())),
        ]
    }

    /// Whether everything was copied: figures of a run that failed mean nothing.
    ///
    /// # Errors
    /// The first failure of the stand-in.
    pub fn finish(self) -> Result<(), StandInError> {
        self.stand_in.finish()
    }
}

/// The figures of one contender for one fragment size.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was copied.
    #[serde(flatten)]
    pub geometry: Geometry,
    /// Who.
    pub contender: &'static str,
    /// 10^9 bytes copied per second.
    pub gigabytes_per_second: Sample,
    /// This contender's rate as a share of memcpy's in the same round.
    pub share_of_memcpy: Sample,
}

/// Lets `contenders` take turns on the same `sides`; the first one is what the others are a share of.
#[must_use]
pub fn measure<S>(
    geometry: Geometry,
    rounds: usize,
    sides: &mut S,
    contenders: &mut [(&'static str, Copier<'_, S>)],
) -> Vec<Figure> {
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); contenders.len()];
    // Round 0 is warm-up.
    for round in 0..=rounds {
        let count = contenders.len();
        for turn in 0..count {
            let at = (round + turn) % count;
            let start = Instant::now();
            (contenders[at].1)(sides);
            let seconds = start.elapsed().as_secs_f64();
            if round > 0 {
                rates[at].push(geometry.bytes() as f64 / 1e9 / seconds);
            }
        }
    }
    let Some(limit) = rates.first().cloned() else { return Vec::new() };
    let figure = |((contender, _), rates): (&(&'static str, _), Vec<f64>)| {
        let shares = rates.iter().zip(&limit).map(|(rate, limit)| rate / limit).collect();
        let share_of_memcpy = Sample::of(shares)?;
        Some(Figure { geometry, contender, gigabytes_per_second: Sample::of(rates)?, share_of_memcpy })
    };
    contenders.iter().zip(rates).filter_map(figure).collect()
}

/// A whole run: what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    schema: &'static str,
    machine: Machine,
    rounds: usize,
    figures: Vec<Figure>,
}

impl Summary {
    /// The figures and where they were taken.
    #[must_use]
    pub fn new(figures: Vec<Figure>, rounds: usize) -> Self {
        Self { schema: "kvtier.bench.copy/1", machine: Machine::here(), rounds, figures }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        writeln!(
            f,
            "Host memory only; the stand-in has the queue, thread and completions of a device. Median (min..max) of {} \
             rounds.\n",
            self.rounds
        )?;
        let mut table = Table::new(&["copy", "fragment", "block", "GB/s", "% of memcpy"]);
        for figure in &self.figures {
            let Sample { median, min, max } = figure.share_of_memcpy;
            let percent = Sample { median: median * 100.0, min: min * 100.0, max: max * 100.0 };
            table.row([
                figure.contender.to_owned(),
                ByteSize(figure.geometry.fragment as u64).to_string(),
                ByteSize(figure.geometry.block as u64).to_string(),
                figure.gigabytes_per_second.to_string(),
                format!("{percent:.0}"),
            ]);
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scatter_then_gather_gives_the_bytes_back() {
        for (block, fragment, blocks) in [(64, 8, 5), (64, 64, 1), (60, 12, 3), (7, 1, 4)] {
            let mut sides = Blocks::new(Geometry::new(block, fragment, blocks).unwrap());
            let original = sides.page_first.clone();
            sides.scatter();
            for (from, to) in sides.fragments.iter().enumerate() {
                let fragment_bytes = &original[from * fragment..][..fragment];
                assert_eq!(&sides.scattered[*to..][..fragment], fragment_bytes);
            }
            sides.page_first.fill(0);
            sides.gather();
            assert_eq!(sides.page_first, original);
            sides.scattered.fill(0);
            sides.memcpy();
            assert_eq!(sides.scattered, original);
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        for (block, fragment, blocks) in
            [(64, 0, 1), (64, 7, 1), (0, 8, 1), (64, 8, 0), (1 << 40, 8, 1 << 40)]
        {
            assert!(Geometry::new(block, fragment, blocks).is_err(), "{block} {fragment} {blocks}");
        }
    }

    #[test]
    fn every_contender_runs_every_round_and_the_first_is_its_own_measure() {
        let geometry = Geometry::new(64, 8, 2).unwrap();
        let mut runs = [0, 0];
        let mut contenders: [(_, Copier<'_, [u32; 2]>); 2] =
            [("limit", Box::new(|runs| runs[0] += 1)), ("other", Box::new(|runs| runs[1] += 1))];
        let figures = measure(geometry, 4, &mut runs, &mut contenders);
        assert_eq!(runs, [5, 5], "four rounds and the warm-up");
        assert_eq!(figures[0].share_of_memcpy, Sample { median: 1.0, min: 1.0, max: 1.0 });
        assert_eq!(figures[1].contender, "other");
    }
}
