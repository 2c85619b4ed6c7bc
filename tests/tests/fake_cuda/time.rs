//! What runs when, and how long it takes.

use crate::gpu::*;

#[test]
fn nothing_runs_before_somebody_waits() {
    let gpu = Gpu::new();
    let (stream, host, device) = (gpu.stream(), gpu.pinned(64), gpu.alloc(64));
    host.fill(1);
    ok(cuMemcpyHtoDAsync_v2(device, host.as_ptr(), 64, stream));
    assert_eq!(gpu.peek(device), POISON, "submitted is not done");
    assert_eq!(gpu.fake.live().queued, 1);
    host.fill(2);
    ok(cuStreamSynchronize(stream));
    assert_eq!(gpu.peek(device), 2, "a copy reads its source when it runs");

    ok(cuMemcpyDtoHAsync_v2(host[..32].as_mut_ptr(), device, 32, stream));
    host.fill(3);
    ok(cuStreamSynchronize(stream));
    assert_eq!((host[31], host[32]), (2, 3));
}

#[test]
fn a_forgotten_wait_between_streams_gives_old_bytes() {
    for waits in [false, true] {
        let gpu = Gpu::new();
        let (writer, reader) = (gpu.stream(), gpu.stream());
        let (host, device) = (gpu.pinned(8), gpu.alloc(8));
        ok(cuMemsetD8Async(device, 7, 8, writer));
        let written = gpu.recorded(writer);
        if waits {
            ok(cuStreamWaitEvent(reader, written, 0));
        }
        ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), device, 8, reader));
        ok(cuStreamSynchronize(reader));
        assert_eq!(host[0], if waits { 7 } else { POISON });
    }
}

#[test]
fn a_seed_decides_what_runs_first() {
    let seen: std::collections::HashSet<Vec<bool>> = (1..20)
        .map(|seed| {
            let gpu = Gpu::new();
            gpu.fake.configure(|s| s.seed = seed);
            let (one, two, device) = (gpu.stream(), gpu.stream(), gpu.alloc(8));
            for stream in [one, two, one, two] {
                ok(cuMemsetD8Async(device, 1, 8, stream));
            }
            ok(cuStreamSynchronize(one));
            ok(cuStreamSynchronize(two));
            gpu.order().iter().map(|&stream| stream == one).collect()
        })
        .collect();
    assert!(seen.len() > 3, "{seen:?}");
    assert!(seen.iter().all(|order| order.len() == 4));
}

#[test]
fn a_copy_engine_works_in_order_of_submission_whatever_the_stream() {
    let gpu = Gpu::new();
    let (large, urgent, back) = (gpu.stream(), gpu.stream(), gpu.stream());
    let (host, device) = (gpu.pinned(300), gpu.alloc(300));
    for piece in 0..3 {
        ok(cuMemcpyHtoDAsync_v2(device + piece * 100, host.as_ptr(), 100, large));
    }
    ok(cuMemcpyHtoDAsync_v2(device, host.as_ptr(), 1, urgent));
    ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), device, 1, back));
    ok(cuStreamSynchronize(back));
    assert_eq!(gpu.order(), [back], "the other engine is free");
    ok(cuStreamSynchronize(urgent));
    assert_eq!(gpu.order(), [back, large, large, large, urgent]);
}

#[test]
fn a_copy_that_waits_for_an_event_holds_up_no_engine() {
    let gpu = Gpu::new();
    let (kernel, waiting, free) = (gpu.stream(), gpu.stream(), gpu.stream());
    let (host, device) = (gpu.pinned(8), gpu.alloc(8));
    ok(cuMemsetD8Async(device, 1, 8, kernel));
    ok(cuStreamWaitEvent(waiting, gpu.recorded(kernel), 0));
    ok(cuMemcpyHtoDAsync_v2(device, host.as_ptr(), 8, waiting));
    ok(cuMemcpyHtoDAsync_v2(device, host.as_ptr(), 8, free));
    ok(cuStreamSynchronize(free));
    assert_eq!(gpu.order(), [free]);
}

#[test]
fn a_query_carries_out_a_few_operations() {
    let gpu = Gpu::new();
    gpu.fake.configure(|s| s.ops_per_query = 3);
    let (stream, device) = (gpu.stream(), gpu.alloc(8));
    for _ in 0..7 {
        ok(cuMemsetD8Async(device, 1, 8, stream));
    }
    let last = gpu.recorded(stream);
    assert_eq!([cuEventQuery(last), cuEventQuery(last), cuEventQuery(last)], [600, 600, 0]);
    assert_eq!(gpu.fake.ops().len(), 7);
    assert_eq!(cuStreamQuery(stream), 0);
}

