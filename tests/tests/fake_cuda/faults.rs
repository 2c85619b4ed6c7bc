//! Planned failures, and what is left behind.

use kv_cuda::kernels::MODULES;
use kvtier_tests::fake_cuda::Live;

use crate::gpu::*;
use crate::kernels::load;

#[test]
fn the_kth_call_fails() {
    let gpu = Gpu::new();
    let (stream, device) = (gpu.stream(), gpu.alloc(8));
    let fill = || cuMemsetD8Async(device, 1, 8, stream);
    gpu.fake.fail_once("cuMemsetD8Async", 2, 999);
    assert_eq!([fill(), fill(), fill()], [0, 999, 0]);
    assert_eq!(gpu.fake.live().queued, 2, "a call that failed did nothing");
    gpu.fake.fail_from("*", 3, 46);
    assert_eq!([fill(), cuStreamQuery(stream), fill(), cuStreamSynchronize(stream)], [0, 600, 46, 46]);
    assert_eq!(gpu.fake.count("cuMemsetD8Async"), 5);
}

#[test]
fn a_device_dies_at_the_kth_operation() {
    let gpu = Gpu::new();
    let (stream, device, event) = (gpu.stream(), gpu.alloc(8), gpu.event());
    gpu.fake.die_at_op(3, 214);
    for value in 1..=5 {
        ok(cuMemsetD8Async(device, value, 8, stream));
    }
    ok(cuEventRecord(event, stream));
    assert_eq!(cuEventSynchronize(event), 214);
    assert_eq!(gpu.peek(device), 2);
    assert_eq!(gpu.fake.ops().len(), 2);
    assert_eq!([cuEventQuery(event), cuMemsetD8Async(device, 1, 8, stream)], [214, 214]);
    // What is given back is given back all the same.
    assert_eq!([cuMemFree_v2(device), cuEventDestroy_v2(event), cuStreamDestroy_v2(stream)], [214; 3]);
    ok(cuDevicePrimaryCtxRelease_v2(0));
    assert_eq!((gpu.fake.live(), gpu.fake.violations()), (Live::default(), Vec::new()));
}

#[test]
fn a_stalled_device_hangs_until_it_resumes() {
    let gpu = Gpu::new();
    let (stream, device) = (gpu.stream(), gpu.alloc(8));
    let mut context = 0;
    ok(cuDevicePrimaryCtxRetain(&raw mut context, 0));
    ok(cuMemsetD8Async(device, 1, 8, stream));
    gpu.fake.stall();
    assert_eq!([cuStreamQuery(stream), cuStreamQuery(stream)], [600; 2]);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            ok(cuCtxSetCurrent(context));
            cuStreamSynchronize(stream)
        });
        let meanwhile = (cuStreamQuery(stream), gpu.peek(device));
        gpu.fake.resume();
        assert_eq!(waiter.join().unwrap(), 0);
        assert_eq!(meanwhile, (600, POISON));
    });
    assert_eq!(gpu.peek(device), 1);
}

#[test]
fn a_stalled_device_that_dies_lets_its_waiters_go() {
    let gpu = Gpu::new();
    let (stream, device) = (gpu.stream(), gpu.alloc(8));
    ok(cuMemsetD8Async(device, 1, 8, stream));
    gpu.fake.stall();
    std::thread::scope(|scope| {
        scope.spawn(|| gpu.fake.die_at_op(0, 719));
        assert_eq!(cuStreamSynchronize(stream), 719);
    });
}

#[test]
fn what_is_not_given_back_is_counted() {
    let gpu = Gpu::new();
    let (stream, device, event, host) = (gpu.stream(), gpu.alloc(100), gpu.event(), gpu.pinned(8));
    let module = load(MODULES[0].ptx).unwrap();
    let mut own = vec![0u8; 8];
    ok(cuMemHostRegister_v2(own.as_mut_ptr(), 8, 0));
    let all = Live {
        contexts: 1,
        streams: 1,
        events: 1,
        modules: 1,
        device_allocations: 1,
        device_bytes: 100,
        pinned_allocations: 1,
        registrations: 1,
        imports: 0,
        queued: 0,
    };
    assert_eq!(gpu.fake.live(), all);
    ok(cuModuleUnload(module));
    ok(cuMemHostUnregister(own.as_mut_ptr()));
    ok(cuEventDestroy_v2(event));
    ok(cuMemFreeHost(host.as_mut_ptr()));
    ok(cuMemFree_v2(device));
    ok(cuDevicePrimaryCtxRelease_v2(0));
    assert_eq!(gpu.fake.live(), Live { streams: 1, ..Live::default() });
    assert_eq!(gpu.fake.violations(), ["a context ended with 1 streams in it"]);
    assert_eq!(cuStreamDestroy_v2(stream), 709);
}

#[test]
fn a_context_is_needed() {
    let gpu = Gpu::new();
    let mut address = 0;
    ok(cuCtxSetCurrent(0));
    assert_eq!(cuMemAlloc_v2(&raw mut address, 8), 201);
    let other = std::thread::scope(|scope| scope.spawn(|| cuStreamQuery(0)).join().unwrap());
    assert_eq!(other, 201, "a context is current in one thread");
    gpu.fake.configure(|s| s.devices = 0);
    assert_eq!(cuInit(0), 100);
}
