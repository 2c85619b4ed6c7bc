//! What every remote store has to stand behind a network that does everything that networks do.

use std::time::Duration;

use kv_core::job::RecordMeta;
use kv_core::key::BlockKey;
use kv_tiers::remote::{InFlight, Limits, Put, RemoteError, RemoteStore};
use kvtier_benches::SplitMix64;

use crate::proxy::{Fault, Proxy};
use crate::remote::{get, key, put, soon, within};

/// Bytes of a block.
pub const LEN: usize = 3000;

/// How hard a store is tried.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// Reads, writes and deletes at least.
    pub operations: usize,
    /// Of how many blocks.
    pub blocks: u64,
    /// Connections break after so many bytes at most.
    pub broken_after: u64,
    /// How long one call may take, in milliseconds.
    pub patience: u64,
}

/// Everything that was in flight ends, in the end.
pub fn ends(store: &dyn RemoteStore) {
    while store.in_flight() != InFlight::default() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The network is well again, and so is the store, as soon as its patience allows and every connection that an old fault
/// has left in a bad state is used up.
pub fn recovers(store: &dyn RemoteStore) {
    let block = [key(9, 0, 0)];
    while put(store, &block, LEN, soon()) != [Ok(())] || get(store, &block, LEN, soon()) != [Ok(())] {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Every fault in random order, with reads, writes and deletes of the same blocks: no wrong byte.
///
/// # Panics
/// When there is one, or when too little was seen to show anything.
pub fn weather(store: &dyn RemoteStore, proxy: &Proxy, seed: u64, storm: Storm) {
    let mut rng = SplitMix64::new(seed);
    let ms = Duration::from_millis;
    let Storm { operations: enough, blocks, broken_after, patience } = storm;
    let (mut operations, mut answered) = (0, 0);
    let mut struck = [0_u64; 8];
    while operations < enough || struck.contains(&0) {
        let n = rng.below(8) as usize;
        let before = proxy.faults();
        proxy.set(match n {
            0 => Fault::None,
            1 => Fault::Delay(ms(1), ms(3)),
            2 => Fault::Bandwidth(20_000_000),
            3 => Fault::Reset(broken_after),
            4 => Fault::HalfOpen(broken_after),
            5 => Fault::BlackHole(broken_after),
            6 => Fault::Truncate(broken_after),
            _ => Fault::Flip(20_000),
        });
        for _ in 0..10 {
            let first = rng.below(blocks);
            let keys: Vec<_> = (first..first + 40).map(|i| key(1, 0, i)).collect();
            let results = match rng.below(8) {
                0..3 => put(store, &keys, LEN, within(patience)),
                3 => store.delete(&keys[..5], within(patience)).wait(),
                _ => get(store, &keys, LEN, within(patience)),
            };
            operations += results.len();
            answered += results.iter().filter(|result| result.is_ok()).count();
        }
        struck[n] += if n == 0 { 1 } else { proxy.faults() - before };
    }
    proxy.set(Fault::None);
    proxy.cut();
    recovers(store);
    ends(store);
    let counters = store.counters();
    println!(
        "seed {seed}: {operations} operations, {answered} served, {} faults over {} connections; {counters:?}",
        proxy.faults(),
        proxy.connections()
    );
    assert!(answered > operations / 10, "{answered} of {operations}: nothing is shown");
    assert!(counters.refused() > 0, "no flipped bit was met");
    assert!(counters.late > 0 && counters.unreachable > 0);
}

/// One fault at a time strikes every call; each is a miss, and the caller leaves though the server never would.
///
/// # Panics
/// When one is not.
pub fn every_fault_is_a_miss(store: &dyn RemoteStore, proxy: &Proxy) {
    let block = [key(1, 0, 0)];
    for fault in [
        Fault::Delay(Duration::from_millis(400), Duration::ZERO),
        Fault::Bandwidth(10_000),
        Fault::Reset(0),
        Fault::HalfOpen(0),
        Fault::BlackHole(0),
        Fault::Truncate(0),
        Fault::Flip(0),
    ] {
        proxy.set(Fault::None);
        recovers(store);
        assert_eq!(put(store, &block, LEN, soon()), [Ok(())]);
        let before = store.counters();
        proxy.set(fault);
        for _ in 0..3 {
            assert!(get(store, &block, LEN, within(100))[0].is_err(), "{fault:?}");
        }
        let after = store.counters();
        assert_eq!((after.hits, after.misses()), (before.hits, before.misses() + 3), "{fault:?}");
        proxy.set(Fault::None);
        proxy.cut();
        ends(store);
    }
    recovers(store);
}

/// What the store of [`what_hangs_is_bounded`] may have under way.
pub const TIGHT: Limits = Limits { calls: 20, bytes: 10 << 20 };

/// A black hole fills the limits, which are [`TIGHT`], and no more; then calls are refused at once; and all of it comes
/// back.
///
/// # Panics
/// When it is not so.
pub fn what_hangs_is_bounded(store: &dyn RemoteStore, proxy: &Proxy) {
    recovers(store);
    proxy.set(Fault::BlackHole(0));
    let block = [key(1, 0, 0)];
    let payload = vec![7; 1 << 20];
    let meta = RecordMeta { identity: block[0].identity(), parent: BlockKey::ROOT, depth: 0 };
    let puts = [Put { meta, payload: &payload, elements: None }];
    let calls: Vec<_> = (0..100).map(|_| store.put(&puts, soon())).collect();
    // Nine records of a mebibyte and their headers fit ten mebibytes.
    assert_eq!(store.in_flight(), InFlight { calls: 9, bytes: 9 * ((1 << 20) + 128) });
    assert_eq!(calls.iter().filter(|call| call.is_done()).count(), 91);
    // A purge knows that they may still write.
    let sweep = store.sweep(block[0].namespace, block[0].epoch, within(20));
    assert_eq!(sweep.wait(), Err(RemoteError::Late));
    drop(calls);
    ends(store);
    assert_eq!(store.counters().busy, 0, "what was never waited for is not counted");
    proxy.set(Fault::None);
    proxy.cut();
    recovers(store);
}
