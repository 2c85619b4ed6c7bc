//! Which device holds the pool: a GPU, or ordinary memory that stands in for one.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use kv_core::job::CompletionSink;
use kv_core::layout::Placement;

use crate::cuda::{CudaConfig, CudaDevice, OpenError};
use crate::device::{Device, DeviceError};
use crate::driver::{Driver, DriverError};
use crate::host::HostDevice;
use crate::memory::HostMemory;

/// Where device blocks are to be. Reads and prints as `auto`, `cuda:N` and `host`.
///
/// ```
/// use kv_cuda::DeviceChoice;
/// assert_eq!("cuda:1".parse(), Ok(DeviceChoice::Cuda(1)));
/// assert_eq!(DeviceChoice::Auto.to_string(), "auto");
/// assert!("gpu".parse::<DeviceChoice>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum DeviceChoice {
    /// The first GPU if there is one, else ordinary memory.
    #[default]
    Auto,
    /// That GPU, or an error.
    Cuda(u32),
    /// Ordinary memory.
    Host,
}

/// Not a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no device; use auto, cuda:N or host")]
pub struct BadDevice(String);

impl FromStr for DeviceChoice {
    type Err = BadDevice;

    fn from_str(text: &str) -> Result<Self, BadDevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "host" => Ok(Self::Host),
            _ => {
                let ordinal = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                ordinal.map(Self::Cuda).ok_or_else(|| BadDevice(text.to_owned()))
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Host => f.write_str("host"),
        }
    }
}

/// No device.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The GPU.
    #[error(transparent)]
    Cuda(#[from] OpenError),
    /// The stand-in.
    #[error(transparent)]
    Host(#[from] DeviceError),
}

/// A device, and what it is.
pub struct ChosenDevice {
    /// The device.
    pub device: Arc<dyn Device>,
    /// Which, and why, for people.
    pub how: String,
}

impl DeviceChoice {
    /// Opens the device with a pool of kvtier's own.
    ///
    /// [`DeviceChoice::Auto`] stays on the host only where there is no GPU: one that does not work is an
    /// error.
    ///
    /// # Errors
    /// [`ChoiceError`].
    pub fn open(
        self,
        placement: Placement,
        host: Arc<dyn HostMemory>,
        sink: Arc<dyn CompletionSink>,
    ) -> Result<ChosenDevice, ChoiceError> {
        let (ordinal, why) = match (self, Driver::load()) {
            (Self::Cuda(ordinal), _) => (Some(ordinal), String::new()),
            (Self::Auto, Ok(_)) => (Some(0), String::new()),
            (Self::Auto, Err(error)) if is_absence(&error) => (None, error.to_string()),
            (Self::Auto, Err(error)) => return Err(OpenError::from(error).into()),
            (Self::Host, _) => (None, "as asked for".to_owned()),
        };
        match ordinal {
            Some(ordinal) => {
                let config = CudaConfig::new(ordinal).map_err(OpenError::from)?;
                let device = CudaDevice::open(placement, config, host, sink)?;
                let how = format!("GPU {ordinal}, {} ({})", device.gpu().name, device.gpu().uuid);
                Ok(ChosenDevice { device: Arc::new(device), how })
            }
            None => {
                let device = HostDevice::new(placement, host, sink)?;
                let how = format!("ordinary memory as a stand-in for a GPU ({why})");
                Ok(ChosenDevice { device: Arc::new(device), how })
            }
        }
    }
}

/// Whether the machine has no GPU, as opposed to one that does not work.
fn is_absence(error: &DriverError) -> bool {
    /// `CUDA_ERROR_NO_DEVICE`.
    const NO_DEVICE: i32 = 100;
    matches!(error, DriverError::NotFound)
        || matches!(error, DriverError::Init(error) if error.code == NO_DEVICE)
}
