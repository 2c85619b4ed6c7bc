//! What the driver said, and what a user can do about it.

use std::fmt;

/// A driver call that did not return success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaError {
    /// Name of the driver function.
    pub call: &'static str,
    /// `CUresult`.
    pub code: i32,
    /// The driver's name for the code, if it has one.
    pub name: String,
}

/// `CUDA_ERROR_INVALID_VALUE`.
pub(crate) const INVALID_VALUE: i32 = 1;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(crate) const OUT_OF_MEMORY: i32 = 2;
/// `CUDA_ERROR_NOT_READY`: not an error, the work is under way.
pub(crate) const NOT_READY: i32 = 600;
/// `CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED`.
pub(crate) const ALREADY_REGISTERED: i32 = 712;

impl CudaError {
    /// Whether the device's context is lost: every later call in this process fails too, and only a new
    /// process gets the GPU back. The codes that `cuda.h` documents so.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        matches!(
            self.code,
            // DEINITIALIZED, ECC_UNCORRECTABLE, NVLINK_UNCORRECTABLE, CONTAINED, CONTEXT_IS_DESTROYED
            4 | 214 | 220 | 226 | 709
            // ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, ASSERT
            | 700 | 702 | 710
            // HARDWARE_STACK_ERROR, ILLEGAL_INSTRUCTION, MISALIGNED_ADDRESS, INVALID_ADDRESS_SPACE,
            // INVALID_PC, LAUNCH_FAILED, TENSOR_MEMORY_LEAK
            | 714
                ..=719 | 721
            // UNKNOWN
            | 999
        )
    }
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, code, name } = self;
        if name.is_empty() {
            write!(f, "{call}: CUDA error {code}")
        } else {
            write!(f, "{call}: {name} ({code})")
        }
    }
}

impl std::error::Error for CudaError {}

/// Why there is no CUDA on this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// No library of that name.
    #[error(
        "no NVIDIA driver: libcuda.so.1 was not found; install the driver, or in a container pass the GPU through (--gpus all)"
    )]
    NotFound,
    /// Older than what kvtier needs.
    #[error(
        "the NVIDIA driver is too old: it speaks CUDA {}.{}, kvtier needs {}.{} (driver 550 or newer)",
        .found / 1000, .found % 1000 / 10, .needed / 1000, .needed % 1000 / 10
    )]
    TooOld {
        /// As `cuDriverGetVersion` says: 12040 is 12.4.
        found: i32,
        /// The oldest that will do.
        needed: i32,
    },
    /// A function that every supported driver has.
    #[error("the CUDA driver library has no {0}; is this libcuda.so.1 NVIDIA's?")]
    MissingSymbol(&'static str),
    /// The library is there but does not start.
    #[error(
        "the NVIDIA driver does not start: {0}; see whether nvidia-smi works and what CUDA_VISIBLE_DEVICES says"
    )]
    Init(CudaError),
    /// The GPU is there but cannot be used.
    #[error("GPU {ordinal} cannot be used: {error}")]
    Gpu {
        /// Which.
        ordinal: u32,
        /// What the driver said.
        error: CudaError,
    },
    /// No such GPU.
    #[error("there is no GPU {ordinal}; this process sees {count} (CUDA_VISIBLE_DEVICES counts)")]
    NoSuchDevice {
        /// As asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
}
