//! The nearest peer: `kvbm-logical` of NVIDIA Dynamo.
//!
//! Its guards *are* its pins, so there is no match without one: `Match` asks for blocks that other guards
//! hold already, `MatchPin` for blocks that nobody holds, which fetches them from the inactive pool and
//! puts them back. `Evict` is an allocation from a pool without free blocks and so includes choosing the
//! victim; `Register` is allocate + stage + register from a pool of free ones. Frequency tracking is off.

use kv_core::key::BlockKey;
use kvbm_logical::blocks::{ImmutableBlock, MutableBlock};
use kvbm_logical::{BlockManager, BlockRegistry, SequenceHash};

use super::{CHAIN, Contender, Failure, Operation, Workload};

/// How the peer orders blocks that nobody holds.
#[derive(Clone, Copy)]
pub(super) enum Backend {
    /// A plain LRU list.
    Lru,
    /// Leaves first, its default.
    Lineage,
}

/// Tokens per block. Any size it accepts gives the same figures: it sees hashes only.
const BLOCK_TOKENS: usize = 16;

/// A marker for one of its pools.
#[derive(Clone)]
struct Host;

/// The names of a chain's blocks: our keys' low halves, so that nobody hashes anything.
pub(super) fn hashes(chain: &[BlockKey]) -> Vec<SequenceHash> {
    let parents = std::iter::once(None).chain(chain.iter().map(|key| Some(key.low())));
    let named = chain.iter().zip(parents).enumerate();
    named.map(|(at, (key, parent))| SequenceHash::new(key.low(), parent, at as u64)).collect()
}

pub(super) struct Kvbm {
    backend: Backend,
    manager: BlockManager<Host>,
    held: Vec<Vec<ImmutableBlock<Host>>>,
    evicted: Vec<Vec<MutableBlock<Host>>>,
}

impl Kvbm {
    pub(super) fn new(load: &Workload, backend: Backend) -> Result<Self, Failure> {
        let builder = BlockManager::<Host>::builder()
            .block_count(load.blocks())
            .block_size(BLOCK_TOKENS)
            .registry(BlockRegistry::new());
        let builder = match backend {
            Backend::Lru => builder.with_lru_backend(),
            Backend::Lineage => builder.with_lineage_backend(),
        };
        let manager = builder.build().map_err(|e| Failure::Setup(e.into()))?;
        let mut this = Self { backend, manager, held: Vec::new(), evicted: Vec::new() };
        this.register_all(load);
        Ok(this)
    }

    fn register_all(&mut self, load: &Workload) -> usize {
        for chain in &load.peer_chains {
            let Some(blocks) = self.manager.allocate_blocks(chain.len()) else { break };
            let staged: Result<Vec<_>, _> =
                blocks.into_iter().zip(chain).map(|(block, hash)| block.stage(*hash, BLOCK_TOKENS)).collect();
            let Ok(staged) = staged else { break };
            self.held.push(self.manager.register_blocks(staged));
        }
        self.held.iter().map(Vec::len).sum()
    }

    fn match_all(&self, load: &Workload) -> usize {
        load.peer_chains.iter().map(|chain| self.manager.match_blocks(chain).len()).sum()
    }

    /// Takes free blocks until all registered ones have made room.
    fn evict_all(&mut self) -> usize {
        let mut left = self.manager.total_blocks();
        while left > 0 {
            let Some(blocks) = self.manager.allocate_blocks(left.min(CHAIN)) else { break };
            left -= blocks.len();
            self.evicted.push(blocks);
        }
        self.manager.total_blocks() - left
    }

    fn hold_all(&mut self, load: &Workload) {
        if self.held.is_empty() {
            self.held = load.peer_chains.iter().map(|chain| self.manager.match_blocks(chain)).collect();
        }
    }
}

impl Contender for Kvbm {
    fn name(&self) -> &'static str {
        match self.backend {
            Backend::Lru => "kvbm-logical, lru",
            Backend::Lineage => "kvbm-logical, lineage",
        }
    }

    fn prepare(&mut self, operation: Operation, load: &Workload) {
        match operation {
            Operation::Match => self.hold_all(load),
            Operation::MatchPin => self.held.clear(),
            // Its eviction order is the order of letting go, so that decides whom it evicts and when.
            Operation::Evict => {
                self.hold_all(load);
                for depth in (0..CHAIN).rev() {
                    self.held.iter_mut().for_each(|chain| chain.truncate(depth));
                }
                self.held.clear();
            }
            // Giving the blocks back is the second half of the eviction that took them.
            Operation::Register => self.evicted.clear(),
        }
    }

    fn run(&mut self, operation: Operation, load: &Workload) -> Option<usize> {
        Some(match operation {
            Operation::Match | Operation::MatchPin => self.match_all(load),
            Operation::Evict => self.evict_all(),
            Operation::Register => self.register_all(load),
        })
    }
}
