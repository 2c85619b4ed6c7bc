//! `kvtier bench index`: what a scheduler step asks of an index, in every index at once.
//!
//! All contenders hold the same blocks, in chains, and do the same operations on them in the same order.
//! They take turns inside each round, and the one that begins changes, so that a busy neighbour or a clock
//! change hits all of them alike.
//!
//! The order is the unkind one. Chains are visited in random order and evicted tails first *across* chains,
//! as leaf-first eviction does it; after the first eviction, neighbours in a chain are no longer neighbours
//! in memory.

#[cfg(feature = "peers")]
mod kvbm;
mod kvtier;
mod map;
mod summary;

use std::error::Error;
use std::time::{Duration, Instant};

use kv_core::key::BlockKey;
use serde::Serialize;

use crate::SplitMix64;
use crate::heap::{self, Growth};
use crate::report::Sample;

pub use kvtier::Kvtier;
pub use map::{Identity, Map, Sip};
pub use summary::{Summary, Target};

/// Blocks per chain, and per batch: one look-up asks for a whole chain.
pub const CHAIN: usize = 256;

/// The blocks that all contenders hold.
pub struct Workload {
    keys: Vec<BlockKey>,
    /// Where the chains begin, in the order in which they are visited.
    starts: Vec<usize>,
    /// The same chains under the names that the peer gives to blocks.
    #[cfg(feature = "peers")]
    peer_chains: Vec<Vec<kvbm_logical::SequenceHash>>,
}

impl Workload {
    /// `blocks` blocks in chains of [`CHAIN`]; the last chain may be shorter.
    #[must_use]
    pub fn new(blocks: usize, seed: u64) -> Self {
        let mut rng = SplitMix64::new(seed);
        let mut half = || rng.next_u64().to_le_bytes();
        let keys: Vec<_> = (0..blocks)
            .map(|_| {
                let (low, high) = (half(), half());
                BlockKey::from_bytes(std::array::from_fn(|i| if i < 8 { low[i] } else { high[i - 8] }))
            })
            .collect();
        let mut starts: Vec<usize> = (0..blocks).step_by(CHAIN).collect();
        rng.shuffle(&mut starts);
        #[cfg(feature = "peers")]
        let peer_chains = starts.iter().map(|s| kvbm::hashes(chain(&keys, *s))).collect();
        Self {
            keys,
            starts,
            #[cfg(feature = "peers")]
            peer_chains,
        }
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.keys.len()
    }

    /// The chains, first block first.
    pub fn chains(&self) -> impl Iterator<Item = &[BlockKey]> {
        self.starts.iter().map(|start| chain(&self.keys, *start))
    }

    /// Every block, the last ones of all chains first: no block comes before its child.
    pub fn leaves_first(&self) -> impl Iterator<Item = BlockKey> {
        (0..CHAIN).rev().flat_map(move |depth| {
            self.starts.iter().filter_map(move |start| chain(&self.keys, *start).get(depth).copied())
        })
    }
}

fn chain(keys: &[BlockKey], start: usize) -> &[BlockKey] {
    &keys[start..keys.len().min(start + CHAIN)]
}

/// One thing that is measured, over all blocks of the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Find the longest readable prefix of each chain.
    Match,
    /// Find it, protect each block of it against eviction, and let them go again.
    MatchPin,
    /// Take every block out, leaves first.
    Evict,
    /// Make every block readable that is not there.
    Register,
}

impl Operation {
    /// Operations that run back to back; each group leaves all blocks resident.
    const GROUPS: [&'static [Self]; 3] = [&[Self::Match], &[Self::MatchPin], &[Self::Evict, Self::Register]];
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Match, Self::MatchPin, Self::Evict, Self::Register];

    /// As it is printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::MatchPin => "match + pin + unpin",
            Self::Evict => "evict",
            Self::Register => "register",
        }
    }
}

/// An index under test. It holds all blocks of the workload except between `Evict` and `Register`.
pub trait Contender {
    /// As it is printed.
    fn name(&self) -> &'static str;

