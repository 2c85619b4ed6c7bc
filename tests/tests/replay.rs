//! Replays of generated traces: with bytes and without they decide the same; the planner with LRU is exactly
//! LRU; and nothing beats the optimum.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kv_core::key::BlockKey;
use kv_core::policy::{BytesPerDay, Optimum, PolicyKind};
use kv_core::units::Tokens;
use kv_cuda::DeviceChoice;
use kvtier_benches::generate::AgentTrace;
use kvtier_benches::replay::{Blocks, Replay, Report, Workload};
use kvtier_benches::trace::Request;
use proptest::prelude::*;

fn agents(seed: u64, sessions: u32) -> Workload {
    let trace = AgentTrace { seed, sessions, block_tokens: 256, ..AgentTrace::default() };
    Workload::new(trace.requests().map(|r| r.request), Tokens(256))
}

fn replay(workload: &Workload, capacity: Blocks, policy: PolicyKind) -> Report {
    // Without bytes the size only scales the report.
    let replay = Replay {
        capacity,
        policy,
        nvme_budget: None,
        block_bytes: 4096,
        seed: 1,
        real: None,
        device: DeviceChoice::Host,
    };
    replay.run(workload, &mut |_| ()).unwrap()
}

/// Blocks of the longest request: a top tier of that size leaves nothing uncached.
fn longest(workload: &Workload) -> u32 {
    workload.arrivals.iter().map(|a| a.keys.len()).max().unwrap() as u32
}

#[test]
fn with_bytes_and_without_the_decisions_are_the_same() {
    for (seed, policy) in (1..).zip(PolicyKind::ALL) {
        let workload = agents(seed, 12);
        let (top, unique) = (longest(&workload), workload.unique_blocks as u32);
        let shapes = [
            Blocks { hbm: top, host: 2 * top, nvme: unique / 2 },
            // Chains that are longer than the top tier.
            Blocks { hbm: top / 3, host: top / 2, nvme: top },
            Blocks { hbm: 0, host: top, nvme: unique / 2 },
            Blocks { hbm: top, host: unique / 4, nvme: 0 },
            Blocks { hbm: top, host: 0, nvme: 0 },
        ];
        for capacity in shapes {
            for nvme_budget in [None, Some(BytesPerDay(20_000_000_000))] {
                if nvme_budget.is_some() && capacity.nvme == 0 {
                    continue;
                }
                let dir = tempfile::tempdir().unwrap();
                let real = Some(dir.path().to_owned());
                let replay = Replay {
                    capacity,
                    policy,
                    nvme_budget,
                    block_bytes: 5000,
                    seed,
                    real,
                    device: DeviceChoice::Host,
                };
                let (mut done, mut progress) = (0, 0);
                let report = replay
                    .run(&workload, &mut |n| {
                        progress = n;
                        done += 1;
                    })
                    .unwrap();
                let what = format!("{policy} {capacity:?} {nvme_budget:?}: {report}");
                assert_eq!((done, progress), (workload.arrivals.len(), workload.arrivals.len()), "{what}");
                assert_eq!(report.same_as_virtual, Some(true), "{what}");
                assert_eq!((report.mismatches, report.lost_blocks), (0, 0), "{what}");
                assert!(report.verified_bytes > 0, "{what}");
                assert_eq!(report.verified_bytes, report.hit_blocks * 5000, "{what}");
                let hits = report.hits_by_tier;
                for (capacity, hits) in
                    [(capacity.hbm, hits.hbm), (capacity.host, hits.host), (capacity.nvme, hits.nvme)]
                {
                    assert_eq!(capacity > 0, hits > 0, "every tier has hits: {what}");
                }
            }
        }
    }
}

#[test]
fn no_policy_beats_the_optimum() {
    for seed in 0..6 {
        let workload = agents(seed, 40);
        let optimum = Optimum::new(workload.arrivals.iter().map(|a| &a.keys));
        assert_eq!(optimum.unique_blocks() as u64, workload.unique_blocks);
        for share in [50, 10, 3, 1] {
            let blocks = (workload.unique_blocks / share) as u32;
            let shapes = [
                Blocks { hbm: 0, host: blocks, nvme: 0 },
                Blocks { hbm: blocks, host: 0, nvme: 0 },
                Blocks { hbm: blocks / 8, host: blocks / 4, nvme: blocks / 2 },
            ];
            for capacity in shapes {
                let most = optimum.hits(capacity.total() as usize);
                for policy in PolicyKind::ALL {
                    let report = replay(&workload, capacity, policy);
                    let what =
                        format!("seed {seed}, {capacity:?}, {policy}: {} of {most}", report.hit_blocks);
                    assert!(report.hit_blocks <= most, "{what}");
                    assert!(report.share_of_optimal <= 1.0, "{what}");
                    // Every policy is worth having where everything fits.
                    assert!(share > 1 || capacity.nvme > 0 || report.hit_blocks == most, "{what}");
                }
            }
        }
    }
}

