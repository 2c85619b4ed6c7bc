//! The engine of kvtier and its hands below HBM.
//!
//! ```text
//!                     engine::Engine   one planner (kv-core), callers, deadlines, answers
//!         jobs (slots, places) │  ▲ completions (Verified or TransferError)
//!                 ┌────────────┴──┴───────────┐
//!          kv_cuda::Device             nvme::NvmeLog   segments, records, recovery; io_uring, pool
//!          HBM <-> arena               arena <-> disk  one O_DIRECT transfer per record, no bounce copy
//!                 └────────────┬──────────────┘
//!                       arena::Arena   pinned host memory; a slot is the image of a record on disk
//! ```
//!
//! It promises that hands keep no policy and report every job exactly once; that a failing tier is counted and left
//! alone for a while, and never stops the engine; and that a log reopens after a crash with what was durable.
//!
//! Start at [`engine::Engine::open`]; then [`nvme::NvmeLog`] and [`arena::Arena`].

pub mod arena;
pub mod codec;
pub mod engine;
pub mod nvme;
pub mod remote;
mod sync;
mod wire;
