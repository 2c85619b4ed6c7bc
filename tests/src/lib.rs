//! What the whole-system tests are made of.
//!
//! [`sim`] is the whole engine on simulated time, with faults, crashes and an order of events that come from
//! a seed. The tests themselves are in `tests/`: `simulation.rs`, `crash.rs`, `replay.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a broken promise must stop a test

pub mod sim;