/// LRU of one tier as one would explain it: a list of blocks, coldest first.
///
/// A request hits the contiguous prefix that is in the list; its blocks cannot leave while it runs. The rest is
/// added head first, each in the place of the coldest block that nothing in the list hangs from, until there
/// is none. Then the request's blocks are used, tail first, so that the head ends up hottest.
fn naive_lru(chains: &[Vec<u64>], capacity: usize) -> u64 {
    let mut list: Vec<(u64, Option<u64>)> = Vec::new();
    let mut hits = 0;
    for chain in chains {
        let found = chain.iter().take_while(|block| list.iter().any(|(b, _)| b == *block)).count();
        hits += found as u64;
        let mut own: Vec<(u64, Option<u64>)> = Vec::new();
        for (depth, block) in chain.iter().enumerate() {
            if depth >= found {
                if list.len() == capacity {
                    let pinned = |b: u64| chain[..depth].contains(&b);
                    let leaf = |b: u64| !list.iter().any(|(_, parent)| *parent == Some(b));
                    let Some(coldest) = list.iter().position(|(b, _)| !pinned(*b) && leaf(*b)) else { break };
                    list.remove(coldest);
                }
                list.push((*block, depth.checked_sub(1).map(|d| chain[d])));
            }
            own.push((*block, depth.checked_sub(1).map(|d| chain[d])));
        }
        list.retain(|entry| !own.contains(entry));
        list.extend(own.into_iter().rev());
    }
    hits
}

/// Paths from the roots of a random forest: `parents[i]` is the parent of node `i`, or a root if it is `i`.
fn paths(parents: &[u8], ends: &[u8]) -> Vec<Vec<u64>> {
    let path = |end: u8| {
        let mut at = usize::from(end) % parents.len();
        let mut path = vec![at as u64];
        loop {
            let parent = usize::from(parents[at]) % (at + 1);
            if parent == at {
                break;
            }
            at = parent;
            path.push(at as u64);
        }
        path.reverse();
        path
    };
    ends.iter().map(|end| path(*end)).collect()
}

fn workload(chains: &[Vec<u64>]) -> Workload {
    let requests = (0..).zip(chains).map(|(second, chain)| Request {
        timestamp_ms: 1000 * second,
        input_tokens: 16 * chain.len() as u32,
        output_tokens: 1,
        hash_ids: chain.clone(),
    });
    Workload::new(requests, Tokens(16))
}

/// One of a few forests: bushy, deep, or both.
fn forest() -> impl Strategy<Value = Vec<u8>> {
    let deep = (2..40_u8).prop_map(|n| (0..n).map(|i| i.saturating_sub(1)).collect::<Vec<u8>>());
    let near = prop::collection::vec(0..3_u8, 2..40)
        .prop_map(|back| (0..).zip(back).map(|(i, b): (u8, u8)| i.saturating_sub(b)).collect());
    prop_oneof![prop::collection::vec(any::<u8>(), 2..40), deep, near]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_planner_with_lru_is_exactly_lru(
        parents in forest(),
        ends in prop::collection::vec(any::<u8>(), 1..60),
        capacity in 1_u32..24,
    ) {
        let chains = paths(&parents, &ends);
        let workload = workload(&chains);
        let expected = naive_lru(&chains, capacity as usize);
        for capacity in [Blocks { host: capacity, ..Blocks::default() }, Blocks { hbm: capacity, ..Blocks::default() }] {
            let report = replay(&workload, capacity, PolicyKind::Lru);
            prop_assert_eq!(report.hit_blocks, expected, "{:?}", capacity);
        }
        let optimum = Optimum::new(&chains).hits(capacity as usize);
        prop_assert!(expected <= optimum);
        for policy in PolicyKind::ALL {
            let report = replay(&workload, Blocks { host: capacity, ..Blocks::default() }, policy);
            prop_assert!(report.hit_blocks <= optimum, "{policy}");
        }
    }
}

#[test]
fn a_chain_longer_than_the_tier_keeps_its_head() {
    let chain: Vec<u64> = (0..10).collect();
    let chains = vec![chain; 3];
    let report = replay(&workload(&chains), Blocks { host: 4, ..Blocks::default() }, PolicyKind::Lru);
    assert_eq!((report.hit_blocks, report.no_room_blocks), (8, 18));
    assert_eq!(naive_lru(&chains, 4), 8);
}

/// The keys of a workload depend on nothing but the ids of the trace.
#[test]
fn the_same_trace_is_the_same_workload() {
    let keys = |w: Workload| w.arrivals.into_iter().flat_map(|a| a.keys).collect::<Vec<BlockKey>>();
    assert_eq!(keys(agents(7, 5)), keys(agents(7, 5)));
    assert_ne!(keys(agents(7, 5)), keys(agents(8, 5)));
}
