//! The prefix index: which blocks are resident, in which tiers, and whose prefix they continue.
//!
//! Nodes live in an arena and are named by 32-bit handles; each is one cache line. A look-up walks a chain
//! of keys and allocates nothing. A node exists while its block is resident (or arriving) in some tier, or
//! while a child node exists, so that leaf-first eviction can always find the parent.

mod table;

use crate::ids::SlotId;
use crate::key::BlockKey;
use crate::tier::{PerTier, Tier};
use std::hint::black_box;
use table::KeyTable;

/// Handle of a node. Valid until the node is released; handles are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

/// Which of the planner's namespaces a node belongs to. The default is the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceIndex(pub(crate) u16);

const NONE: u32 = u32::MAX;
/// Keys whose cache misses are overlapped in one go: the more the better, up to what the first-level cache
/// holds (64 buckets and 64 nodes are 8 KiB)...
const GROUP: usize = 64;
/// ...but fewer at the head of a chain, so that one that is not there, or lies in a row, costs little.
const FIRST_GROUP: usize = 16;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Node {
    key: BlockKey,
    slots: PerTier<u32>,
    /// Child nodes that have a slot in that tier: a block is a leaf of a tier when this is zero.
    children: PerTier<u32>,
    parent: u32,
    depth: u32,
    /// Child nodes, resident or not.
    links: u32,
    namespace: u16,
    /// Bit per tier: the slot's bytes are complete and may be read.
    ready: u8,
    /// Saturating count of requests that found the block; halved when NVMe reclaim writes it again.
    heat: u8,
}

/// See the module's head.
pub struct PrefixIndex {
    nodes: Vec<Node>,
    free: Vec<u32>,
    table: KeyTable,
}

impl PrefixIndex {
    /// An empty index with room for `blocks` before anything is reallocated.
    #[must_use]
    pub fn with_capacity(blocks: usize) -> Self {
        Self { nodes: Vec::with_capacity(blocks), free: Vec::new(), table: KeyTable::with_capacity(blocks) }
    }

