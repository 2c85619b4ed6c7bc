//! Many copies in one call.

use cudarc::driver::sys;

use crate::gpu::*;

/// Submits one batch; the result, and the copy to blame.
fn batch(copies: &[(u64, u64, usize)], order: sys::CUmemcpySrcAccessOrder, stream: Handle) -> (i32, usize) {
    let mut dsts: Vec<u64> = copies.iter().map(|copy| copy.0).collect();
    let mut srcs: Vec<u64> = copies.iter().map(|copy| copy.1).collect();
    let mut sizes: Vec<usize> = copies.iter().map(|copy| copy.2).collect();
    let hint = sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
    let mut attributes =
        sys::CUmemcpyAttributes { srcAccessOrder: order, srcLocHint: hint, dstLocHint: hint, flags: 0 };
    let (mut first_of, mut failed) = (0, 0);
    let result = cuMemcpyBatchAsync(
        dsts.as_mut_ptr(),
        srcs.as_mut_ptr(),
        sizes.as_mut_ptr(),
        copies.len(),
        &raw mut attributes,
        &raw mut first_of,
        1,
        &raw mut failed,
        stream,
    );
    (result, failed)
}

const IN_STREAM: sys::CUmemcpySrcAccessOrder =
    sys::CUmemcpySrcAccessOrder_enum::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
const DURING_CALL: sys::CUmemcpySrcAccessOrder =
    sys::CUmemcpySrcAccessOrder_enum::CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL;

#[test]
fn a_batch_is_one_operation() {
    let gpu = Gpu::new();
    let (host, device, stream) = (gpu.pinned(100), gpu.alloc(100), gpu.stream());
    host.iter_mut().enumerate().for_each(|(i, byte)| *byte = u8::try_from(i).unwrap());
    let src = host.as_ptr() as u64;
    let copies = [(device, src + 50, 10), (device + 10, src + 20, 10)];
    assert_eq!(batch(&copies, IN_STREAM, stream).0, 0);
    ok(cuStreamSynchronize(stream));
    let op = &gpu.fake.ops()[0];
    assert_eq!((op.descriptors, op.bytes), (2, 20));
    let settings = gpu.fake.settings();
    assert_eq!(op.end_ns - op.start_ns, settings.copy_latency_ns + 2 * settings.descriptor_ns);
    let expected: Vec<u8> = (50..60).chain(20..30).collect();
    assert_eq!(gpu.fake.peek(device, 20).unwrap(), expected);

    // The source of a batch that is read during the call is the caller's again.
    host.fill(1);
    assert_eq!(batch(&[(device, src, 10)], DURING_CALL, stream).0, 0);
    host.fill(2);
    ok(cuStreamSynchronize(stream));
    assert_eq!(gpu.peek(device), 1);
}

#[test]
fn a_batch_is_refused_as_the_reference_says() {
    let gpu = Gpu::new();
    let (host, device, stream) = (gpu.pinned(100), gpu.alloc(100), gpu.stream());
    let src = host.as_ptr() as u64;
    assert_eq!(batch(&[(device, src, 8)], IN_STREAM, 0).0, 1, "the legacy default stream");
    assert_eq!(batch(&[], IN_STREAM, stream).0, 1, "no copies");
    assert_eq!(batch(&[(device, src, 8), (device, src, 0)], IN_STREAM, stream), (1, 1), "an empty copy");
    let invalid = sys::CUmemcpySrcAccessOrder_enum::CU_MEMCPY_SRC_ACCESS_ORDER_INVALID;
    assert_eq!(batch(&[(device, src, 8)], invalid, stream), (1, usize::MAX));
    assert_eq!(gpu.fake.live().queued, 0);
}
