//! The NVMe log: blocks as verified records in large preallocated segments.
//!
//! ```text
//!            NvmeLog                    log.rs       open, submit, sync, close
//!       ┌──────┴───────┐
//!     uring          pool               uring, pool  the I/O, fast and portable
//!       └──────┬───────┘                queue.rs     which job next
//!           Segments                    ops.rs       what a job means, step by step
//!              │                        segments.rs  which jobs are allowed now
//!              │                        config.rs    how large, recover.rs what was there, scan.rs one segment of it
//!         SegmentStore                  store/       files, memory, planned faults
//! ```
//!
//! The format and the argument why a crash cannot hurt: `docs/nvme-format.md`.

mod config;
mod error;
mod format;
mod geometry;
mod inspect;
mod log;
mod ops;
mod page;
mod pool;
mod probe;
mod queue;
mod recover;
mod scan;
mod segments;
mod sink;
mod store;
mod uring;

pub use config::{LogConfig, OpenMode};
pub use error::NvmeError;
pub use inspect::{Inspection, NamespaceInfo, SegmentInfo, SegmentState, inspect, scrub};
pub use log::{Backend, NvmeConfig, NvmeLog};
pub use recover::{Damage, DamageKind, Recovery};
pub use segments::Segments;
pub use sink::CompletionSink;
pub use store::{Fault, FaultyStore, FileStore, MemStore, SegmentStore};