    /// Brings the contender into the state that `operation` starts from. Not timed.
    fn prepare(&mut self, operation: Operation, load: &Workload);

    /// Does it to every block, and returns to how many it could; `None` when the contender has no such thing.
    fn run(&mut self, operation: Operation, load: &Workload) -> Option<usize>;
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A peer refused its configuration.
    #[error("cannot set up a peer; does its version fit this bench?")]
    Setup(#[source] Box<dyn Error + Send + Sync>),
    /// A contender did not do all the work.
    #[error("{contender} did `{}` to {done} of {blocks} blocks; its time would mean nothing", operation.name())]
    Incomplete {
        /// Who.
        contender: &'static str,
        /// What.
        operation: Operation,
        /// Blocks it was done to.
        done: usize,
        /// Blocks it should have been done to.
        blocks: usize,
    },
}

/// The figures of one contender for one operation at one size.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figure {
    /// Resident blocks.
    pub blocks: usize,
    /// Who.
    pub contender: &'static str,
    /// What.
    pub operation: Operation,
    /// Nanoseconds per block, one core.
    pub ns_per_block: Sample,
}

/// The memory of one contender at one size.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// Resident blocks.
    pub blocks: usize,
    /// Who.
    pub contender: &'static str,
    /// Heap bytes per block once all blocks are resident (and, in a peer, pinned).
    pub bytes_per_block: f64,
    /// Allocations per block on the way there.
    pub build_allocations_per_block: f64,
    /// Allocations per block of one round of all operations, once built.
    pub steady_allocations_per_block: f64,
}

/// All figures of one run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Times.
    pub times: Vec<Figure>,
    /// Memory; empty when the heap is not counted.
    pub memory: Vec<Memory>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Resident blocks.
    pub blocks: usize,
    /// Turns of each contender; each gives one measurement.
    pub rounds: usize,
    /// How often a turn goes through all blocks.
    pub passes: usize,
}

impl Plan {
    /// At least a million blocks per turn, so that it outlasts the clock's grain.
    #[must_use]
    pub fn new(blocks: usize, rounds: usize) -> Self {
        Self { blocks, rounds, passes: (1usize << 20).div_ceil(blocks.max(1)) }
    }
}

type Maker = fn(&Workload) -> Result<Box<dyn Contender>, Failure>;

/// Everything that this build can measure, kvtier first.
const MAKERS: &[Maker] = &[
    |load| Ok(Box::new(Kvtier::new(load))),
    |load| Ok(Box::new(Map::<Identity>::new(load))),
    |load| Ok(Box::new(Map::<Sip>::new(load))),
    #[cfg(feature = "peers")]
    |load| Ok(Box::new(kvbm::Kvbm::new(load, kvbm::Backend::Lru)?)),
    #[cfg(feature = "peers")]
    |load| Ok(Box::new(kvbm::Kvbm::new(load, kvbm::Backend::Lineage)?)),
];

/// Measures all contenders at one size and adds to `figures`. `progress` hears about each finished round.
///
/// # Errors
/// [`Failure`]: a contender cannot be made, or loses blocks.
pub fn measure(figures: &mut Figures, plan: Plan, mut progress: impl FnMut(usize)) -> Result<(), Failure> {
    let Plan { blocks, rounds, passes } = plan;
    let load = Workload::new(blocks, blocks as u64);
    let mut contenders = Vec::new();
    for maker in MAKERS {
        let (made, built) = heap::measure(|| maker(&load));
        let mut contender = made?;
        // Buffers grow in the first round; from the second on the contender is in its steady state.
        one_round(contender.as_mut(), &load, 1)?;
        let (outcome, steady) = heap::measure(|| one_round(contender.as_mut(), &load, 1));
        outcome?;
        if let (Some(built), Some(steady)) = (built, steady) {
            let per_block = |n: f64| n / blocks as f64;
            let Growth { bytes, allocations } = built;
            figures.memory.push(Memory {
                blocks,
                contender: contender.name(),
                bytes_per_block: per_block(bytes as f64),
                build_allocations_per_block: per_block(allocations as f64),
                steady_allocations_per_block: per_block(steady.allocations as f64),
            });
        }
        contenders.push((contender, Vec::new()));
    }
    for round in 0..rounds {
        let count = contenders.len();
        for turn in 0..count {
            let (contender, rows) = &mut contenders[(round + turn) % count];
            rows.push(one_round(contender.as_mut(), &load, passes)?);
        }
        progress(round + 1);
    }
    for (contender, rows) in &contenders {
        for (at, operation) in Operation::ALL.into_iter().enumerate() {
            let times = rows.iter().filter_map(|row| row[at]).collect();
            if let Some(ns_per_block) = Sample::of(times) {
                figures.times.push(Figure { blocks, contender: contender.name(), operation, ns_per_block });
            }
        }
    }
    Ok(())
}

