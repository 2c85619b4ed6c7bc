//! Versions, messages, the log.

use std::ffi::{c_char, c_void};

use crate::entry::{entry, message};
use crate::log::LogCallback;
use crate::status::Status;
use crate::structs::{ABI_VERSION, init};

/// Version of the ABI that this library has. A program needs the one that it was compiled with, `KVTIER_ABI_VERSION`.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_abi_version() -> u32 {
    ABI_VERSION
}

/// Version of the library, for people. Valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Name of a status. Valid for ever; also for numbers that are none.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_status_name(status: u32) -> *const c_char {
    Status::name(status).as_ptr()
}

/// What the last failure of this thread was, as a sentence. Valid until the next failure of this thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_last_error() -> *const c_char {
    message()
}

/// Zeroes a struct of this header and sets its `size` and `version`: `kvtier_init(&config, sizeof config)`.
///
/// # Safety
/// `structure` is null or has `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_init(structure: *mut c_void, size: u64) -> Status {
    // SAFETY: the caller's word.
    entry(|| unsafe { init(structure, size) })
}

/// Sends messages up to `level` (`KVTIER_LOG_*`) to `callback`, or to nobody if it is null. When this returns, a
/// callback set before is not called any more. It must not call kvtier, throw or jump.
///
/// # Safety
/// `callback` may be called with `user` on any thread until it is replaced.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_set_logger(callback: LogCallback, user: *mut c_void, level: u32) -> Status {
    // SAFETY: the caller's word.
    entry(|| unsafe { crate::log::set(callback, user, level) })
}
