//! Copies between the KV blocks of a device and host memory.
//!
//! ```text
//!                  Engine ── submit(copies, urgency) ──►┌────────┐
//!   CompletionSink ◄── complete(job, Verified | error) ─│ Device │
//!                                                       └─┬────┬─┘
//!          pool of device blocks: fragments (Placement) ◄─┘    └─► HostMemory: one span per block
//! ```
//!
//! [`Device`] is what a caller sees; start there. [`HostMemory`] and [`HostSpan`] are the host side of a
//! copy, and the safety contract of the crate.
//!
//! - [`cuda::CudaDevice`] is a GPU: [`driver`] loads the CUDA driver at run time, [`kernels`] has the PTX and
//!   its arguments, [`cuda`] chooses how to copy by what was measured on the device.
//! - [`HostDevice`] is ordinary memory and one thread: the whole interface on a machine without a GPU.
//! - [`DeviceChoice`] picks one of them.
//!
//! A machine without a driver, or with too old a one, is a typed error and never a panic. What has run on
//! hardware, and what has not, is in `docs/hardware-status.md`.

mod choice;
pub mod cuda;
mod device;
pub mod driver;
mod host;
pub mod kernels;
mod layers;
mod memory;

pub use choice::{BadDevice, ChoiceError, ChosenDevice, DeviceChoice};
pub use device::{BlockCopy, BlockDigest, Device, DeviceError, Direction};
pub use host::HostDevice;
pub use layers::LayerProgress;
pub use memory::{HostMemory, HostSpan};
