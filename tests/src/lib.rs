//! What the whole-system tests are made of.
//!
//! ```text
//! sim           the whole engine on simulated time: faults, crashes and the order of events come from a seed
//! chains        blocks whose keys say which they are
//! host_kernels  the CUDA kernels, compiled for the host
//! runtime       plays a runtime on an engine: checks every byte that is ready, computes the rest
//! victim        how a process that is to be killed and its killer understand each other
//! ```
//!
//! The tests themselves are in `tests/`: `simulation.rs`, `crash.rs`, `faults.rs`, `replay.rs`, `stress.rs`,
//! `kernels/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a broken promise must stop a test

pub mod chains;
pub mod host_kernels;
pub mod runtime;
pub mod sim;
pub mod victim;
