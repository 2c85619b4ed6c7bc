//! The whole engine with its blocks of HBM on a CUDA device.

use kv_core::policy::PolicyKind;
use kv_core::units::Tokens;
use kv_cuda::DeviceChoice;
use kvtier_benches::generate::AgentTrace;
use kvtier_benches::replay::{Blocks, Replay, Workload};
use kvtier_tests::fake_cuda::FakeCuda;

#[test]
fn a_replay_with_real_bytes_runs_on_the_gpu() {
    let fake = FakeCuda::load().alone();
    // Thousands of copies are waited for one by one: each query does what there is to do.
    fake.configure(|settings| settings.ops_per_query = 10_000);
    let trace = AgentTrace { seed: 3, sessions: 6, block_tokens: 256, ..AgentTrace::default() };
    let workload = Workload::new(trace.requests().map(|r| r.request), Tokens(256));
    let hbm = workload.arrivals.iter().map(|a| a.keys.len()).max().unwrap() as u32;
    for device in [DeviceChoice::Auto, DeviceChoice::Cuda(0)] {
        let dir = tempfile::tempdir().unwrap();
        let replay = Replay {
            capacity: Blocks { hbm, host: hbm / 2, nvme: 4 * hbm },
            policy: PolicyKind::default(),
            nvme_budget: None,
            block_bytes: 16 << 10,
            seed: 1,
            real: Some(dir.path().to_owned()),
            device,
        };
        let report = replay.run(&workload, &mut |_| {}).unwrap();
        let how = report.timing.device_how.clone().unwrap();
        assert!(how.starts_with("GPU 0"), "{how}");
        assert_eq!((report.mismatches, report.lost_blocks, report.same_as_virtual), (0, 0, Some(true)));
        let by_tier = report.hits_by_tier;
        assert!(by_tier.hbm > 0 && by_tier.host > 0 && by_tier.nvme > 0, "{by_tier:?}");
        assert_eq!((fake.violations(), fake.live()), (Vec::new(), Default::default()));
    }
}
