//! `kvtier gpu`: what a GPU can do, whether kvtier does it right, and how fast.
//!
//! ```text
//! info         the driver and its GPUs           rig          a GPU and a stream on which everything is waited for
//! calibration  what was measured, as JSON        mirror       device memory, and what its bytes should be
//! explain      which copy is chosen, and why     host         registered host memory, the same way
//! check        every kernel and copy path        shapes       layouts, drawn and those of runtimes
//! bench        their rates against the limit     methods      every way to copy, forced
//! ```

pub mod bench;
pub mod calibration;
pub mod check;
pub mod explain;
mod host;
pub mod info;
mod methods;
mod mirror;
mod rig;
mod shapes;

use kv_core::job::TransferError;
use kv_core::layout::LayoutError;
use kv_cuda::DeviceError;
use kv_cuda::cuda::OpenError;
use kv_cuda::driver::{CudaError, DriverError};

/// Why a GPU could not be used.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// There is no driver or no GPU here, or not one that will do. Nothing was tried.
    #[error(transparent)]
    Missing(#[from] DriverError),
    /// A device could not be opened.
    #[error("the device cannot be opened")]
    Open(#[source] OpenError),
    /// A device refused a call.
    #[error("the device refused")]
    Device(#[from] DeviceError),
    /// The driver refused a call.
    #[error("the driver refused")]
    Cuda(#[from] CudaError),
    /// A copy failed.
    #[error("a copy failed")]
    Copy(#[from] TransferError),
    /// Sizes that make no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// No host memory.
    #[error("no host memory")]
    Host(#[from] std::io::Error),
    /// Bytes, or something else that can be told, are not as they should be.
    #[error("{0}")]
    Wrong(String),
    /// Nothing was heard from a device for so long.
    #[error("nothing was heard of {0} copies for {1} seconds")]
    Silent(usize, u64),
}

impl From<OpenError> for GpuError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Driver(missing) => Self::Missing(missing),
            OpenError::Cuda(error) => Self::Cuda(error),
            error => Self::Open(error),
        }
    }
}

impl GpuError {
    /// A finding.
    fn wrong(what: impl Into<String>) -> Self {
        Self::Wrong(what.into())
    }

    const fn no_such_gpu(ordinal: u32, count: u32) -> Self {
        Self::Missing(DriverError::NoSuchDevice { ordinal, count })
    }

    /// Whether the GPU is lost to this process, so that nothing after this can be said about it.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Cuda(error) | Self::Device(DeviceError::Cuda(error)) => error.is_sticky(),
            Self::Device(DeviceError::Lost(_) | DeviceError::Hung(_)) | Self::Silent(..) => true,
            _ => false,
        }
    }
}