/// Nanoseconds per block for each of [`Operation::ALL`], where the contender has such a thing.
fn one_round(
    contender: &mut dyn Contender,
    load: &Workload,
    passes: usize,
) -> Result<[Option<f64>; 4], Failure> {
    let mut row = [None; 4];
    for group in Operation::GROUPS {
        let mut spent = [Duration::ZERO; 4];
        // The first pass warms caches and page tables up.
        for pass in 0..=passes {
            for operation in group {
                contender.prepare(*operation, load);
                let start = Instant::now();
                let done = contender.run(*operation, load);
                let time = start.elapsed();
                let Some(done) = done else { continue };
                if done != load.blocks() {
                    let (contender, blocks) = (contender.name(), load.blocks());
                    return Err(Failure::Incomplete { contender, operation: *operation, done, blocks });
                }
                if pass > 0 {
                    let spent = &mut spent[*operation as usize];
                    *spent += time;
                    row[*operation as usize] =
                        Some(spent.as_secs_f64() * 1e9 / (passes * load.blocks()) as f64);
                }
            }
        }
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn workload_visits_every_block_once_and_leaves_first() {
        let load = Workload::new(1000, 3);
        assert_eq!(load.chains().map(<[_]>::len).sum::<usize>(), 1000);
        let mut gone = HashSet::new();
        let parents: std::collections::HashMap<_, _> =
            load.chains().flat_map(|c| c.windows(2).map(|w| (w[1], w[0]))).collect();
        for key in load.leaves_first() {
            assert!(parents.get(&key).is_none_or(|parent| !gone.contains(parent)));
            assert!(gone.insert(key));
        }
        assert_eq!(gone.len(), 1000);
    }

    #[test]
    fn all_contenders_do_all_the_work_at_awkward_sizes() {
        for blocks in [1, 255, 257, 1000] {
            let mut figures = Figures::default();
            let mut rounds = 0;
            measure(&mut figures, Plan { blocks, rounds: 2, passes: 3 }, |done| rounds = done)
                .expect("no block is lost");
            assert_eq!(rounds, 2);
            let of_kvtier = figures.times.iter().filter(|f| f.contender == "kvtier");
            assert_eq!(of_kvtier.map(|f| f.operation).collect::<Vec<_>>(), Operation::ALL);
            assert!(figures.times.iter().all(|f| f.ns_per_block.min > 0.0));
            assert!(figures.memory.is_empty(), "this test counts no heap");
        }
    }

    #[test]
    fn a_contender_that_loses_blocks_is_not_believed() {
        struct Lossy;
        impl Contender for Lossy {
            fn name(&self) -> &'static str {
                "lossy"
            }
            fn prepare(&mut self, _: Operation, _: &Workload) {}
            fn run(&mut self, _: Operation, load: &Workload) -> Option<usize> {
                Some(load.blocks() - 1)
            }
        }
        let error = one_round(&mut Lossy, &Workload::new(10, 0), 1).expect_err("9 of 10");
        assert!(error.to_string().contains("lossy did `match` to 9 of 10 blocks"), "{error}");
    }
}
