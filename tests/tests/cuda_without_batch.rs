//! A driver from before CUDA 12.8 has no batch copies: everything works without them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kv_core::job::Urgency;
use kv_core::layout::Arrangement;
use kv_cuda::Direction::{ToDevice, ToHost};
use kv_cuda::cuda::{CudaConfig, Method};
use kv_cuda::driver::Driver;
use kvtier_tests::fake_cuda::{FakeCuda, Variant};

#[path = "cuda/bench.rs"]
#[allow(dead_code)] // shared with the tests of newer drivers
mod bench;
use bench::{Bench, forced, pool};

#[test]
fn copies_are_made_one_by_one() {
    let alone = || {
        let fake = FakeCuda::load_variant(Variant::WithoutBatch).alone();
        fake.configure(|settings| settings.driver_version = 12_040);
        fake
    };
    let fake = alone();
    assert!(!Driver::load().unwrap().has_batch_copies());
    drop(fake);
    let measured = CudaConfig::new(0).unwrap();
    for config in [measured, forced(Method::Staged { ctas: 2 }), forced(Method::EngineBatch)] {
        let bench = Bench::try_new(pool(3, 16, Arrangement::KvOuter), config, 8, alone()).unwrap();
        let explained = bench.device.explain(ToDevice, Urgency::Demand, 8);
        assert!(explained.candidates.iter().all(|candidate| candidate.method != Method::EngineBatch));
        let expected: Vec<_> = (0..8).map(|host| bench.fill_host(host, host as u64 + 1)).collect();
        let loads: Vec<_> = (0..8).map(|at| bench.copy(at, ToDevice, at as u32 + 8, at as usize)).collect();
        bench.submit(&loads, Urgency::Demand);
        bench.finish(8);
        let stores: Vec<_> =
            (0..8).map(|at| bench.copy(at, ToHost, at as u32 + 8, 7 - at as usize)).collect();
        bench.submit(&stores, Urgency::WriteBack);
        bench.finish(8);
        for (at, bytes) in expected.iter().enumerate() {
            assert!(&bench.host(7 - at) == bytes, "block {at}");
        }
        assert_eq!(bench.fake.count("cuMemcpyBatchAsync"), 0);
        bench.close();
    }
}
