//! Every eviction policy against its contract, a naive LRU, and the offline optimum.

mod chat;
mod replay;

use kv_core::ids::SlotId;
use kv_core::key::BlockKey;
use kv_core::policy::{EvictionPolicy, Optimum, PolicyKind, Touch, build};
use kv_core::units::Nanos;
use proptest::prelude::*;
use replay::{Trace, replay};

fn hits(trace: &Trace, capacity: usize, kind: PolicyKind) -> u64 {
    replay(trace, capacity, build(kind, capacity).as_mut())
}

fn optimum(trace: &Trace) -> Optimum {
    Optimum::new(trace.requests.iter().map(|r| &r.chain))
}

/// One step against a policy. Blocks are numbered like slots; the parent of block `b` is `b / 2`, and 0 is
/// the first block of every chain.
#[derive(Clone, Debug)]
enum Step {
    /// A request for the path to a block: resident blocks are hit, the others inserted, tail first.
    Request(u32),
    /// A block is loaded ahead of a request.
    Arrive(u32),
    Remove(u32),
    /// A search for a victim in which the slots of the mask may leave; it does leave if the flag is set.
    Victim(u64, bool),
}

const BLOCKS: u32 = 40;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..BLOCKS).prop_map(Step::Request),
        1 => (0..BLOCKS).prop_map(Step::Arrive),
        1 => (0..BLOCKS).prop_map(Step::Remove),
        3 => (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(a, b, c)| Step::Victim(a & b, c)),
        1 => any::<bool>().prop_map(|leaves| Step::Victim(u64::MAX, leaves)),
    ]
}

fn touch(block: u32, time: u64) -> Touch {
    let key = |b: u32| {
        BlockKey::from_bytes(
            u128::from(b + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_le_bytes(),
        )
    };
    let depth = 32 - block.leading_zeros();
    let parent = if depth == 0 { BlockKey::ROOT } else { key(block / 2) };
    Touch { key: key(block), parent, depth, now: Nanos(time) }
}

fn path(block: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(block), |b| (*b > 0).then_some(b / 2))
}