#[test]
fn an_event_stands_for_its_last_recording() {
    let gpu = Gpu::new();
    gpu.fake.configure(|s| s.ops_per_query = 0);
    let (stream, other, device, event) = (gpu.stream(), gpu.stream(), gpu.alloc(8), gpu.event());
    ok(cuEventQuery(event)); // never recorded
    ok(cuStreamWaitEvent(stream, event, 0));
    ok(cuStreamSynchronize(stream));
    ok(cuEventRecord(event, stream));
    ok(cuStreamWaitEvent(other, event, 0));
    ok(cuMemsetD8Async(device, 1, 8, stream));
    ok(cuEventRecord(event, stream));
    ok(cuStreamSynchronize(other));
    assert_eq!(gpu.fake.ops().len(), 0, "the first recording is what `other` waits for");
    assert_eq!(cuEventQuery(event), 600);
    ok(cuEventSynchronize(event));
    assert_eq!(gpu.fake.ops().len(), 1);
}

#[test]
fn the_legacy_default_stream_takes_turns_with_blocking_streams() {
    let gpu = Gpu::new();
    let (mut blocking, other) = (0, gpu.stream());
    ok(cuStreamCreateWithPriority(&raw mut blocking, 0, 0));
    let device = gpu.alloc(8);
    for stream in [0, other, blocking, 0] {
        ok(cuMemsetD8Async(device, 1, 8, stream));
    }
    ok(cuStreamSynchronize(0));
    assert_eq!(gpu.order(), [0, blocking, 0]);
}

#[test]
fn the_clock_follows_bytes_and_descriptors() {
    let gpu = Gpu::new();
    gpu.fake.configure(|s| {
        s.h2d_rate = 50_000;
        s.d2h_rate = 25_000;
        s.copy_latency_ns = 1000;
        s.descriptor_ns = 500;
    });
    const BYTES: usize = 5_000_000;
    let (host, device, stream) = (gpu.pinned(BYTES), gpu.alloc(BYTES), gpu.stream());
    let time = |copies: &dyn Fn()| {
        let start = gpu.recorded(stream);
        copies();
        let end = gpu.recorded(stream);
        let mut milliseconds = 0.0;
        assert_eq!(cuEventElapsedTime(&raw mut milliseconds, start, end), 600);
        ok(cuEventSynchronize(end));
        ok(cuEventElapsedTime(&raw mut milliseconds, start, end));
        (f64::from(milliseconds) * 1e6).round()
    };
    let h2d = |bytes| ok(cuMemcpyHtoDAsync_v2(device, host.as_ptr(), bytes, stream));
    assert_eq!(time(&|| h2d(BYTES)), 101_500.0);
    assert_eq!(
        time(&|| ok(cuMemcpyDtoHAsync_v2(host.as_ptr().cast_mut(), device, BYTES, stream))),
        201_500.0
    );
    // The latency of all but the first is hidden.
    assert_eq!(time(&|| (0..100).for_each(|_| h2d(5000))), 1000.0 + 100.0 * 600.0);
}

#[test]
fn threads_share_the_driver() {
    let gpu = Gpu::new();
    gpu.fake.configure(|s| s.seed = 1);
    let mut context = 0;
    ok(cuDevicePrimaryCtxRetain(&raw mut context, 0));
    std::thread::scope(|scope| {
        for value in 0..4u8 {
            let gpu = &gpu;
            scope.spawn(move || {
                ok(cuCtxSetCurrent(context));
                let (stream, host, device) = (gpu.stream(), gpu.pinned(64), gpu.alloc(64));
                for _ in 0..200 {
                    host.fill(value);
                    ok(cuMemcpyHtoDAsync_v2(device, host.as_ptr(), 64, stream));
                    let event = gpu.recorded(stream);
                    while cuEventQuery(event) == 600 {}
                    host.fill(POISON);
                    ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), device, 64, stream));
                    ok(cuStreamSynchronize(stream));
                    assert_eq!(host, [value; 64]);
                    ok(cuEventDestroy_v2(event));
                }
            });
        }
    });
    assert_eq!(gpu.fake.ops().len(), 4 * 200 * 2);
}
