//! One GPU's primary context.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdevice};

use super::{CudaError, Driver, DriverError, GpuInfo, call};

/// The primary context of a GPU: the one that PyTorch and the CUDA runtime use in the same process, so
/// that a runtime's pointers, streams and events can be used as they are.
pub struct Context {
    driver: &'static Driver,
    device: CUdevice,
    raw: CUcontext,
    info: GpuInfo,
}

// SAFETY: a context handle may be used from any thread; the driver locks where it must.
unsafe impl Send for Context {}
// SAFETY: as above; nothing here changes.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of a GPU.
    ///
    /// # Errors
    /// No such GPU, or the driver cannot make the context.
    pub fn new(driver: &'static Driver, ordinal: u32) -> Result<Arc<Self>, DriverError> {
        let count = driver.gpu_count().map_err(DriverError::Init)?;
        if ordinal >= count {
            return Err(DriverError::NoSuchDevice { ordinal, count });
        }
        let unusable = |error| DriverError::Gpu { ordinal, error };
        let info = driver.gpu(ordinal).map_err(unusable)?;
        let (mut device, mut raw) = (0, std::ptr::null_mut());
        // SAFETY: writes one handle.
        unsafe { call!(driver, cuDeviceGet(&raw mut device, ordinal.cast_signed())) }.map_err(unusable)?;
        // SAFETY: writes one handle; released once, on drop.
        unsafe { call!(driver, cuDevicePrimaryCtxRetain(&raw mut raw, device)) }.map_err(unusable)?;
        Ok(Arc::new(Self { driver, device, raw, info }))
    }

    /// The driver.
    #[must_use]
    pub const fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// The GPU.
    #[must_use]
    pub const fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// Makes this context the calling thread's until the guard is dropped; then the thread has again the
    /// one that it had before.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn enter(self: &Arc<Self>) -> Result<Current, CudaError> {
        // SAFETY: a context that is retained as long as `self` lives.
        unsafe { call!(self.driver, cuCtxPushCurrent_v2(self.raw)) }?;
        Ok(Current { context: Arc::clone(self), not_send: PhantomData })
    }

    /// Free and total bytes of device memory.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn memory(self: &Arc<Self>) -> Result<(u64, u64), CudaError> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: writes two sizes.
        unsafe { call!(self.driver, cuMemGetInfo_v2(&raw mut free, &raw mut total)) }?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `new`; everything made in it held an `Arc` and is gone.
        let released = unsafe { call!(self.driver, cuDevicePrimaryCtxRelease_v2(self.device)) };
        log_failure(released);
    }
}

/// Proof that a context is current on this thread.
pub struct Current {
    context: Arc<Context>,
    /// A guard belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

impl Current {
    /// The context.
    #[must_use]
    pub const fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn driver(&self) -> &'static Driver {
        self.context.driver
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: pops what `enter` pushed on this thread.
        log_failure(unsafe { call!(self.driver(), cuCtxPopCurrent_v2(&raw mut popped)) });
    }
}

/// For calls in destructors, where nobody is left to be told: after a lost device they all fail.
pub(super) fn log_failure(result: Result<(), CudaError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "the CUDA driver refused to give something back");
    }
}
