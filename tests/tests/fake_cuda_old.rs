//! The fake CUDA driver as an older one, and what a process sees that has not called `cuInit`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::{c_int, c_uint};

use cudarc::driver::sys;
use kvtier_tests::fake_cuda::{FakeCuda, Variant};

fn has(symbol: &str) -> bool {
    // SAFETY: only whether the symbol is there is asked.
    unsafe { sys::culib().get::<*const ()>(symbol.as_bytes()).is_ok() }
}

/// One test, so that nothing else initialises the driver of this process.
#[test]
fn a_driver_before_12_8_has_no_batches_and_says_so() {
    let fake = FakeCuda::load_variant(Variant::WithoutBatch).alone();
    fake.configure(|s| s.driver_version = 12040);
    assert!(!has("cuMemcpyBatchAsync"));
    assert!(has("cuMemcpyHtoDAsync_v2"));

    // SAFETY: types as in cuda.h.
    let (init, version, count) = unsafe {
        let library = sys::culib();
        (
            library.get::<unsafe extern "C" fn(c_uint) -> i32>(b"cuInit").unwrap(),
            library.get::<unsafe extern "C" fn(*mut c_int) -> i32>(b"cuDriverGetVersion").unwrap(),
            library.get::<unsafe extern "C" fn(*mut c_int) -> i32>(b"cuDeviceGetCount").unwrap(),
        )
    };
    let (mut found, mut devices) = (0, 0);
    // SAFETY: each writes one number.
    unsafe {
        assert_eq!(version(&raw mut found), 0);
        assert_eq!(count(&raw mut devices), 3);
        fake.fail_once("cuInit", 1, 803);
        assert_eq!((init(0), count(&raw mut devices)), (803, 3));
        assert_eq!((init(0), count(&raw mut devices)), (0, 0));
        fake.reset();
        assert_eq!(count(&raw mut devices), 0);
    }
    assert_eq!((found, devices), (12040, 1));
}
