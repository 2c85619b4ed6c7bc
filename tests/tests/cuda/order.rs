//! Copies come after what the runtime had queued, and urgent ones before others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::job::Urgency;
use kv_core::layout::Arrangement;
use kv_cuda::Direction::{ToDevice, ToHost};
use kv_cuda::HostMemory;
use kv_cuda::cuda::{CudaConfig, Method, PoolMemory};
use kv_cuda::driver::{
    Context, CopyList, DeviceBuffer, Driver, PinnedBuffer, Stream, StreamPriority, Submission,
};
use kvtier_tests::fake_cuda::FakeCuda;

use crate::bench::{Bench, METHODS, flat, forced, pattern, pool};

/// A runtime: its stream, its tensor, and pinned memory of its own.
struct Runtime {
    stream: Stream,
    tensor: Arc<DeviceBuffer>,
    pinned: PinnedBuffer,
    context: Arc<Context>,
}

impl Runtime {
    fn new(bytes: usize) -> Self {
        let context = Context::new(Driver::load().unwrap(), 0).unwrap();
        let current = context.enter().unwrap();
        let stream = Stream::new(&current, StreamPriority::High).unwrap();
        let tensor = Arc::new(DeviceBuffer::new(&current, bytes).unwrap());
        let pinned = PinnedBuffer::new(&current, bytes).unwrap();
        Self { stream, tensor, pinned, context }
    }

    /// Queues a copy between its tensor and its pinned memory, and waits for nothing.
    fn queue(&self, direction: kv_cuda::Direction) {
        let current = self.context.enter().unwrap();
        let mut list = CopyList::default();
        list.push(self.tensor.at(), self.pinned.base().addr().get() as u64, self.tensor.bytes());
        // SAFETY: both live as long as the stream, which is synchronised before they go.
        unsafe { self.stream.copy(&current, direction, &mut list, Submission::Loop) }.unwrap();
    }

    fn pinned(&self, bytes: &[u8]) {
        // SAFETY: nothing that uses it is queued.
        unsafe { self.pinned.base().as_ptr().copy_from(bytes.as_ptr(), bytes.len()) };
    }

    fn pinned_bytes(&self) -> Vec<u8> {
        // SAFETY: nothing that uses it is queued.
        unsafe { std::slice::from_raw_parts(self.pinned.base().as_ptr(), self.pinned.size()) }.to_vec()
    }
}

/// One block in the runtime's tensor; copies wait for the runtime's stream if `ordered`.
fn on_runtime(
    runtime: &Runtime,
    method: Method,
    ordered: bool,
    fake: kvtier_tests::fake_cuda::Alone,
) -> Bench {
    let mut config = forced(method);
    config.tuning.calibration = Some(flat());
    config.pool = PoolMemory::Borrow { buffers: vec![runtime.tensor.at()], owner: runtime.tensor.clone() };
    if ordered {
        config.runtime_streams = vec![runtime.stream.handle()];
    }
    Bench::try_new(pool(2, 1, Arrangement::BlockOutermost), config, 1, fake).unwrap()
}

fn bytes() -> usize {
    pool(2, 1, Arrangement::BlockOutermost).buffer_bytes()
}

#[test]
fn a_store_brings_what_the_runtime_queued_before() {
    for (method, ordered) in METHODS.into_iter().flat_map(|method| [(method, true), (method, false)]) {
        let fake = FakeCuda::load().alone();
        let runtime = Runtime::new(bytes());
        let bench = on_runtime(&runtime, method, ordered, fake);
        let computed = pattern(bytes(), 5);
        runtime.pinned(&computed);
        runtime.queue(ToDevice);
        bench.submit(&[bench.copy(1, ToHost, 0, 0)], Urgency::WriteBack);
        bench.finish(1);
        // Without the wait the fake driver shows the old bytes: the test sees the difference.
        assert_eq!(bench.host(0) == computed, ordered, "{method}");
        runtime.stream.synchronize().unwrap();
        drop(runtime);
        bench.close();
    }
}

