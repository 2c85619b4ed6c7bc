//! The reference replay of one tier: what a hit rate in this crate's tables means.
//!
//! Hits are the contiguous resident prefix. Room is made head first, so that a chain longer than the tier
//! keeps its head; then the blocks are touched tail first. Victims are leaves; the request's own blocks are
//! pinned while it is served.

use kv_core::ids::SlotId;
use kv_core::key::BlockKey;
use kv_core::policy::{EvictionPolicy, Touch};
use kv_core::units::Nanos;
use std::collections::HashMap;

const ABSENT: u32 = u32::MAX;

/// One request: when, and which blocks from the root on.
pub(crate) struct Request {
    pub(crate) now: Nanos,
    /// Indices into [`Trace::keys`].
    pub(crate) chain: Vec<u32>,
}

/// A trace whose blocks have been numbered densely.
#[derive(Default)]
pub(crate) struct Trace {
    pub(crate) keys: Vec<BlockKey>,
    pub(crate) requests: Vec<Request>,
    numbers: HashMap<u64, u32>,
}

impl Trace {
    pub(crate) fn push(&mut self, now: Nanos, names: impl IntoIterator<Item = u64>) {
        let chain = names.into_iter().map(|name| {
            *self.numbers.entry(name).or_insert_with(|| {
                self.keys.push(key(name));
                self.keys.len() as u32 - 1
            })
        });
        self.requests.push(Request { now, chain: chain.collect() });
    }
}

/// A uniform key for a small number (the finaliser of SplitMix64, twice).
fn key(name: u64) -> BlockKey {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let low = mix(name.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&mix(low.wrapping_add(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
    BlockKey::from_bytes(bytes)
}

/// What a slot holds.
#[derive(Clone, Copy)]
struct Held {
    block: u32,
    parent: u32,
    children: u32,
    pinned: bool,
}

/// Replays `trace` and returns the hits.
pub(crate) fn replay(trace: &Trace, capacity: usize, policy: &mut dyn EvictionPolicy) -> u64 {
    let mut hits = 0;
    let mut slot_of = vec![ABSENT; trace.keys.len()];
    let mut held: Vec<Held> = Vec::with_capacity(capacity);
    let mut slots = Vec::new();
    for request in &trace.requests {
        slots.clear();
        slots.extend(request.chain.iter().map(|b| slot_of[*b as usize]).take_while(|s| *s != ABSENT));
        let matched = slots.len();
        hits += matched as u64;
        for slot in &slots {
            held[*slot as usize].pinned = true;
        }
        for block in &request.chain[matched..] {
            let parent = slots.last().copied().unwrap_or(ABSENT);
            let new = Held { block: *block, parent, children: 0, pinned: true };
            let slot = if held.len() < capacity {
                held.push(new);
                held.len() as u32 - 1
            } else {
                let leaf = |s: SlotId| !held[s.0 as usize].pinned && held[s.0 as usize].children == 0;
                let Some(victim) = policy.victim(request.now, &mut { leaf }) else { break };
                assert!(leaf(victim), "{} evicted a block that was not evictable", policy.name());
                policy.remove(victim);
                let old = std::mem::replace(&mut held[victim.0 as usize], new);
                slot_of[old.block as usize] = ABSENT;
                if old.parent != ABSENT {
                    held[old.parent as usize].children -= 1;
                }
                victim.0
            };
            if parent != ABSENT {
                held[parent as usize].children += 1;
            }
            slot_of[*block as usize] = slot;
            slots.push(slot);
        }
        for (depth, slot) in slots.iter().enumerate().rev() {
            let key = |d: usize| trace.keys[request.chain[d] as usize];
            let touch = Touch {
                key: key(depth),
                parent: depth.checked_sub(1).map_or(BlockKey::ROOT, key),
                depth: depth as u32,
                now: request.now,
            };
            if depth < matched {
                policy.hit(SlotId(*slot), &touch);
            } else {
                policy.insert(SlotId(*slot), &touch);
            }
            held[*slot as usize].pinned = false;
        }
    }
    hits
}
