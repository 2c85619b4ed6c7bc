//! The fake CUDA driver, spoken to as `kv-cuda` speaks to a real one: through the driver's own functions,
//! looked up in the library that cudarc finds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(non_snake_case)] // functions of the driver keep their names

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys;
use kvtier_tests::fake_cuda::{Alone, FakeCuda, Live};

const NON_BLOCKING: c_uint = 1;
const POISON: u8 = 0xA5;

/// Declares wrappers that look a driver function up and call it.
macro_rules! driver {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {$(
        #[allow(clippy::too_many_arguments)] // as many as the driver has
        fn $name($($arg: $type),*) -> i32 {
            type Function = unsafe extern "C" fn($($type),*) -> i32;
            // SAFETY: the symbol has this type in cuda.h; the fake driver checks handles and ranges itself.
            unsafe { (*sys::culib().get::<Function>(stringify!($name).as_bytes()).unwrap())($($arg),*) }
        }
    )*};
}

type Handle = usize;

driver! {
    cuInit(flags: c_uint);
    cuDevicePrimaryCtxRetain(out: *mut Handle, device: c_int);
    cuDevicePrimaryCtxRelease_v2(device: c_int);
    cuCtxSetCurrent(context: Handle);
    cuStreamCreateWithPriority(out: *mut Handle, flags: c_uint, priority: c_int);
    cuStreamDestroy_v2(stream: Handle);
    cuStreamSynchronize(stream: Handle);
    cuStreamQuery(stream: Handle);
    cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint);
    cuEventCreate(out: *mut Handle, flags: c_uint);
    cuEventDestroy_v2(event: Handle);
    cuEventRecord(event: Handle, stream: Handle);
    cuEventQuery(event: Handle);
    cuEventSynchronize(event: Handle);
    cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle);
    cuMemAlloc_v2(out: *mut u64, bytes: usize);
    cuMemFree_v2(address: u64);
    cuMemHostAlloc(out: *mut *mut u8, bytes: usize, flags: c_uint);
    cuMemFreeHost(p: *mut u8);
    cuMemHostRegister_v2(p: *mut u8, bytes: usize, flags: c_uint);
    cuMemHostUnregister(p: *mut u8);
    cuMemcpyHtoDAsync_v2(dst: u64, src: *const u8, bytes: usize, stream: Handle);
    cuMemcpyDtoHAsync_v2(dst: *mut u8, src: u64, bytes: usize, stream: Handle);
    cuMemcpyDtoDAsync_v2(dst: u64, src: u64, bytes: usize, stream: Handle);
    cuMemcpyAsync(dst: u64, src: u64, bytes: usize, stream: Handle);
    cuMemsetD8Async(dst: u64, value: u8, bytes: usize, stream: Handle);
    cuMemcpyBatchAsync(
        dsts: *mut u64, srcs: *mut u64, sizes: *mut usize, count: usize, attributes: *mut sys::CUmemcpyAttributes,
        first_of: *mut usize, attributes_count: usize, failed: *mut usize, stream: Handle
    );
    cuModuleLoadData(out: *mut Handle, image: *const c_void);
    cuModuleUnload(module: Handle);
    cuModuleGetFunction(out: *mut Handle, module: Handle, name: *const c_char);
    cuLaunchKernel(
        function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void
    );
    cuPointerGetAttribute(out: *mut c_void, attribute: c_int, address: u64);
    cuIpcGetMemHandle(out: *mut sys::CUipcMemHandle, address: u64);
    cuIpcOpenMemHandle_v2(out: *mut u64, handle: sys::CUipcMemHandle, flags: c_uint);
    cuIpcCloseMemHandle(address: u64);
}

fn ok(result: i32) {
    assert_eq!(result, 0);
}

/// The driver for one test, with its first device's context current.
struct Gpu {
    fake: Alone,
}

impl Gpu {
    fn new() -> Self {
        let fake = FakeCuda::load().alone();
        ok(cuInit(0));
        let mut context = 0;
        ok(cuDevicePrimaryCtxRetain(&raw mut context, 0));
        ok(cuCtxSetCurrent(context));
        Self { fake }
    }

    fn stream(&self) -> Handle {
        let mut stream = 0;
        ok(cuStreamCreateWithPriority(&raw mut stream, NON_BLOCKING, 0));
        stream
    }

    fn event(&self) -> Handle {
        let mut event = 0;
        ok(cuEventCreate(&raw mut event, 0));
        event
    }

    fn recorded(&self, stream: Handle) -> Handle {
        let event = self.event();
        ok(cuEventRecord(event, stream));
        event
    }

