//! The offline optimum: how many prefix hits a policy that knows the future could have had.
//!
//! With blocks of equal size Belady's rule is exact for prefix hits: keep the blocks whose next use is
//! nearest, ties to the shallower one. A use of a block is a use of all its ancestors, so the next use of an
//! ancestor never comes later, the kept set is closed under "parent of", and every block hit is a prefix
//! hit. No rule can have more block hits than Belady's, hence none can have more prefix hits.

use std::collections::BinaryHeap;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

/// No later request uses the block.
const NEVER: u32 = u32::MAX;

/// One use of one block by one request.
#[derive(Clone, Copy)]
struct Use {
    block: u32,
    /// The next request that uses the block.
    next: u32,
}

/// A whole trace, prepared for any number of capacities.
pub struct Optimum {
    /// Uses of all requests, head first; request `r` owns `uses[ends[r - 1]..ends[r]]`.
    uses: Vec<Use>,
    ends: Vec<usize>,
    blocks: usize,
}

impl Optimum {
    /// Reads the chains of all requests in order. Each is a path from the root: a key appears at most once in
    /// a chain and always behind the same ancestors.
    pub fn new<K: Hash + Eq, C: IntoIterator<Item = K>>(chains: impl IntoIterator<Item = C>) -> Self {
        let mut last_use = HashMap::new();
        let (mut uses, mut ends, mut blocks) = (Vec::<Use>::new(), Vec::new(), 0);
        for (request, chain) in chains.into_iter().enumerate() {
            for key in chain {
                let block = match last_use.entry(key) {
                    Entry::Occupied(mut seen) => {
                        let last: usize = seen.insert(uses.len());
                        uses[last].next = request as u32;
                        uses[last].block
                    }
                    Entry::Vacant(new) => {
                        new.insert(uses.len());
                        blocks += 1;
                        blocks - 1
                    }
                };
                uses.push(Use { block, next: NEVER });
            }
            ends.push(uses.len());
        }
        Self { uses, ends, blocks: blocks as usize }
    }

    /// Distinct blocks in the trace: the capacity from which nothing is ever evicted.
    #[must_use]
    pub fn unique_blocks(&self) -> usize {
        self.blocks
    }

    /// Uses of blocks in the trace: hits plus misses.
    #[must_use]
    pub fn block_uses(&self) -> usize {
        self.uses.len()
    }

    /// The most prefix hits that any policy with `capacity` blocks can have, bypass allowed.
    #[must_use]
    pub fn hits(&self, capacity: usize) -> u64 {
        let mut hits = 0;
        // Next use of each kept block; `NEVER` when the block is not kept.
        let mut kept = vec![NEVER; self.blocks];
        let mut resident = 0;
        // Furthest next use on top, the deeper block first among equals. An entry that disagrees with `kept`
        // is stale.
        let mut furthest = BinaryHeap::new();
        let mut start = 0;
        for end in &self.ends {
            let chain = &self.uses[start..*end];
            start = *end;
            hits += chain.iter().take_while(|u| kept[u.block as usize] != NEVER).count() as u64;
            for (depth, used) in chain.iter().enumerate() {
                let kept = &mut kept[used.block as usize];
                resident += usize::from(used.next != NEVER);
                resident -= usize::from(*kept != NEVER);
                *kept = used.next;
                if used.next != NEVER {
                    furthest.push((used.next, depth as u32, used.block));
                }
            }
            while resident > capacity {
                let Some((next, _, block)) = furthest.pop() else { break };
                if kept[block as usize] == next {
                    kept[block as usize] = NEVER;
                    resident -= 1;
                }
            }
        }
        hits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Tries every set of at most `capacity` blocks that a cache could hold after each request.
    fn exhaustive(chains: &[Vec<u8>], capacity: usize) -> u64 {
        let mut best: HashMap<BTreeSet<u8>, u64> = HashMap::from([(BTreeSet::new(), 0)]);
        for chain in chains {
            let mut after: HashMap<BTreeSet<u8>, u64> = HashMap::new();
            for (held, hits) in best {
                let hits = hits + chain.iter().take_while(|b| held.contains(b)).count() as u64;
                let available: Vec<u8> =
                    held.iter().chain(chain).copied().collect::<BTreeSet<_>>().into_iter().collect();
                for mask in 0..1_u32 << available.len() {
                    if mask.count_ones() as usize <= capacity {
                        let kept =
                            (0..available.len()).filter(|i| mask & (1 << i) != 0).map(|i| available[i]);
                        let best = after.entry(kept.collect()).or_default();
                        *best = hits.max(*best);
                    }
                }
            }
            best = after;
        }
        best.into_values().max().unwrap_or(0)
    }

    /// Paths from the root of a random tree: `parents[i] <= i` is the parent of node `i + 1`.
    fn paths(parents: &[u8], ends: &[u8]) -> Vec<Vec<u8>> {
        let path = |end: u8| {
            let mut at = end % (parents.len() as u8 + 1);
            let mut path = vec![at];
            while at > 0 {
                at = parents[at as usize - 1] % at;
                path.push(at);
            }
            path.reverse();
            path
        };
        ends.iter().map(|end| path(*end)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn no_choice_of_evictions_beats_it(
            parents in prop::collection::vec(any::<u8>(), 1..7),
            ends in prop::collection::vec(any::<u8>(), 1..9),
            capacity in 0_usize..5,
        ) {
            let chains = paths(&parents, &ends);
            prop_assert_eq!(Optimum::new(&chains).hits(capacity), exhaustive(&chains, capacity));
        }
    }

    #[test]
    fn a_chain_longer_than_the_cache_keeps_its_head() {
        let chain: Vec<u32> = (0..10).collect();
        let optimum = Optimum::new([&chain, &chain, &chain]);
        assert_eq!((optimum.unique_blocks(), optimum.block_uses()), (10, 30));
        assert_eq!(optimum.hits(0), 0);
        assert_eq!(optimum.hits(4), 8);
        assert_eq!(optimum.hits(10), 20);
        assert_eq!(optimum.hits(usize::MAX), 20);
    }
}
