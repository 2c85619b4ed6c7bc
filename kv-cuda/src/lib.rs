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
//! copy, and the safety contract of the crate. [`HostDevice`] is a device made of ordinary memory and one
//! thread: the whole interface on a machine without a GPU. [`cuda`] is the device
//! that drives a GPU, on the checked [`driver`] layer.

pub mod cuda;
mod device;
pub mod driver;
mod host;
pub mod kernels;
mod layers;
mod memory;

pub use device::{BlockCopy, BlockDigest, Device, DeviceError, Direction};
pub use host::HostDevice;
pub use layers::LayerProgress;
pub use memory::{HostMemory, HostSpan};
