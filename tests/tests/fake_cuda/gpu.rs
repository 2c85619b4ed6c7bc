//! The driver's functions and one device, for a test.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys;
use kvtier_tests::fake_cuda::{Alone, FakeCuda};

pub const NON_BLOCKING: c_uint = 1;
/// What fresh memory holds.
pub const POISON: u8 = 0xA5;

/// Declares wrappers that look a driver function up and call it.
macro_rules! driver {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {$(
        #[allow(clippy::too_many_arguments)] // as many as the driver has
        pub fn $name($($arg: $type),*) -> i32 {
            type Function = unsafe extern "C" fn($($type),*) -> i32;
            // SAFETY: the symbol has this type in cuda.h; the fake driver checks handles and ranges itself.
            unsafe { (*sys::culib().get::<Function>(stringify!($name).as_bytes()).unwrap())($($arg),*) }
        }
    )*};
}

pub type Handle = usize;

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

pub fn ok(result: i32) {
    assert_eq!(result, 0);
}

/// The driver for one test, with its first device's context current.
pub struct Gpu {
    pub fake: Alone,
}

impl Gpu {
    pub fn new() -> Self {
        let fake = FakeCuda::load().alone();
        ok(cuInit(0));
        let mut context = 0;
        ok(cuDevicePrimaryCtxRetain(&raw mut context, 0));
        ok(cuCtxSetCurrent(context));
        Self { fake }
    }

    pub fn stream(&self) -> Handle {
        let mut stream = 0;
        ok(cuStreamCreateWithPriority(&raw mut stream, NON_BLOCKING, 0));
        stream
    }

    pub fn event(&self) -> Handle {
        let mut event = 0;
        ok(cuEventCreate(&raw mut event, 0));
        event
    }

    pub fn recorded(&self, stream: Handle) -> Handle {
        let event = self.event();
        ok(cuEventRecord(event, stream));
        event
    }

    pub fn alloc(&self, bytes: usize) -> u64 {
        let mut address = 0;
        ok(cuMemAlloc_v2(&raw mut address, bytes));
        address
    }

    pub fn peek(&self, address: u64) -> u8 {
        self.fake.peek(address, 1).unwrap()[0]
    }

    /// Pinned memory. Leaves its freeing to the reset.
    pub fn pinned(&self, bytes: usize) -> &'static mut [u8] {
        let mut p = null_mut();
        ok(cuMemHostAlloc(&raw mut p, bytes, 0));
        // SAFETY: the driver has just given out so many bytes; tests do not use them after freeing them.
        unsafe { std::slice::from_raw_parts_mut(p, bytes) }
    }

    /// Streams in which operations have run, in the order of their running.
    pub fn order(&self) -> Vec<Handle> {
        self.fake.ops().iter().map(|op| usize::try_from(op.stream).unwrap()).collect()
    }
}
