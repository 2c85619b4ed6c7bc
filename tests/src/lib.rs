//! What the whole-system tests are made of.
//!
//! ```text
//! sim           the whole engine on simulated time: faults, crashes and the order of events come from a seed
//! chains        blocks whose keys say which they are
//! runtime       plays a runtime on an engine: checks every byte that is ready, computes the rest
//! fake_cuda     a CUDA driver without a GPU
//! host_kernels  the CUDA kernels, compiled for the host
//! cxx           compiles C++ for these
//! redis_server  a real Redis
//! mooncake      libraries with Mooncake Store's C API
//! on_servers    load or recompute on real servers, beside a rule that always loads
//! s3_server     a real S3 server, and one that only refuses
//! proxy         faults between a client and a server
//! remote        blocks for remote stores, and calls that check every byte
//! remote_faults what every remote store has to stand
//! victim        how a process that is to be killed and its killer understand each other
//! ```
//!
//! The tests themselves are in `tests/`, a file or folder for each concern.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a broken promise must stop a test

pub mod chains;
pub mod cxx;
pub mod fake_cuda;
pub mod host_kernels;
pub mod mooncake;
pub mod on_servers;
pub mod proxy;
pub mod redis_server;
pub mod remote;
pub mod remote_faults;
pub mod runtime;
pub mod s3_server;
pub mod sim;
pub mod victim;
