//! Kernels: loading and launching.

use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUfunction, CUfunction_attribute_enum as FunctionAttribute, CUmodule};

use super::context::log_failure;
use super::{Context, CudaError, Current, INVALID_VALUE, Stream, call};

/// Loaded kernels.
pub struct Module {
    context: Arc<Context>,
    raw: CUmodule,
}

// SAFETY: module handles may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads PTX; the driver compiles it for the GPU, once per driver version, and keeps the result in its
    /// own cache on disk.
    ///
    /// # Errors
    /// [`CudaError`]: PTX for a newer GPU or driver, or no PTX.
    pub fn load(current: &Current, ptx: &str) -> Result<Arc<Self>, CudaError> {
        let mut raw = ptr::null_mut();
        let ptx = text("cuModuleLoadData", ptx)?;
        // SAFETY: reads text up to its zero; writes one handle, unloaded once, on drop.
        unsafe { call!(current.driver(), cuModuleLoadData(&raw mut raw, ptx.as_ptr().cast())) }?;
        Ok(Arc::new(Self { context: Arc::clone(current.context()), raw }))
    }

    /// A kernel by its name.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn function(self: &Arc<Self>, current: &Current, name: &str) -> Result<Function, CudaError> {
        let mut raw = ptr::null_mut();
        let name = text("cuModuleGetFunction", name)?;
        // SAFETY: reads the name; writes one handle that lives as long as the module.
        unsafe { call!(current.driver(), cuModuleGetFunction(&raw mut raw, self.raw, name.as_ptr())) }?;
        Ok(Function { module: Arc::clone(self), raw })
    }
}

/// With the zero at its end that the driver wants.
fn text(call: &'static str, text: &str) -> Result<CString, CudaError> {
    CString::new(text).map_err(|error| CudaError { call, code: INVALID_VALUE, name: error.to_string() })
}

impl Drop for Module {
    fn drop(&mut self) {
        let unloaded = self.context.enter().and_then(|current| {
            // SAFETY: ours, unloaded once; every `Function` held it.
            unsafe { call!(current.driver(), cuModuleUnload(self.raw)) }
        });
        log_failure(unloaded);
    }
}

/// A kernel.
pub struct Function {
    module: Arc<Module>,
    raw: CUfunction,
}

// SAFETY: function handles may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// How many threads, and how much memory each block of them shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks of threads (CTAs).
    pub ctas: u32,
    /// Threads of each.
    pub threads: u32,
    /// Dynamic shared memory of each, in bytes.
    pub shared: u32,
}

impl Function {
    /// Allows launches with so much dynamic shared memory: beyond 48 KiB the driver wants to be told.
    ///
    /// # Errors
    /// More than the GPU has.
    pub fn allow_shared(&self, bytes: u32) -> Result<(), CudaError> {
        let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as i32;
        let driver = self.module.context.driver();
        // SAFETY: the handle is alive.
        unsafe { call!(driver, cuFuncSetAttribute(self.raw, attribute, bytes.cast_signed())) }
    }

    /// Queues one launch.
    ///
    /// # Safety
    /// `A` is the kernel's one parameter, and what its addresses name stays allocated, and is used by
    /// nobody in a way that conflicts, until the launch is over.
    ///
    /// # Errors
    /// [`CudaError`] of the launch, or of work before it.
    pub unsafe fn launch<A>(
        &self,
        current: &Current,
        stream: &Stream,
        grid: Grid,
        args: &A,
    ) -> Result<(), CudaError> {
        let mut parameters: [*mut c_void; 1] = [ptr::from_ref(args).cast_mut().cast()];
        let Grid { ctas, threads, shared } = grid;
        // SAFETY: the driver copies the parameter during the call; the rest is the caller's word.
        unsafe {
            call!(
                current.driver(),
                cuLaunchKernel(
                    self.raw,
                    ctas,
                    1,
                    1,
                    threads,
                    1,
                    1,
                    shared,
                    stream.raw(),
                    parameters.as_mut_ptr(),
                    ptr::null_mut(),
                )
            )
        }
    }
}
