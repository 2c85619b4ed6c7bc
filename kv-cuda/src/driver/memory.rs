//! Memory that the driver gives out, and memory of others that it knows.

use std::ffi::c_void;
use std::fmt;
use std::mem::{MaybeUninit, size_of};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use cudarc::driver::sys::CUpointer_attribute_enum as PointerAttribute;

use super::context::log_failure;
use super::table::IpcMemHandle;
use super::{Context, CudaError, Current, call};
use crate::memory::HostMemory;

/// An address that the GPU understands: `CUdeviceptr`, torch's `data_ptr()`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// So many bytes further.
    #[must_use]
    pub const fn offset(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes as u64))
    }
}

impl fmt::Debug for DevicePtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Device memory of ours.
pub struct DeviceBuffer {
    context: Arc<Context>,
    at: DevicePtr,
    bytes: usize,
}

impl DeviceBuffer {
    /// Contents are whatever was there before.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn new(current: &Current, bytes: usize) -> Result<Self, CudaError> {
        let mut at = 0;
        // SAFETY: writes one address; freed once, on drop.
        unsafe { call!(current.driver(), cuMemAlloc_v2(&raw mut at, bytes)) }?;
        Ok(Self { context: Arc::clone(current.context()), at: DevicePtr(at), bytes })
    }

    /// First byte.
    #[must_use]
    pub const fn at(&self) -> DevicePtr {
        self.at
    }

    /// Number of bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// A name by which another process of this machine can open this memory.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn share(&self) -> Result<IpcHandle, CudaError> {
        let current = self.context.enter()?;
        let mut handle = IpcMemHandle([0; 64]);
        // SAFETY: writes 64 bytes; the allocation is ours.
        unsafe { call!(current.driver(), cuIpcGetMemHandle(&raw mut handle, self.at.0)) }?;
        Ok(IpcHandle(handle.0))
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let freed = self.context.enter().and_then(|current| {
            // SAFETY: allocated by us, freed once. The driver waits for work that is queued on the device.
            unsafe { call!(current.driver(), cuMemFree_v2(self.at.0)) }
        });
        log_failure(freed);
    }
}

/// Name of device memory of another process: the bytes of a `cudaIpcMemHandle_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpcHandle(pub [u8; 64]);

/// Device memory of another process of this machine, opened here. That process must keep it allocated.
pub struct IpcBuffer {
    context: Arc<Context>,
    at: DevicePtr,
}

impl IpcBuffer {
    /// # Errors
    /// The handle is not valid any more, was made by this very process, or is of another GPU.
    pub fn open(current: &Current, handle: IpcHandle) -> Result<Self, CudaError> {
        /// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`, the only flag there is.
        const LAZY_PEER_ACCESS: u32 = 1;
        let mut at = 0;
        // SAFETY: writes one address; closed once, on drop.
        unsafe {
            call!(
                current.driver(),
                cuIpcOpenMemHandle_v2(&raw mut at, IpcMemHandle(handle.0), LAZY_PEER_ACCESS)
            )
        }?;
        Ok(Self { context: Arc::clone(current.context()), at: DevicePtr(at) })
    }

    /// First byte of the allocation.
    #[must_use]
    pub const fn at(&self) -> DevicePtr {
        self.at
    }
}

impl Drop for IpcBuffer {
    fn drop(&mut self) {
        let closed = self.context.enter().and_then(|current| {
            // SAFETY: opened by us, closed once.
            unsafe { call!(current.driver(), cuIpcCloseMemHandle(self.at.0)) }
        });
        log_failure(closed);
    }
}

/// Pinned host memory of ours. Never write-combined: the host tier is read by the CPU.
pub struct PinnedBuffer {
    context: Arc<Context>,
    at: NonNull<u8>,
    device_at: DevicePtr,
    bytes: usize,
}

// SAFETY: owned memory; access is the business of whoever uses the pointer.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above.
unsafe impl Sync for PinnedBuffer {}

/// `CU_MEMHOSTALLOC_PORTABLE` and `CU_MEMHOSTALLOC_DEVICEMAP`: pinned for every context, and mapped.
pub(super) const PORTABLE_MAPPED: u32 = 1 | 2;

impl PinnedBuffer {
    /// # Errors
    /// [`CudaError`].
    pub fn new(current: &Current, bytes: usize) -> Result<Self, CudaError> {
        let mut raw: *mut c_void = ptr::null_mut();
        let mut device_at = 0;
        let driver = current.driver();
        // SAFETY: writes one address; freed once, on drop.
        unsafe { call!(driver, cuMemHostAlloc(&raw mut raw, bytes, PORTABLE_MAPPED)) }?;
        let at = NonNull::new(raw.cast()).unwrap_or(NonNull::dangling());
        let mut pinned = Self { context: Arc::clone(current.context()), at, device_at: DevicePtr(0), bytes };
        // SAFETY: writes one address, of memory that was just mapped.
        unsafe { call!(driver, cuMemHostGetDevicePointer_v2(&raw mut device_at, raw, 0)) }?;
        pinned.device_at = DevicePtr(device_at);
        Ok(pinned)
    }

    /// First byte, for the GPU.
    #[must_use]
    pub const fn device_at(&self) -> DevicePtr {
        self.device_at
    }
}

// SAFETY: one allocation, never moved, ours until drop; safe code gets no reference into it.
unsafe impl HostMemory for PinnedBuffer {
    fn base(&self) -> NonNull<u8> {
        self.at
    }
    fn size(&self) -> usize {
        self.bytes
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        let freed = self.context.enter().and_then(|current| {
            // SAFETY: allocated by us, freed once.
            unsafe { call!(current.driver(), cuMemFreeHost(self.at.as_ptr().cast())) }
        });
        log_failure(freed);
    }
}

/// Whether the bytes at `at` are memory of this context's GPU. Asks the driver; touches nothing.
pub(crate) fn is_device_memory(current: &Current, at: DevicePtr) -> bool {
    /// `CU_MEMORYTYPE_DEVICE`.
    const DEVICE: u32 = 2;
    let kind = pointer_attribute::<u32>(current, PointerAttribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at);
    let ordinal =
        pointer_attribute::<i32>(current, PointerAttribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, at);
    let here = current.context().info().ordinal.cast_signed();
    kind == Ok(DEVICE) && ordinal == Ok(here)
}

fn pointer_attribute<T: Copy>(
    current: &Current,
    attribute: PointerAttribute,
    at: DevicePtr,
) -> Result<T, CudaError> {
    const { assert!(size_of::<T>() == 4, "the attributes asked for here are 32-bit") };
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: writes four bytes, and success says that they were written.
    unsafe {
        call!(current.driver(), cuPointerGetAttribute(value.as_mut_ptr().cast(), attribute as i32, at.0))?;
        Ok(value.assume_init())
    }
}