    fn alloc(&self, bytes: usize) -> u64 {
        let mut address = 0;
        ok(cuMemAlloc_v2(&raw mut address, bytes));
        address
    }

    fn peek(&self, address: u64) -> u8 {
        self.fake.peek(address, 1).unwrap()[0]
    }

    /// Pinned memory. Leaves its freeing to the reset.
    fn pinned(&self, bytes: usize) -> &'static mut [u8] {
        let mut p = null_mut();
        ok(cuMemHostAlloc(&raw mut p, bytes, 0));
        // SAFETY: the driver has just given out so many bytes; tests do not use them after freeing them.
        unsafe { std::slice::from_raw_parts_mut(p, bytes) }
    }

    /// Streams in which operations have run, in the order of their running.
    fn order(&self) -> Vec<Handle> {
        self.fake.ops().iter().map(|op| usize::try_from(op.stream).unwrap()).collect()
    }
}

// ---- time -------------------------------------------------------------------------------------------

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

// ---- batches and kernels ----------------------------------------------------------------------------

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

#[repr(C)]
struct Divisor(u32, u32, u32);

/// `kv_zero_args` for whole blocks of one run; see `kernels/kv_kernels.h`.
#[repr(C)]
struct ZeroArgs {
    buffers: u64,
    step: [u64; 4],
    buffer_step: [u32; 4],
    count: [Divisor; 4],
    run: Divisor,
    block: Divisor,
    first_run: u32,
    vector_bytes: u32,
    blocks: u64,
    num_blocks: u32,
    reserved: u32,
}

fn zero_args(blocks: u64, num_blocks: u32, block_bytes: u32) -> ZeroArgs {
    // Divisors by powers of two: a multiplier of 0 and a shift.
    let divisor = |n: u32| Divisor(n, 0, n.trailing_zeros());
    ZeroArgs {
        buffers: 0,
        step: [0; 4],
        buffer_step: [0; 4],
        count: [1; 4].map(divisor),
        run: divisor(block_bytes / 16),
        block: divisor(block_bytes / 16),
        first_run: 0,
        vector_bytes: 16,
        blocks,
        num_blocks,
        reserved: 0,
    }
}

const PTX: &CStr = c"// Generated by hand
.version 8.4
.target sm_80
.address_size 64
.visible .entry kv_zero(
\t.param .align 8 .b8 kv_zero_param_0[136]
)
{ ret; }
.visible .entry kv_not_compiled_for_the_host() { ret; }
// .visible .entry commented_out() { ret; }
";

fn load(image: &CStr) -> Result<Handle, i32> {
    let mut module = 0;
    match cuModuleLoadData(&raw mut module, image.as_ptr().cast()) {
        0 => Ok(module),
        code => Err(code),
    }
}

fn function(module: Handle, name: &CStr) -> Result<Handle, i32> {
    let mut function = 0;
    match cuModuleGetFunction(&raw mut function, module, name.as_ptr()) {
        0 => Ok(function),
        code => Err(code),
    }
}

fn launch(function: Handle, args: &mut ZeroArgs, stream: Handle) -> i32 {
    let mut params = [(&raw mut *args).cast::<c_void>()];
    cuLaunchKernel(function, 1, 1, 1, 128, 1, 1, 0, stream, params.as_mut_ptr(), null_mut())
}

#[test]
fn a_launch_takes_its_argument_at_once_and_runs_later() {
    let gpu = Gpu::new();
    let (stream, device, table) = (gpu.stream(), gpu.alloc(1024), gpu.pinned(32));
    table[..8].fill(0);
    table[8..16].copy_from_slice(&device.to_ne_bytes());
    table[16..24].fill(0);
    table[24..].copy_from_slice(&(device + 512).to_ne_bytes());
    let kernel = function(load(PTX).unwrap(), c"kv_zero").unwrap();
    let mut args = zero_args(table.as_ptr() as u64, 2, 256);
    ok(launch(kernel, &mut args, stream));
    args.num_blocks = 0;
    assert_eq!((gpu.peek(device), args.num_blocks), (POISON, 0));
    ok(cuStreamSynchronize(stream));
    let bytes = gpu.fake.peek(device, 1024).unwrap();
    let zeros: Vec<bool> = bytes.chunks(256).map(|part| part.iter().all(|&byte| byte == 0)).collect();
    assert_eq!(zeros, [true, false, true, false]);
    let op = &gpu.fake.ops()[0];
    assert_eq!((op.name.as_str(), op.bytes), ("kv_zero", 512));
    assert!(gpu.fake.violations().is_empty());
}

