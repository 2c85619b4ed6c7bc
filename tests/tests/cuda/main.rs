//! `CudaDevice` against the fake driver: every byte, the order of work, what happens when things fail, and
//! that nothing is left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
mod copies;
mod engine;
mod failures;
mod layers;
mod lifetimes;
mod order;
