//! `kvtier._kvtier`: the extension module of the Python wheel.
//!
//! ```text
//!   Store(...)      keys ─► bytes | str | packed | Keys        keys.rs
//!     │             buffers ─► runs and what keeps them alive   buffers.rs · view.rs · dlpack.rs
//!     ├─ get, put, pin, flush ──► Ticket                        ticket.rs
//!     ├─ register(Layout, ...) ─► Pool ─► Ticket                layout.rs · pool.rs
//!     └─ Queue: an eventfd                                      queue.rs
//! ```
//!
//! It is a thin layer over [`kvtier_ffi`], and adds what Python needs:
//!
//! - the interpreter is released around everything that waits or copies, and no thread of kvtier ever takes it, so a
//!   busy interpreter cannot slow a transfer and a transfer cannot stall the interpreter;
//! - buffers are kept alive, and exported so that they cannot be resized, until their operation is over (`owner.rs`);
//! - a process that was forked gets an exception, and its exit frees nothing that belongs to its parent's threads
//!   (`fork.rs`);
//! - at the interpreter's exit the stores that are still open are closed (`store.rs`).

mod buffers;
mod dlpack;
mod errors;
mod fork;
mod keys;
mod layout;
mod log;
mod owner;
mod pool;
mod queue;
mod store;
mod ticket;
mod view;

use pyo3::prelude::*;

/// The native part of kvtier. Use the names that the package `kvtier` exports.
#[pymodule]
mod _kvtier {
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    #[pymodule_export]
    use crate::buffers::Runs;
    #[pymodule_export]
    use crate::keys::Keys;
    #[pymodule_export]
    use crate::layout::Layout;
    #[pymodule_export]
    use crate::log::{log_level, next_logs, stop_logs};
    #[pymodule_export]
    use crate::pool::Pool;
    #[pymodule_export]
    use crate::queue::Queue;
    #[pymodule_export]
    use crate::store::{Store, close_all};
    #[pymodule_export]
    use crate::ticket::{Summary, Ticket};

    /// What this build is: its version, the oldest Python whose stable ABI it was built for, the kinds of remote stores
    /// that it knows, and whether it checks itself (slower) as the builds for tests do.
    #[pyfunction]
    fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let info = PyDict::new(py);
        info.set_item("version", env!("CARGO_PKG_VERSION"))?;
        info.set_item("stable_abi", "3.10")?;
        let remotes: &[&str] = if cfg!(feature = "redis") { &["file", "redis", "rediss"] } else { &["file"] };
        info.set_item("remotes", remotes)?;
        info.set_item("assertions", cfg!(debug_assertions))?;
        Ok(info)
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::fork::watch()?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("_KEY_STATUSES", crate::ticket::STATUSES.map(|(name, status)| (name, status as u8)))?;
        module.add("_PRESENCES", crate::store::PRESENCES.map(|(name, presence)| (name, presence as u8)))?;
        module.add("_REMOVALS", crate::store::REMOVALS.map(|(name, removal)| (name, removal as u8)))?;
        let exit = module.py().import("atexit")?;
        exit.call_method1("register", (module.getattr("close_all")?,))?;
        Ok(())
    }
}
