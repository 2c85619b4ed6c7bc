//! The C ABI: thin functions over `kvtier-ffi`, and all that keeps a caller in C safe from itself.
//!
//! ```text
//! kvtier.h ◄─ cbindgen ─ types, functions below      entry   catches panics, refuses forked children
//!                              │                     handle  numbers, looked up on each call
//!                              ▼                     structs size and version of every struct
//!                         kvtier_ffi                 status, log
//! ```
//!
//! Function by function the documentation is in the header, `include/kvtier.h`.

mod batch;
mod constants;
mod entry;
mod general;
mod handle;
mod log;
mod pool;
mod queue;
mod status;
mod store;
mod structs;
mod ticket;
mod types;

pub use constants::*;
pub use general::*;
pub use log::LogCallback;
pub use pool::*;
pub use queue::*;
pub use status::Status;
pub use store::*;
pub use structs::ABI_VERSION;
pub use ticket::*;
pub use types::*;
