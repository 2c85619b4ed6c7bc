//! Why a CUDA device could not be opened.

use kv_core::layout::LayoutError;

use super::config::BadTuning;
use crate::driver::{CudaError, DevicePtr, DriverError, OUT_OF_MEMORY};

/// Why a CUDA device could not be opened. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No driver, or no such GPU.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The driver refused a call.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The pool does not fit.
    #[error("the GPU has no {buffers} times {bytes} bytes left for the pool; use fewer blocks")]
    PoolTooLarge {
        /// Buffers of the pool.
        buffers: u32,
        /// Bytes of each.
        bytes: usize,
    },
    /// Not as many buffers as the placement has.
    #[error("{found} buffers were given, the placement has {expected}")]
    WrongBuffers {
        /// As given.
        found: usize,
        /// As the placement says.
        expected: u32,
    },
    /// An address that is not this GPU's memory.
    #[error("buffer {buffer} at {at:?} is not {bytes} bytes of this GPU's memory")]
    NotDeviceMemory {
        /// Its number.
        buffer: usize,
        /// Its address.
        at: DevicePtr,
        /// Bytes it should have.
        bytes: usize,
    },
    /// A layout that kernels cannot walk.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The environment asks for what is not there.
    #[error(transparent)]
    Tuning(#[from] BadTuning),
    /// The operating system gave no thread.
    #[error("cannot start the device's thread: {0}")]
    Thread(#[source] std::io::Error),
}

impl OpenError {
    pub(super) fn pool(error: CudaError, buffers: u32, bytes: usize) -> Self {
        match error.code {
            OUT_OF_MEMORY => Self::PoolTooLarge { buffers, bytes },
            _ => Self::Cuda(error),
        }
    }
}
