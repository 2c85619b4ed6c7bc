//! The fake CUDA driver, spoken to as `kv-cuda` speaks to a real one: through the driver's own functions,
//! looked up in the library that cudarc finds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(non_snake_case)] // functions of the driver keep their names
#![allow(unreachable_pub)] // for the other files of this test

mod batches;
mod faults;
mod gpu;
mod kernels;
mod memory;
mod time;