#[test]
fn a_kernel_with_a_wild_pointer_ends_the_device_and_not_the_process() {
    let gpu = Gpu::new();
    let (stream, device, table) = (gpu.stream(), gpu.alloc(256), gpu.pinned(16));
    ok(cuMemFree_v2(device));
    table[8..].copy_from_slice(&device.to_ne_bytes());
    let kernel = function(load(PTX).unwrap(), c"kv_zero").unwrap();
    ok(launch(kernel, &mut zero_args(table.as_ptr() as u64, 1, 256), stream));
    assert_eq!(cuStreamSynchronize(stream), 700);
    assert_eq!(gpu.fake.violations().len(), 1);
}

#[test]
fn modules_and_functions_are_checked() {
    let gpu = Gpu::new();
    let module = load(PTX).unwrap();
    assert_eq!(function(module, c"kv_copy_of_nothing"), Err(500));
    assert_eq!(function(module, c"commented_out"), Err(500));
    assert!(gpu.fake.violations().is_empty());
    assert_eq!(function(module, c"kv_not_compiled_for_the_host"), Err(500));
    assert_eq!(gpu.fake.violations().len(), 1);
    let kernel = function(module, c"kv_zero").unwrap();
    ok(cuModuleUnload(module));
    assert_eq!(launch(kernel, &mut zero_args(0, 0, 256), gpu.stream()), 400);

    assert_eq!(load(c"\x7fELF"), Err(200));
    assert_eq!(load(c"int main() {}"), Err(218));
    gpu.fake.configure(|s| s.driver_version = 12030);
    assert_eq!(load(PTX), Err(222));
    gpu.fake.configure(|s| (s.driver_version, s.compute_capability) = (12040, 75));
    assert_eq!(load(PTX), Err(209));
    gpu.fake.configure(|s| s.compute_capability = 80);
    assert!(load(PTX).is_ok());
    assert_eq!(load(c".version 8.0\n.target sm_90a\n"), Err(209));
}

// ---- memory -----------------------------------------------------------------------------------------

#[test]
fn memory_that_was_freed_before_a_copy_ran_is_caught() {
    for freed in ["device", "pinned", "registered", "beyond"] {
        let gpu = Gpu::new();
        let (stream, host, device) = (gpu.stream(), gpu.pinned(64), gpu.alloc(64));
        let mut own = vec![0u8; 64];
        ok(cuMemHostRegister_v2(own.as_mut_ptr(), 64, 0));
        let source = if freed == "registered" { own.as_ptr() } else { host.as_ptr() };
        let bytes = 64;
        ok(cuMemcpyHtoDAsync_v2(device + u64::from(freed == "beyond"), source, bytes, stream));
        match freed {
            "device" => ok(cuMemFree_v2(device)),
            "pinned" => ok(cuMemFreeHost(host.as_mut_ptr())),
            "registered" => ok(cuMemHostUnregister(own.as_mut_ptr())),
            _ => {}
        }
        assert_eq!(gpu.fake.violations(), Vec::<String>::new());
        assert_eq!(cuStreamSynchronize(stream), 700, "{freed}");
        assert_eq!(gpu.fake.violations().len(), 1, "{freed}");
        assert_eq!(cuStreamQuery(stream), 700, "sticky");
        let mut address = 0;
        assert_eq!(cuMemAlloc_v2(&raw mut address, 8), 700, "sticky");
    }
}

#[test]
fn device_addresses_are_not_used_twice() {
    let gpu = Gpu::new();
    let first = gpu.alloc(64);
    ok(cuMemFree_v2(first));
    assert_eq!(cuMemFree_v2(first), 1);
    let second = gpu.alloc(64);
    assert_ne!(first, second);
    assert_eq!(gpu.fake.peek(first, 1), None);
    assert_eq!(gpu.fake.peek(second, 64), Some(vec![POISON; 64]));
    drop(gpu);
    assert!(Gpu::new().alloc(64) > second, "not even after a reset");
}

