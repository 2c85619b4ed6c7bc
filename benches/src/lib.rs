//! What the `kvtier` command is made of: workloads, contenders and the way figures are reported.
//!
//! ```text
//! trace     reads JSONL request traces          index   prefix look-ups against the limit and the peers
//! generate  makes an agent-like one from a seed copy    gathers and scatters of blocks against memcpy
//! heap      counts heap bytes and allocations   nvme    the NVMe log against fio, and its reopening
//! replay    drives the planner or the engine    gpu     a real GPU: what it is, checks, copies against the link
//! report    samples, tables, facts about the    cost    load or recompute, by several rules
//!           machine                             codec   KV made smaller, against zstd, lz4 and memcpy
//!                                               remote  remote stores against fio and redis-benchmark
//! ```
//!
//! Every figure is a ratio at heart: contenders take turns on one machine in one run, because figures of
//! two runs differ by more than the things they are about.

pub mod codec;
mod completions;
pub mod copy;
pub mod cost;
pub mod generate;
pub mod gpu;
pub mod heap;
pub mod index;
pub mod nvme;
pub mod remote;
pub mod replay;
pub mod report;
mod rng;
mod size;
pub mod trace;

pub use rng::SplitMix64;
pub use size::{BadSize, ByteSize};
