//! The planner alone, on virtual time: sessions whose chains fill much of a small HBM tier, so that each
//! request pins nearly all that it would have to evict. Time per block should not depend on the size.

#![allow(clippy::unwrap_used)] // a bench that cannot go on has nothing to say

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kv_core::Verified;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::planner::{Outbox, Planner, PlannerConfig};
use kv_core::policy::PolicyKind;
use kv_core::units::{Bytes, Epoch, Nanos};
use kvtier_benches::SplitMix64;

const REQUESTS: usize = 100;
const SESSIONS: u64 = 12;

/// Every request is a session's chain, grown by some blocks; a session starts over before it outgrows `hbm`.
fn requests(hbm: usize) -> Vec<Vec<BlockKey>> {
    let mut rng = SplitMix64::new(1);
    let mut sessions = vec![Vec::new(); SESSIONS as usize];
    let one = |_| {
        let session: &mut Vec<BlockKey> = &mut sessions[rng.below(SESSIONS) as usize];
        if session.len() > hbm * 9 / 10 {
            session.clear();
        }
        for _ in 0..hbm / 20 {
            let key = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
            session.push(BlockKey::from_bytes(key.to_le_bytes()));
        }
        session.clone()
    };
    (0..REQUESTS).map(one).collect()
}

fn replay(mut planner: Planner, requests: &[Vec<BlockKey>]) -> Planner {
    let mut out = Outbox::default();
    let namespace = planner.namespace(NamespaceId::default(), Fingerprint::default(), Epoch(0)).unwrap();
    for (now, keys) in (0..).map(Nanos).zip(requests) {
        let request = planner.acquire(now, namespace, keys, Nanos::NEVER, &mut out).unwrap();
        work(&mut planner, now, &mut out);
        let granted = out.replies.pop().unwrap().granted;
        planner.commit(now, request, granted, &mut out).unwrap();
        work(&mut planner, now, &mut out);
    }
    planner
}

/// Every job ends well at once.
fn work(planner: &mut Planner, now: Nanos, out: &mut Outbox) {
    while let Some(job) = out.jobs.pop() {
        let done = Verified::by_status(job.id, 0, 0).map_err(Into::into);
        planner.complete(now, job.id, done, out);
    }
    out.events.clear();
}

fn long_chains(criterion: &mut Criterion) {
    for policy in PolicyKind::ALL {
        let mut group = criterion.benchmark_group(format!("long chains/{policy}"));
        for hbm in [1000_u32, 8000] {
            let requests = requests(hbm as usize);
            let config = PlannerConfig {
                hbm_slots: hbm,
                host_slots: 2 * hbm,
                log: None,
                record_bytes: Bytes(4096),
                policy,
                nvme_budget: None,
                max_write_backs: 1,
                slow: None,
            };
            let blocks: usize = requests.iter().map(Vec::len).sum();
            group.throughput(Throughput::Elements(blocks as u64)).sample_size(10);
            group.bench_function(BenchmarkId::from_parameter(hbm), |b| {
                let new = || Planner::new(config.clone()).unwrap();
                b.iter_batched(new, |planner| replay(planner, &requests), BatchSize::PerIteration);
            });
        }
        group.finish();
    }
}

criterion_group!(benches, long_chains);
criterion_main!(benches);
