//! The hands of kvtier below HBM: they move bytes, keep no policy and report every job exactly once.
//!
//! ```text
//!   jobs (slots, places)                            completions (Verified or TransferError)
//!        │                                                   ▲
//!   ┌────▼───────────────────────────────────────────────────┴────┐
//!   │ nvme::NvmeLog   segments, records, recovery; io_uring, pool │
//!   └────┬────────────────────────────────────────────────────────┘
//!        │ one O_DIRECT transfer per record, no bounce copy
//!   ┌────▼────────────┐
//!   │ arena::Arena    │  pinned host memory; a slot is the image of a record on disk
//!   └─────────────────┘
//! ```
//!
//! Start at [`arena::Arena`] and [`nvme::NvmeLog`].

pub mod arena;
pub mod engine;
pub mod nvme;
mod sync;
