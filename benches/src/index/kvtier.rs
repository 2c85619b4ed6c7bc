//! kvtier's own [`PrefixIndex`].

use kv_core::ids::SlotId;
use kv_core::index::{NamespaceIndex, NodeId, PrefixIndex};
use kv_core::key::BlockKey;
use kv_core::tier::Tier;

use super::{CHAIN, Contender, Operation, Workload};

/// The index with a slot pool beside it: free slots, and a pin count per slot.
///
/// The pool stands in for the planner's, which keeps the same two things; when the planner is measured
/// here, `pin`, `unpin`, `evict` and `register` become its calls and the choice of a victim is included.
pub struct Kvtier {
    index: PrefixIndex,
    free: Vec<SlotId>,
    pins: Vec<u16>,
    matched: Vec<NodeId>,
    /// The keys to evict next.
    batch: Vec<BlockKey>,
}

const TIER: Tier = Tier::Host;

impl Kvtier {
    /// Holds all blocks of `load`.
    #[must_use]
    pub fn new(load: &Workload) -> Self {
        let blocks = load.blocks();
        let mut this = Self {
            index: PrefixIndex::with_capacity(blocks),
            free: (0..blocks as u32).rev().map(SlotId).collect(),
            pins: vec![0; blocks],
            matched: Vec::with_capacity(CHAIN),
            batch: Vec::with_capacity(CHAIN),
        };
        this.register_all(load);
        this
    }

    /// Length of the longest readable prefix of `chain`; its nodes are in `matched`.
    #[inline]
    pub fn lookup(&mut self, chain: &[BlockKey]) -> usize {
        self.matched.clear();
        self.index.match_prefix(chain, &mut self.matched)
    }

    fn slots(&self) -> impl Iterator<Item = usize> {
        self.matched.iter().filter_map(|node| Some(self.index.ready_slot(*node, TIER)?.0 as usize))
    }

    /// Both walk the slots again, as two calls of the planner do.
    fn pin_and_unpin(&mut self) -> usize {
        let mut pins = std::mem::take(&mut self.pins);
        let mut pinned = 0;
        for slot in self.slots() {
            pins[slot] += 1;
            pinned += 1;
        }
        std::hint::black_box(&mut pins);
        for slot in self.slots() {
            pins[slot] -= 1;
        }
        self.pins = pins;
        pinned
    }

    /// Finds the nodes of a batch first: a pool knows them from its slots, and a list of keys does not.
    fn evict(&mut self, batch: &[BlockKey]) -> usize {
        self.lookup(batch);
        let mut evicted = 0;
        for node in &self.matched {
            let Some(slot) = self.index.slot(*node, TIER) else { break };
            if self.pins[slot.0 as usize] != 0 || !self.index.is_leaf(*node, TIER) {
                break;
            }
            self.index.displace(*node, TIER);
            self.index.release(*node);
            self.free.push(slot);
            evicted += 1;
        }
        evicted
    }

    fn register_all(&mut self, load: &Workload) -> usize {
        let mut registered = 0;
        for chain in load.chains() {
            let mut parent = None;
            for (depth, key) in chain.iter().enumerate() {
                let Some(slot) = self.free.pop() else { break };
                let namespace = NamespaceIndex::default();
                let Some(node) = self.index.ensure(*key, parent, depth as u32, namespace) else { break };
                self.index.place(node, TIER, slot);
                self.index.set_ready(node, TIER);
                parent = Some(node);
                registered += 1;
            }
        }
        registered
    }
}

impl Contender for Kvtier {
    fn name(&self) -> &'static str {
        "kvtier"
    }

    fn prepare(&mut self, _: Operation, _: &Workload) {}

    fn run(&mut self, operation: Operation, load: &Workload) -> Option<usize> {
        Some(match operation {
            Operation::Match => load.chains().map(|chain| self.lookup(chain)).sum(),
            Operation::MatchPin => load
                .chains()
                .map(|chain| {
                    self.lookup(chain);
                    self.pin_and_unpin()
                })
                .sum(),
            Operation::Evict => {
                let mut batch = std::mem::take(&mut self.batch);
                let mut keys = load.leaves_first();
                let mut evicted = 0;
                loop {
                    batch.clear();
                    batch.extend(keys.by_ref().take(CHAIN));
                    if batch.is_empty() {
                        break;
                    }
                    evicted += self.evict(&batch);
                }
                self.batch = batch;
                evicted
            }
            Operation::Register => self.register_all(load),
        })
    }
}
