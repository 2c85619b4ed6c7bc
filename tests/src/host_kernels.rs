//! The CUDA kernels, compiled for the host from their own sources: `kernels/host/shim.h` says how they run.
//!
//! `KV_HOST_SANITIZE` (`address`, `undefined`, `alignment`) adds that sanitizer; for `address` run the tests
//! with `LD_PRELOAD=$(c++ -print-file-name=libasan.so)`.

use std::ffi::{c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use kv_cuda::kernels::args::{kv_copy_args, kv_digest_args, kv_gemm_args, kv_zero_args};
use libloading::{Library, Symbol};

use crate::cxx::{self, CxxError};

/// Why there are no host kernels.
#[derive(Debug, thiserror::Error)]
pub enum HostKernelsError {
    /// They could not be compiled.
    #[error(transparent)]
    Compile(#[from] CxxError),
    /// The library cannot be loaded, or has not what it must have.
    #[error(transparent)]
    Load(#[from] libloading::Error),
    /// It has no such kernel, or one with another argument.
    #[error("no kernel {name} that takes {arg_bytes} bytes")]
    NoKernel {
        /// Name asked for.
        name: &'static str,
        /// Bytes of the argument it was to take.
        arg_bytes: usize,
    },
}

/// `kernels/` of this repository.
#[must_use]
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels")
}

/// The library that is made of `kernels`, this repository's or a copy, with the sanitizer that
/// `KV_HOST_SANITIZE` names.
#[must_use]
pub fn library(kernels: &Path) -> cxx::Library {
    // -O2 and -g take twice as long to compile, and the tests not a tenth less.
    let flags = ["-O1", "-g0", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"];
    let mut flags: Vec<String> = flags.map(str::to_owned).to_vec();
    if let Ok(sanitizer) = std::env::var("KV_HOST_SANITIZE") {
        flags.push(format!("-fsanitize={sanitizer}"));
        flags.push("-fno-sanitize-recover=all".to_owned());
    }
    cxx::Library {
        name: "kv_host_kernels".to_owned(),
        sources: vec![kernels.join("host/kernels.cpp")],
        include: vec![kernels.to_owned()],
        flags,
    }
}

/// `kv_host_kernel` of `kernels/host/kv_host.h`.
#[repr(C)]
struct Kernel {
    name: *const c_char,
    arg_bytes: usize,
    run: unsafe extern "C" fn(u32, u32, u32, *mut *mut c_void),
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// CTAs.
    pub grid: u32,
    /// Threads of each.
    pub block: u32,
    /// Dynamic shared memory of each, in bytes.
    pub shared_bytes: u32,
    /// Order in which threads run, see `shim.h`.
    pub seed: u64,
}

/// A loaded library of kernels.
pub struct HostKernels {
    library: Library,
    /// A seed and the launch that it is for go together.
    launching: Mutex<()>,
}

impl HostKernels {
    /// The kernels of this repository, compiled and loaded once.
    ///
    /// # Panics
    /// If they cannot be: without them a test has nothing to say.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<HostKernels> = OnceLock::new();
        SHARED.get_or_init(|| {
            library(&sources())
                .build()
                .map_err(HostKernelsError::from)
                .and_then(|path| Self::load(&path))
                .unwrap_or_else(|error| panic!("host kernels: {error}"))
        })
    }

    /// Loads a library that was compiled.
    ///
    /// # Errors
    /// What the loader does not like.
    pub fn load(library: &Path) -> Result<Self, HostKernelsError> {
        // SAFETY: the library has no initialisers beyond those of the C++ runtime.
        let library = unsafe { Library::new(library) }?;
        Ok(Self { library, launching: Mutex::new(()) })
    }

    /// Runs `kv_copy` and waits for it.
    ///
    /// # Safety
    /// As on a GPU: the argument must name memory that may be read and written so.
    pub unsafe fn copy(&self, args: &kv_copy_args, launch: Launch) {
        // SAFETY: passed on.
        unsafe { self.run("kv_copy", args, launch) }
    }

    /// Runs `kv_copy_bulk` and waits for it.
    ///
    /// # Safety
    /// As for [`HostKernels::copy`].
    pub unsafe fn copy_bulk(&self, args: &kv_copy_args, launch: Launch) {
        // SAFETY: passed on.
        unsafe { self.run("kv_copy_bulk", args, launch) }
    }

    /// Runs `kv_zero` and waits for it.
    ///
    /// # Safety
    /// As for [`HostKernels::copy`].
    pub unsafe fn zero(&self, args: &kv_zero_args, launch: Launch) {
        // SAFETY: passed on.
        unsafe { self.run("kv_zero", args, launch) }
    }

    /// Runs `kv_digest_blocks` and waits for it.
    ///
    /// # Safety
    /// As for [`HostKernels::copy`].
    pub unsafe fn digest(&self, args: &kv_digest_args, launch: Launch) {
        // SAFETY: passed on.
        unsafe { self.run("kv_digest_blocks", args, launch) }
    }

    /// Runs `kv_gemm` and waits for it.
    ///
    /// # Safety
    /// As for [`HostKernels::copy`].
    pub unsafe fn gemm(&self, args: &kv_gemm_args, launch: Launch) {
        // SAFETY: passed on.
        unsafe { self.run("kv_gemm", args, launch) }
    }

    /// # Safety
    /// `args` is the kernel's argument, and names memory that may be read and written so.
    unsafe fn run<A: bytemuck::Pod>(&self, name: &'static str, args: &A, launch: Launch) {
        let run = self.find(name, size_of::<A>()).unwrap_or_else(|error| panic!("host kernels: {error}"));
        let mut args = *args;
        let mut params = [(&raw mut args).cast::<c_void>()];
        let _one = self.launching.lock();
        // SAFETY: the signature is that of kv_host.h.
        let seed: Symbol<'_, unsafe extern "C" fn(u64)> = unsafe { self.library.get(b"kv_host_seed\0") }
            .unwrap_or_else(|error| panic!("host kernels: {error}"));
        // SAFETY: no launch of this library is under way: this is the only place that starts one.
        unsafe { seed(launch.seed) };
        // SAFETY: params[0] points at an argument of the size that the kernel takes; the rest is the caller's.
        unsafe { run(launch.grid, launch.block, launch.shared_bytes, params.as_mut_ptr()) };
    }

    fn find(
        &self,
        name: &'static str,
        arg_bytes: usize,
    ) -> Result<unsafe extern "C" fn(u32, u32, u32, *mut *mut c_void), HostKernelsError> {
        let c_name = format!("{name}\0");
        // SAFETY: the signature is that of kv_host.h.
        let find: Symbol<'_, unsafe extern "C" fn(*const c_char) -> *const Kernel> =
            unsafe { self.library.get(b"kv_host_find\0") }?;
        // SAFETY: the name ends in a zero; the result is null or points at a constant of the library.
        match unsafe { find(c_name.as_ptr().cast()).as_ref() } {
            Some(kernel) if kernel.arg_bytes == arg_bytes => Ok(kernel.run),
            _ => Err(HostKernelsError::NoKernel { name, arg_bytes }),
        }
    }
}
