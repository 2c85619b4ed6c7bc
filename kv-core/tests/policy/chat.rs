//! A generated trace of conversations: shared system prompts, documents that are read once, turns that come
//! back after a think time.

use crate::replay::Trace;
use kv_core::units::Nanos;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// `conversations` of them, one begun per second. Two in three consist of one long request; the others
/// continue with probability 3/4 after each turn, between 30 seconds and 4 minutes later.
pub(crate) fn conversations(seed: u64, conversations: u64) -> Trace {
    const SYSTEM_PROMPTS: u64 = 4;
    let mut rng = Rng(seed);
    let mut new_block = SYSTEM_PROMPTS * 100;
    let mut grow = |chain: &mut Vec<u64>, blocks: u64| {
        chain.extend(new_block..new_block + blocks);
        new_block += blocks;
    };
    let mut trace = Trace::default();
    let mut turns = BinaryHeap::new();
    for start in 0..conversations {
        let prompt = rng.below(SYSTEM_PROMPTS) * 100;
        let chain: Vec<u64> = (prompt..prompt + 2 + prompt / 100).collect();
        turns.push(Reverse((start * 1000, start, 0, chain, rng.below(3) == 0)));
    }
    while let Some(Reverse((at, id, turn, mut chain, chatty))) = turns.pop() {
        let blocks = match (turn, chatty) {
            (0, false) => 8 + rng.below(40),
            (0, true) => 2 + rng.below(8),
            _ => 1 + rng.below(3),
        };
        grow(&mut chain, blocks);
        trace.push(Nanos::from_millis(at), chain.iter().copied());
        if chatty && rng.below(4) > 0 {
            turns.push(Reverse((at + 30_000 + rng.below(210_000), id, turn + 1, chain, true)));
        }
    }
    trace
}
