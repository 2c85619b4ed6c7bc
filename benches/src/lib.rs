//! What the `kvtier` command is made of: workloads, contenders and the way figures are reported.
//!
//! ```text
//! trace     reads JSONL request traces          index   prefix look-ups against the limit and the peers
//! generate  makes an agent-like one from a seed copy    gathers and scatters of blocks against memcpy
//! heap      counts heap bytes and allocations   report  samples, tables, facts about the machine
//! ```
//!
//! Every figure is a ratio at heart: contenders take turns on one machine in one run, because figures of
//! two runs differ by more than the things they are about.

pub mod copy;
pub mod generate;
pub mod heap;
pub mod index;
pub mod replay;
pub mod report;
mod rng;
pub mod trace;

pub use rng::SplitMix64;
