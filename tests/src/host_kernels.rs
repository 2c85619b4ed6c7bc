//! The CUDA kernels, compiled for the host from their own sources: `kernels/host/shim.h` says how they run.
//!
//! The library is compiled on first use by `$CXX` or `c++`, kept in the target folder under the hash of what
//! it is made of, and shared by all test processes. `KV_HOST_SANITIZE` (`address`, `undefined`, `alignment`)
//! adds that sanitizer; for `address` run the tests with `LD_PRELOAD=$(c++ -print-file-name=libasan.so)`.

use std::ffi::{c_char, c_void};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use kv_cuda::kernels::args::{kv_copy_args, kv_digest_args, kv_gemm_args, kv_zero_args};
use libloading::{Library, Symbol};

/// Why there are no host kernels.
#[derive(Debug, thiserror::Error)]
pub enum HostKernelsError {
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// No compiler by that name.
    #[error("cannot run the C++ compiler {compiler:?} ({source}); install g++, or name one in CXX")]
    NoCompiler {
        /// `$CXX` or `c++`.
        compiler: String,
        /// What happened.
        source: io::Error,
    },
    /// The sources do not compile.
    #[error("{compiler} failed:\n{output}")]
    Compile {
        /// `$CXX` or `c++`.
        compiler: String,
        /// What it printed.
        output: String,
    },
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

/// For `map_err` on operations on `path`.
fn at(path: &Path) -> impl FnOnce(io::Error) -> HostKernelsError {
    let path = path.to_owned();
    |source| HostKernelsError::Io { path, source }
}

/// `kernels/` of this repository.
#[must_use]
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels")
}

/// The compiled library, made if it is not there.
///
/// # Errors
/// No compiler, or what it does not like.
pub fn library() -> Result<PathBuf, HostKernelsError> {
    // The test program lies in target/PROFILE/deps.
    let program = std::env::current_exe().map_err(at(Path::new("this program")))?;
    let folder = program.ancestors().nth(2).unwrap_or(Path::new(".")).join("host-kernels");
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    let command = Compiler::from_env();
    let library = folder.join(format!("libkv_host_kernels-{:016x}.so", command.key(&sources())?));

    let lock_path = folder.join("lock");
    let lock = File::create(&lock_path).map_err(at(&lock_path))?;
    lock.lock().map_err(at(&lock_path))?;
    if !library.exists() {
        let unfinished = library.with_extension("part");
        command.compile(&sources(), &unfinished)?;
        fs::rename(&unfinished, &library).map_err(at(&library))?;
    }
    Ok(library)
}

/// How kernels are compiled for the host.
#[derive(Clone, Debug)]
pub struct Compiler {
    program: String,
    flags: Vec<String>,
}

impl Compiler {
    /// `$CXX` or `c++`, with the sanitizer that `KV_HOST_SANITIZE` names.
    #[must_use]
    pub fn from_env() -> Self {
        let program = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        // -O2 takes twice as long to compile, and the tests not a tenth less.
        let flags =
            "-std=c++17 -O1 -shared -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-unknown-pragmas";
        let mut flags: Vec<String> = flags.split(' ').map(str::to_owned).collect();
        if let Ok(sanitizer) = std::env::var("KV_HOST_SANITIZE") {
            flags.push(format!("-fsanitize={sanitizer}"));
            flags.push("-fno-sanitize-recover=all".to_owned());
        }
        Self { program, flags }
    }

    /// Compiles `kernels/host/kernels.cpp` of a copy of `kernels/` to a library.
    ///
    /// # Errors
    /// No compiler, or what it does not like.
    pub fn compile(&self, kernels: &Path, library: &Path) -> Result<(), HostKernelsError> {
        let output = Command::new(&self.program)
            .args(&self.flags)
            .arg("-I")
            .arg(kernels)
            .arg(kernels.join("host/kernels.cpp"))
            .arg("-o")
            .arg(library)
            .output()
            .map_err(|source| HostKernelsError::NoCompiler { compiler: self.program.clone(), source })?;
        if output.status.success() {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(HostKernelsError::Compile { compiler: self.program.clone(), output })
    }

    /// Hash of everything that the library is made of.
    fn key(&self, kernels: &Path) -> Result<u64, HostKernelsError> {
        let mut all = format!("{self:?}").into_bytes();
        for folder in [kernels.to_owned(), kernels.join("host")] {
            let entries = fs::read_dir(&folder).map_err(at(&folder))?;
            let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            files.sort();
            for file in files.iter().filter(|file| file.is_file()) {
                all.extend(file.to_string_lossy().as_bytes());
                all.extend(fs::read(file).map_err(at(file))?);
            }
        }
        Ok(kv_core::payload_checksum(&all))
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
            library()
                .and_then(|path| Self::load(&path))
                .unwrap_or_else(|error| panic!("host kernels: {error}"))
        })
    }

    /// Loads a library that [`Compiler::compile`] made.
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