#[test]
fn a_load_waits_until_the_runtime_has_read_the_old_bytes() {
    for method in METHODS {
        let fake = FakeCuda::load().alone();
        let runtime = Runtime::new(bytes());
        let bench = on_runtime(&runtime, method, true, fake);
        let old = pattern(bytes(), 6);
        runtime.pinned(&old);
        runtime.queue(ToDevice);
        runtime.stream.synchronize().unwrap();
        runtime.pinned(&vec![0; bytes()]);
        let new = bench.fill_host(0, 7);
        runtime.queue(ToHost);
        bench.submit(&[bench.copy(1, ToDevice, 0, 0)], Urgency::Demand);
        bench.finish(1);
        runtime.stream.synchronize().unwrap();
        assert!(runtime.pinned_bytes() == old, "{method}: the runtime read the new bytes too early");
        assert!(bench.hbm(0) == new, "{method}");
        drop(runtime);
        bench.close();
    }
}

/// The stream can also be named with the call.
#[test]
fn streams_of_the_caller_are_honoured() {
    let fake = FakeCuda::load().alone();
    let runtime = Runtime::new(bytes());
    let bench = on_runtime(&runtime, Method::EngineBatch, false, fake);
    let computed = pattern(bytes(), 9);
    runtime.pinned(&computed);
    runtime.queue(ToDevice);
    let copy = bench.copy(1, ToHost, 0, 0);
    // SAFETY: the block and the span are used by nobody else; the stream lives.
    unsafe { bench.device.submit_after(&[copy], Urgency::Demand, &[runtime.stream.handle()]) }.unwrap();
    bench.finish(1);
    assert!(bench.host(0) == computed);
    runtime.stream.synchronize().unwrap();
    drop(runtime);
    bench.close();
}

/// A demand copy waits for the write-backs that the GPU was already given, four megabytes, not for all.
#[test]
fn demand_overtakes_write_backs() {
    for method in METHODS {
        // Kernels are given more at once, because they do not stand in anybody's queue.
        let direct = matches!(method, Method::Kernel { .. } | Method::Bulk { .. });
        let at_once = if direct { 32 << 20 } else { 4 << 20 };
        let blocks = 4 * at_once / (128 << 10);
        let mut config = forced(method);
        config.tuning.calibration = Some(flat());
        let bench = Bench::new(pool(4, blocks as u32, Arrangement::KvOuter), config, blocks);
        let first = blocks - 1;
        bench.fake.stall();
        let stores: Vec<_> = (0..first).map(|at| bench.copy(at as u64, ToHost, at as u32, at)).collect();
        bench.submit(&stores, Urgency::WriteBack);
        // The GPU has all that it is given at once.
        let since = Instant::now();
        while bench.fake.live().queued == 0 && since.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(20));
        bench.submit(&[bench.copy(1000, ToHost, first as u32, first)], Urgency::Demand);
        bench.fake.resume();
        let mut before = 0;
        loop {
            let (job, result) = bench.next();
            assert_eq!(result, Ok(()));
            if job.0 == 1000 {
                break;
            }
            before += 1;
        }
        assert!(before * bench.block <= 2 * at_once, "{method}: {before} of {first} blocks went before");
        assert!(first * bench.block > 3 * at_once, "the test has enough to overtake");
        bench.finish(first - before);
        bench.close();
    }
}

/// What a transfer measured changes the next choice: a method that turns out slow is left.
#[test]
fn a_method_that_turns_out_slow_is_left() {
    let mut config = CudaConfig::new(0).unwrap();
    // The calibration says that the loop is the fastest; the fake driver's clock says otherwise.
    let mut calibration = flat();
    for costs in [&mut calibration.to_device, &mut calibration.to_host] {
        costs.engine_loop.fixed = 1e-9;
        costs.engine_loop.run = kv_cuda::cuda::Curve::new([(4096, 1e-8), (1 << 20, 2e-7)]);
    }
    config.tuning.calibration = Some(calibration);
    let bench = Bench::new(pool(4, 64, Arrangement::KvOuter), config, 64);
    let explain = || bench.device.explain(ToDevice, Urgency::Demand, 64);
    assert_eq!(explain().chosen, Method::EngineLoop);
    let loads: Vec<_> = (0..64).map(|at| bench.copy(at, ToDevice, at as u32, at as usize)).collect();
    for _ in 0..40 {
        bench.submit(&loads, Urgency::Demand);
        bench.finish(64);
    }
    let after = explain();
    assert_ne!(after.chosen, Method::EngineLoop, "{after}");
    let of_loop = after.candidates.iter().find(|candidate| candidate.method == Method::EngineLoop).unwrap();
    assert!(of_loop.correction > 2.0, "{after}");
    bench.close();
}