/// Runs `steps` against a policy and a list of the resident blocks, coldest first. Calls `victim` and
/// `order` with what the policy said and what is resident.
fn drive(
    policy: &mut dyn EvictionPolicy,
    steps: &[Step],
    mut victim: impl FnMut(Option<u32>, &[u32]) -> Result<(), TestCaseError>,
    mut order: impl FnMut(&[u32], &[u32]) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut resident: Vec<u32> = Vec::new();
    let apply = |policy: &mut dyn EvictionPolicy, resident: &mut Vec<u32>, block: u32, time: u64| {
        match resident.iter().position(|b| *b == block) {
            Some(at) => {
                resident.remove(at);
                policy.hit(SlotId(block), &touch(block, time));
            }
            None => policy.insert(SlotId(block), &touch(block, time)),
        }
        resident.push(block);
    };
    for (time, step) in (0..).zip(steps) {
        match step {
            Step::Request(block) => path(*block).for_each(|b| apply(policy, &mut resident, b, time)),
            Step::Arrive(block) if !resident.contains(block) => apply(policy, &mut resident, *block, time),
            Step::Arrive(_) => {}
            Step::Remove(block) => {
                // Also blocks that are not resident: the planner may abandon a slot before it was ranked.
                policy.remove(SlotId(*block));
                resident.retain(|b| b != block);
            }
            Step::Victim(mask, leaves) => {
                let may = |slot: SlotId| mask & (1 << slot.0) != 0;
                let chosen = policy.victim(Nanos(time), &mut { may }).map(|slot| slot.0);
                let evictable: Vec<u32> = resident.iter().copied().filter(|b| may(SlotId(*b))).collect();
                victim(chosen, &evictable)?;
                if let Some(slot) = chosen.filter(|_| *leaves) {
                    policy.remove(SlotId(slot));
                    resident.retain(|b| *b != slot);
                }
            }
        }
        let mut visited = Vec::new();
        policy.coldest(&mut |slot| {
            visited.push(slot.0);
            true
        });
        order(&visited, &resident)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn many_victims_at_once_are_those_that_may_leave(
        steps in prop::collection::vec(step(), 1..80),
        mask in any::<u64>(),
        many in 0..BLOCKS as usize,
    ) {
        for kind in PolicyKind::ALL {
            let mut policy = build(kind, BLOCKS as usize);
            let mut resident = Vec::new();
            drive(policy.as_mut(), &steps, |_, _| Ok(()), |_, now| {
                resident = now.to_vec();
                Ok(())
            })?;
            // A leaf may leave unless the mask pins it; its parent may once its children are gone.
            let before = resident.clone();
            let mut gone = Vec::new();
            let taken = policy.evict(Nanos(99), many, &mut |slot| {
                let leaf = !resident.iter().any(|b| *b != slot.0 && *b / 2 == slot.0);
                let may = leaf && mask & (1 << slot.0) == 0;
                if may {
                    resident.retain(|b| *b != slot.0);
                    gone.push(slot.0);
                }
                may
            });
            prop_assert_eq!(taken, gone.len());
            let leaf = |b: &u32| !resident.iter().any(|c| c != b && c / 2 == *b) && mask & (1 << b) == 0;
            prop_assert!(taken == many || !resident.iter().any(leaf), "{kind} left some that may leave");
            if kind == PolicyKind::Lru && mask == 0 && taken > 0 {
                let first = before.iter().find(|b| !before.iter().any(|c| c != *b && c / 2 == **b));
                prop_assert_eq!(gone.first(), first);
            }
            let mut left = Vec::new();
            policy.coldest(&mut |slot| { left.push(slot.0); true });
            left.sort_unstable();
            resident.sort_unstable();
            prop_assert_eq!(left, resident, "{}", kind);
        }
    }

    #[test]
    fn victims_are_evictable_and_every_resident_block_is_ranked_once(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        for kind in PolicyKind::ALL {
            drive(
                build(kind, BLOCKS as usize).as_mut(),
                &steps,
                |chosen, evictable| {
                    prop_assert_eq!(chosen.is_some(), !evictable.is_empty(), "{}", kind);
                    prop_assert!(chosen.is_none_or(|slot| evictable.contains(&slot)), "{}: {:?}", kind, chosen);
                    Ok(())
                },
                |visited, resident| {
                    let (mut visited, mut resident) = (visited.to_vec(), resident.to_vec());
                    visited.sort_unstable();
                    resident.sort_unstable();
                    prop_assert_eq!(visited, resident, "{}", kind);
                    Ok(())
                },
            )?;
        }
    }

    #[test]
    fn lru_is_the_list_sorted_by_last_use(steps in prop::collection::vec(step(), 1..80)) {
        drive(
            build(PolicyKind::Lru, BLOCKS as usize).as_mut(),
            &steps,
            |chosen, evictable| {
                prop_assert_eq!(chosen, evictable.first().copied());
                Ok(())
            },
            |visited, resident| {
                prop_assert_eq!(visited, resident);
                Ok(())
            },
        )?;
    }

    #[test]
    fn nothing_beats_the_optimum(seed in any::<u64>(), capacity in 0_usize..300) {
        let trace = chat::conversations(seed, 60);
        let best = optimum(&trace).hits(capacity);
        for kind in PolicyKind::ALL {
            let hits = hits(&trace, capacity, kind);
            prop_assert!(hits <= best, "{}: {} > {}", kind, hits, best);
        }
    }
}

#[test]
fn visiting_stops_when_asked_to() {
    for kind in PolicyKind::ALL {
        let mut policy = build(kind, 8);
        (0..8).for_each(|b| policy.insert(SlotId(b), &touch(b, 0)));
        let mut visited = 0;
        policy.coldest(&mut |_| {
            visited += 1;
            visited < 3
        });
        assert_eq!(visited, 3, "{kind}");
    }
}

#[test]
fn slots_outside_the_capacity_are_ignored() {
    for kind in PolicyKind::ALL {
        for capacity in [0, 2] {
            let mut policy = build(kind, capacity);
            policy.insert(SlotId(7), &touch(7, 0));
            policy.hit(SlotId(u32::MAX), &touch(7, 0));
            policy.remove(SlotId(7));
            assert_eq!(policy.victim(Nanos(0), &mut |_| true), None, "{kind}");
        }
    }
}

#[test]
fn a_cache_that_holds_everything_has_every_hit() {
    let trace = chat::conversations(1, 200);
    let optimum = optimum(&trace);
    let all = optimum.unique_blocks();
    for kind in PolicyKind::ALL {
        assert_eq!(hits(&trace, all, kind), (optimum.block_uses() - all) as u64, "{kind}");
    }
}

/// Agent loops: one at a time, each step repeats the whole context and adds to it. LRU is optimal.
#[test]
fn no_policy_spoils_a_workload_that_lru_serves_optimally() {
    let mut trace = Trace::default();
    for session in 0..30_u64 {
        for step in 1..=20 {
            trace.push(Nanos::from_millis(step), session * 1000..session * 1000 + 30 + step * 5);
        }
    }
    let optimum = optimum(&trace);
    for capacity in [20, 150, 1000] {
        for kind in PolicyKind::ALL {
            assert_eq!(hits(&trace, capacity, kind), optimum.hits(capacity), "{kind} at {capacity}");
        }
    }
}

#[test]
fn the_default_beats_every_fixed_rule_where_room_is_scarce() {
    for seed in 1..=3 {
        let trace = chat::conversations(seed, 4000);
        let optimum = optimum(&trace);
        for percent in [1, 2, 5] {
            let capacity = optimum.unique_blocks() * percent / 100;
            let adaptive = hits(&trace, capacity, PolicyKind::Adaptive);
            for kind in [PolicyKind::Lru, PolicyKind::S3Fifo, PolicyKind::HitReward] {
                let fixed = hits(&trace, capacity, kind);
                assert!(adaptive > fixed, "{adaptive} <= {fixed} of {kind} at {percent} %, seed {seed}");
            }
        }
        // With room for every live conversation recency alone is perfect, and learning costs next to nothing.
        let capacity = optimum.unique_blocks() / 10;
        let (adaptive, best) = (hits(&trace, capacity, PolicyKind::Adaptive), optimum.hits(capacity));
        assert!(adaptive * 1000 >= best * 998, "{adaptive} of {best}, seed {seed}");
    }
}

#[test]
fn the_default_needs_no_timestamps() {
    let timed = chat::conversations(5, 1000);
    let mut timeless = chat::conversations(5, 1000);
    timeless.requests.iter_mut().for_each(|r| r.now = Nanos(0));
    assert_eq!(hits(&timed, 500, PolicyKind::Adaptive), hits(&timeless, 500, PolicyKind::Adaptive));
}

#[test]
fn names_are_parsed_as_they_are_printed() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
        assert_eq!(build(kind, 1).name(), kind.name());
    }
    let error = "mru".parse::<PolicyKind>().map_err(|e| e.to_string());
    assert_eq!(
        error,
        Err("no eviction policy is called \"mru\": choose one of adaptive, lru, hit-reward, s3fifo"
            .to_owned())
    );
}