    /// Nodes in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// True when no block is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of heap behind the index.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.free.capacity() * 4 + self.table.heap_bytes()
    }

    /// Appends the nodes of the longest readable prefix of `keys` to `out` and returns its length. That one
    /// key continues the chain of the key before it is the caller's affair.
    ///
    /// All its time goes into waiting for memory, so it works in groups: it asks for the hash buckets of a
    /// whole group, then for its nodes, and only then compares, so that the cache misses of a group overlap
    /// instead of adding up. A chain that was stored in one go mostly lies in a row of nodes; once a group
    /// ends in such a row, the next nodes need no hash bucket.
    #[inline]
    pub fn match_prefix(&self, keys: &[BlockKey], out: &mut Vec<NodeId>) -> usize {
        let before = out.len();
        let (mut rest, mut length) = (keys, FIRST_GROUP);
        while !rest.is_empty() {
            let (group, others) = rest.split_at(rest.len().min(length));
            if !self.match_group(group, out) {
                break;
            }
            rest = &others[self.match_row(others, out)..];
            length = GROUP;
        }
        out.len() - before
    }

    /// Appends what is readable of the group; true if that is all of it.
    #[inline]
    fn match_group(&self, group: &[BlockKey], out: &mut Vec<NodeId>) -> bool {
        let start = out.len();
        // A load that nothing waits for is as good as a prefetch.
        black_box(group.iter().fold(0, |sum, key| sum | self.table.touch(*key)));
        out.extend(group.iter().map(|key| self.table.guess(*key).unwrap_or(NodeId(NONE))));
        let guesses = &mut out[start..];
        for (at, (guess, key)) in guesses.iter_mut().zip(group).enumerate() {
            let right = |node: &Node| node.key == *key && node.ready != 0;
            if self.nodes.get(guess.0 as usize).is_some_and(right) {
                continue;
            }
            match self.get(*key).filter(|node| self.node(*node).ready != 0) {
                Some(node) => *guess = node,
                None => {
                    out.truncate(start + at);
                    return false;
                }
            }
        }
        true
    }

    /// If the last two nodes of `out` are neighbours, goes on from neighbour to neighbour for as long as they
    /// have the keys that are looked for. Returns how many it found.
    #[inline]
    fn match_row(&self, keys: &[BlockKey], out: &mut Vec<NodeId>) -> usize {
        let [.., NodeId(before), NodeId(last)] = out[..] else { return 0 };
        if before.checked_add(1) != Some(last) {
            return 0;
        }
        let row = self.nodes[last as usize + 1..].iter().zip(keys);
        let length = row.take_while(|(node, key)| node.key == **key && node.ready != 0).count();
        out.extend((last + 1..).take(length).map(NodeId));
        length
    }

    /// The node of `key`.
    #[must_use]
    pub fn get(&self, key: BlockKey) -> Option<NodeId> {
        self.table.find(key, |n| self.nodes[n.0 as usize].key == key)
    }

    /// The node of `key`, made if it is not there; `None` if the key belongs to another namespace. `parent`
    /// is the node of the preceding block; it is linked even when the node existed as a placeholder
    /// without one.
    pub fn ensure(
        &mut self,
        key: BlockKey,
        parent: Option<NodeId>,
        depth: u32,
        namespace: NamespaceIndex,
    ) -> Option<NodeId> {
        // A link goes from depth d to d + 1 and no other way, so that no log, however wrong, makes a circle.
        let parent = parent.filter(|p| self.depth(*p).checked_add(1) == Some(depth));
        if let Some(found) = self.get(key) {
            if self.namespace(found) != namespace {
                return None;
            }
            if let Some(parent) = parent {
                self.adopt(found, parent);
            }
            return Some(found);
        }
        let node = Node {
            key,
            slots: PerTier([NONE; 3]),
            children: PerTier([0; 3]),
            parent: parent.map_or(NONE, |p| p.0),
            depth,
            links: 0,
            namespace: namespace.0,
            ready: 0,
            heat: 0,
        };
        if let Some(parent) = parent {
            self.node_mut(parent).links += 1;
        }
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        let nodes = &self.nodes;
        self.table.insert(key, NodeId(id), |n| nodes[n.0 as usize].key);
        Some(NodeId(id))
    }

    /// Gives a placeholder that recovery made its place in the tree. Does nothing if it has a parent, or if
    /// the depths do not fit.
    fn adopt(&mut self, node: NodeId, parent: NodeId) {
        if self.node(node).parent != NONE || self.depth(parent).checked_add(1) != Some(self.depth(node)) {
            return;
        }
        self.node_mut(node).parent = parent.0;
        self.node_mut(parent).links += 1;
        for tier in Tier::ALL {
            if self.node(node).slots[tier] != NONE {
                self.node_mut(parent).children[tier] += 1;
            }
        }
    }

    /// Frees the node, and then each ancestor, that nothing needs any more.
    pub fn release(&mut self, node: NodeId) {
        let mut at = node.0;
        while at != NONE {
            let n = self.nodes[at as usize];
            if n.links != 0 || n.slots.0 != [NONE; 3] || n.key == BlockKey::ROOT {
                return;
            }
            self.table.remove(n.key, NodeId(at));
            // A freed node must match no key: look-ups read nodes without asking whether they live.
            self.nodes[at as usize].key = BlockKey::ROOT;
            self.nodes[at as usize].ready = 0;
            self.free.push(at);
            if let Some(parent) = self.nodes.get_mut(n.parent as usize) {
                parent.links -= 1;
            }
            at = n.parent;
        }
    }

    /// The block is arriving in `slot` of `tier`; it is not readable there yet.
    pub fn place(&mut self, node: NodeId, tier: Tier, slot: SlotId) {
        let was = self.node(node).slots[tier];
        self.node_mut(node).slots[tier] = slot.0;
        if was == NONE
            && let Some(parent) = self.parent(node)
        {
            self.node_mut(parent).children[tier] += 1;
        }
    }

    /// The block's bytes in `tier` are complete.
    pub fn set_ready(&mut self, node: NodeId, tier: Tier) {
        self.node_mut(node).ready |= 1 << tier as u8;
    }

    /// The block has left `tier`. Call [`PrefixIndex::release`] when done with the node.
    pub fn displace(&mut self, node: NodeId, tier: Tier) {
        if self.node(node).slots[tier] == NONE {
            return;
        }
        self.node_mut(node).slots[tier] = NONE;
        self.node_mut(node).ready &= !(1 << tier as u8);
        if let Some(parent) = self.parent(node) {
            self.node_mut(parent).children[tier] -= 1;
        }
    }

    /// The key of a node.
    #[must_use]
    pub fn key(&self, node: NodeId) -> BlockKey {
        self.node(node).key
    }

    /// The preceding block of the chain.
    #[must_use]
    pub fn parent(&self, node: NodeId) -> Option<NodeId> {
        let parent = self.node(node).parent;
        (parent != NONE).then_some(NodeId(parent))
    }

    /// The key of the preceding block; [`BlockKey::ROOT`] for the first one.
    #[must_use]
    pub fn parent_key(&self, node: NodeId) -> BlockKey {
        self.parent(node).map_or(BlockKey::ROOT, |p| self.key(p))
    }

    /// Position in the chain, 0 for the first block.
    #[must_use]
    pub fn depth(&self, node: NodeId) -> u32 {
        self.node(node).depth
    }

    /// Whose block it is.
    #[must_use]
    pub fn namespace(&self, node: NodeId) -> NamespaceIndex {
        NamespaceIndex(self.node(node).namespace)
    }

    /// The slot in `tier`, arriving or readable.
    #[must_use]
    pub fn slot(&self, node: NodeId, tier: Tier) -> Option<SlotId> {
        let slot = self.node(node).slots[tier];
        (slot != NONE).then_some(SlotId(slot))
    }

    /// The slot in `tier`, if its bytes may be read.
    #[must_use]
    pub fn ready_slot(&self, node: NodeId, tier: Tier) -> Option<SlotId> {
        let n = self.node(node);
        (n.ready & (1 << tier as u8) != 0).then_some(SlotId(n.slots[tier]))
    }

    /// The fastest tier from which the block may be read.
    #[must_use]
    pub fn best_tier(&self, node: NodeId) -> Option<Tier> {
        Tier::ALL.get(self.node(node).ready.trailing_zeros() as usize).copied()
    }

    /// True when no child of the block has a slot in `tier`.
    #[must_use]
    pub fn is_leaf(&self, node: NodeId, tier: Tier) -> bool {
        self.node(node).children[tier] == 0
    }

    /// How many requests found the block, saturating at 255; halved when NVMe reclaim writes it again.
    #[must_use]
    pub fn heat(&self, node: NodeId) -> u8 {
        self.node(node).heat
    }

    /// Sets the use count.
    pub fn set_heat(&mut self, node: NodeId, heat: u8) {
        self.node_mut(node).heat = heat;
    }

    fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node.0 as usize]
    }

    fn node_mut(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NS: NamespaceIndex = NamespaceIndex(0);

    fn key(i: u64) -> BlockKey {
        let mixed = u128::from(i.wrapping_mul(0x9E37_79B9_7F4A_7C15)) << 64;
        BlockKey::from_bytes((mixed | u128::from(i + 1)).to_le_bytes())
    }

    fn chain(index: &mut PrefixIndex, ids: &[u64], tier: Tier) -> Vec<NodeId> {
        let mut parent = None;
        let mut nodes = Vec::new();
        for (depth, id) in ids.iter().enumerate() {
            let node = index.ensure(key(*id), parent, depth as u32, NS).unwrap();
            index.place(node, tier, SlotId(*id as u32));
            index.set_ready(node, tier);
            nodes.push(node);
            parent = Some(node);
        }
        nodes
    }

    #[test]
    fn a_node_is_one_cache_line() {
        assert_eq!(size_of::<Node>(), 64);
    }

    #[test]
    fn matches_the_longest_readable_prefix() {
        let mut index = PrefixIndex::with_capacity(1);
        let ids: Vec<u64> = (0..100).collect();
        let nodes = chain(&mut index, &ids, Tier::Host);
        let keys: Vec<_> = ids.iter().map(|i| key(*i)).collect();
        let mut out = Vec::new();
        assert_eq!(index.match_prefix(&keys, &mut out), 100);
        assert_eq!(out, nodes);

        index.displace(nodes[40], Tier::Host);
        out.clear();
        assert_eq!(index.match_prefix(&keys, &mut out), 40, "a gap ends the prefix");
        index.place(nodes[40], Tier::Nvme, SlotId(7));
        out.clear();
        assert_eq!(index.match_prefix(&keys, &mut out), 40, "an arriving block is not readable");
        index.set_ready(nodes[40], Tier::Nvme);
        out.clear();
        assert_eq!(index.match_prefix(&keys, &mut out), 100);
        assert_eq!(index.best_tier(nodes[40]), Some(Tier::Nvme));
    }

    proptest! {
        /// Chains come and go, whole or from some block on, so that the nodes of later ones lie in rows, in
        /// parts of rows and anywhere.
        #[test]
        fn matches_like_a_list_of_what_is_ready(
            steps in prop::collection::vec((0..4_u64, any::<bool>(), 0..150_usize), 1..40),
        ) {
            let mut index = PrefixIndex::with_capacity(1);
            let mut resident = [0_usize; 4];
            let key_at = |chain: u64, depth: usize| key(chain * 1000 + depth as u64);
            for (at, store, length) in steps {
                let held = &mut resident[at as usize];
                if store {
                    let mut parent = None;
                    for depth in 0..length.max(*held) {
                        let node = index.ensure(key_at(at, depth), parent, depth as u32, NS).unwrap();
                        index.place(node, Tier::Host, SlotId(depth as u32));
                        index.set_ready(node, Tier::Host);
                        parent = Some(node);
                    }
                    *held = length.max(*held);
                } else {
                    for depth in (length..*held).rev() {
                        let node = index.get(key_at(at, depth)).unwrap();
                        index.displace(node, Tier::Host);
                        index.release(node);
                    }
                    *held = length.min(*held);
                }
                for chain in 0..4 {
                    let keys: Vec<_> = (0..160).map(|depth| key_at(chain, depth)).collect();
                    let mut found = vec![NodeId(0)];
                    prop_assert_eq!(index.match_prefix(&keys, &mut found), resident[chain as usize]);
                    let found: Vec<_> = found[1..].iter().map(|node| index.key(*node)).collect();
                    prop_assert_eq!(&found, &keys[..resident[chain as usize]]);
                }
            }
        }
    }

    #[test]
    fn nodes_live_as_long_as_their_descendants() {
        let mut index = PrefixIndex::with_capacity(8);
        let nodes = chain(&mut index, &[1, 2, 3], Tier::Hbm);
        assert!(!index.is_leaf(nodes[0], Tier::Hbm));
        index.displace(nodes[0], Tier::Hbm);
        index.release(nodes[0]);
        assert_eq!(index.len(), 3, "two children still need it");
        index.displace(nodes[2], Tier::Hbm);
        index.release(nodes[2]);
        assert!(index.is_leaf(nodes[1], Tier::Hbm));
        assert_eq!(index.len(), 2);
        index.displace(nodes[1], Tier::Hbm);
        index.release(nodes[1]);
        assert!(index.is_empty(), "the placeholder above went with its last child");
        assert_eq!(index.get(key(1)), None);
    }

    #[test]
    fn recovery_can_link_a_child_before_its_parent() {
        let mut index = PrefixIndex::with_capacity(8);
        let child = index.ensure(key(2), None, 1, NS).unwrap();
        index.place(child, Tier::Nvme, SlotId(2));
        let parent = index.ensure(key(1), None, 0, NS).unwrap();
        assert_eq!(index.ensure(key(2), Some(parent), 1, NS), Some(child));
        assert!(!index.is_leaf(parent, Tier::Nvme));
        index.displace(child, Tier::Nvme);
        assert!(index.is_leaf(parent, Tier::Nvme));
        index.release(child);
        assert!(index.is_empty());
    }
}
