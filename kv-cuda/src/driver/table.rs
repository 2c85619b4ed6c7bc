//! The driver's functions that kvtier calls, found by name at run time.
//!
//! cudarc opens the library and declares the types; the functions are looked up here, because cudarc's own
//! wrappers panic when a symbol is missing and turn status codes into a closed enum, which a newer driver's
//! codes would make undefined behaviour.

use std::ffi::{c_char, c_int, c_uint, c_void};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmemcpyAttributes, CUmodule, CUstream,
    CUuuid,
};

/// `CUresult` as a number: the set of codes grows with every driver.
pub(super) type Status = c_int;

/// Contents of a `CUipcMemHandle`, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct IpcMemHandle(pub(super) [u8; 64]);

macro_rules! table {
    ($($name:ident($($arg:ty),*);)*) => {
        /// Function pointers of a loaded driver. Names and signatures are those of `cuda.h` 12.4.
        #[allow(non_snake_case)]
        pub(super) struct Table {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) -> Status,)*
            /// Since CUDA 12.8, in the form with nine arguments, which 13.x still exports under this name.
            pub(super) cuMemcpyBatchAsync: Option<BatchAsync>,
        }

        impl Table {
            /// # Errors
            /// The name of a function that the driver does not have.
            ///
            /// # Safety
            /// The driver's library must be present: cudarc panics otherwise.
            pub(super) unsafe fn load() -> Result<Self, &'static str> {
                // SAFETY: the caller saw the library. Each symbol is given the signature that the
                // driver's ABI has fixed under this name.
                unsafe {
                    Ok(Self {
                        $($name: symbol(concat!(stringify!($name), "\0")).ok_or(stringify!($name))?,)*
                        cuMemcpyBatchAsync: symbol("cuMemcpyBatchAsync\0"),
                    })
                }
            }
        }
    };
}

/// Destinations, sources, sizes, count, attributes, first index of each attribute, number of attributes,
/// index of the copy that failed, stream.
pub(super) type BatchAsync = unsafe extern "C" fn(
    *mut CUdeviceptr,
    *mut CUdeviceptr,
    *mut usize,
    usize,
    *mut CUmemcpyAttributes,
    *mut usize,
    usize,
    *mut usize,
    CUstream,
) -> Status;

/// # Safety
/// The library is present, and `F` is the function pointer type of that name.
unsafe fn symbol<F: Copy>(name: &'static str) -> Option<F> {
    // SAFETY: passed on to the caller. cudarc keeps the library loaded for the life of the process.
    unsafe { sys::culib().get::<F>(name.as_bytes()).ok().map(|symbol| *symbol) }
}

table! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuGetErrorName(Status, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, CUdevice);
    cuDeviceGetUuid_v2(*mut CUuuid, CUdevice);
    cuDeviceGetPCIBusId(*mut c_char, c_int, CUdevice);
    cuDeviceTotalMem_v2(*mut usize, CUdevice);
    cuDeviceGetAttribute(*mut c_int, c_int, CUdevice);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxPushCurrent_v2(CUcontext);
    cuCtxPopCurrent_v2(*mut CUcontext);
    cuCtxGetStreamPriorityRange(*mut c_int, *mut c_int);
    cuStreamCreateWithPriority(*mut CUstream, c_uint, c_int);
    cuStreamDestroy_v2(CUstream);
    cuStreamSynchronize(CUstream);
    cuStreamWaitEvent(CUstream, CUevent, c_uint);
    cuEventCreate(*mut CUevent, c_uint);
    cuEventDestroy_v2(CUevent);
    cuEventRecord(CUevent, CUstream);
    cuEventQuery(CUevent);
    cuEventElapsedTime(*mut f32, CUevent, CUevent);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemFree_v2(CUdeviceptr);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostUnregister(*mut c_void);
    cuMemHostGetDevicePointer_v2(*mut CUdeviceptr, *mut c_void, c_uint);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream);
    cuMemsetD8Async(CUdeviceptr, u8, usize, CUstream);
    cuModuleLoadData(*mut CUmodule, *const c_void);
    cuModuleUnload(CUmodule);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuFuncSetAttribute(CUfunction, c_int, c_int);
    cuLaunchKernel(CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void);
    cuPointerGetAttribute(*mut c_void, c_int, CUdeviceptr);
    cuIpcGetMemHandle(*mut IpcMemHandle, CUdeviceptr);
    cuIpcOpenMemHandle_v2(*mut CUdeviceptr, IpcMemHandle, c_uint);
    cuIpcCloseMemHandle(CUdeviceptr);
}