#[test]
fn pageable_memory_in_a_copy_is_noted() {
    let gpu = Gpu::new();
    let (stream, device) = (gpu.stream(), gpu.alloc(64));
    let mut own = vec![9u8; 64];
    ok(cuMemcpyHtoDAsync_v2(device, own.as_ptr(), 64, stream));
    ok(cuStreamSynchronize(stream));
    assert_eq!(gpu.peek(device), 9, "staged, as the real one does");
    assert_eq!(gpu.fake.violations(), ["cuMemcpyHtoDAsync_v2: the host memory is not pinned"]);

    // A copy may not run over the edge of what is registered.
    ok(cuMemHostRegister_v2(own.as_mut_ptr(), 32, 0));
    assert_eq!(cuMemcpyHtoDAsync_v2(device, own.as_ptr(), 64, stream), 1);
    assert_eq!(cuMemHostRegister_v2(own[31..].as_mut_ptr(), 8, 0), 712);
    assert_eq!(cuMemHostUnregister(own[1..].as_mut_ptr()), 713);
    ok(cuMemHostUnregister(own.as_mut_ptr()));
}

#[test]
fn pointers_tell_where_they_belong() {
    let gpu = Gpu::new();
    let (device, host) = (gpu.alloc(640), gpu.pinned(64));
    let ask = |attribute, address| {
        let mut value = 0u64;
        (cuPointerGetAttribute((&raw mut value).cast(), attribute, address), value)
    };
    assert_eq!(ask(2, device + 100), (0, 2));
    assert_eq!(ask(2, host.as_ptr() as u64), (0, 1));
    assert_eq!(ask(9, device), (0, 0));
    assert_eq!(ask(11, device + 639), (0, device));
    assert_eq!(ask(12, device + 639), (0, 640));
    assert_eq!(ask(2, device + 640).0, 1);
    assert_eq!(ask(2, (&raw const gpu) as u64).0, 1, "the stack is nothing that CUDA knows");
}

#[test]
fn an_imported_allocation_is_the_same_bytes_elsewhere() {
    let gpu = Gpu::new();
    let (stream, device) = (gpu.stream(), gpu.alloc(5000));
    let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
    assert_eq!(cuIpcGetMemHandle(&raw mut handle, device + 256), 1, "not the base");
    ok(cuIpcGetMemHandle(&raw mut handle, device));
    let (mut import, mut again) = (0, 0);
    ok(cuIpcOpenMemHandle_v2(&raw mut import, handle, 1));
    ok(cuIpcOpenMemHandle_v2(&raw mut again, handle, 1));
    assert!(import != device && import == again);
    ok(cuMemsetD8Async(import + 4999, 3, 1, stream));
    ok(cuStreamSynchronize(stream));
    assert_eq!(gpu.peek(device + 4999), 3);

    ok(cuIpcCloseMemHandle(import));
    assert_eq!(gpu.fake.live().imports, 1);
    ok(cuIpcCloseMemHandle(import));
    assert_eq!((gpu.fake.live().imports, cuIpcCloseMemHandle(import)), (0, 1));

    ok(cuIpcOpenMemHandle_v2(&raw mut import, handle, 1));
    ok(cuMemFree_v2(device));
    assert_eq!(gpu.fake.violations().len(), 1, "freed under the importer");
    assert_eq!(cuIpcOpenMemHandle_v2(&raw mut again, handle, 1), 400);
    ok(cuMemsetD8Async(import, 3, 1, stream));
    assert_eq!(cuStreamSynchronize(stream), 700);
}

#[test]
fn a_device_has_only_so_much_memory() {
    let gpu = Gpu::new();
    gpu.fake.configure(|s| s.device_memory = 1000);
    let device = gpu.alloc(600);
    let mut address = 0;
    assert_eq!(cuMemAlloc_v2(&raw mut address, 401), 2);
    ok(cuMemFree_v2(device));
    gpu.alloc(1000);
}

// ---- faults -----------------------------------------------------------------------------------------

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
        assert_eq!(cuStreamQuery(stream), 600);
        assert_eq!(gpu.peek(device), POISON);
        gpu.fake.resume();
        assert_eq!(waiter.join().unwrap(), 0);
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
    let module = load(PTX).unwrap();
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

#[test]
fn copies_between_any_two_places() {
    let gpu = Gpu::new();
    let (stream, host, one, two) = (gpu.stream(), gpu.pinned(16), gpu.alloc(16), gpu.alloc(16));
    let address = host.as_ptr() as u64;
    host[..8].fill(1);
    ok(cuMemcpyAsync(one, address, 8, stream));
    ok(cuMemcpyDtoDAsync_v2(two, one, 8, stream));
    ok(cuMemcpyAsync(address + 8, two, 8, stream));
    ok(cuStreamSynchronize(stream));
    assert_eq!(host, [1; 16]);
    // Host memory where a device address belongs is what it would be on a device.
    ok(cuMemcpyDtoDAsync_v2(two, host.as_ptr() as u64, 8, stream));
    ok(cuStreamSynchronize(stream));
    assert!(gpu.fake.violations().is_empty());
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
