//! The Rust side of `control.h`.

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What the driver pretends to be.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Chooses among operations that may run next. 0: only what is waited for runs, and as late as possible.
    pub seed: u64,
    /// Operations that a query carries out at most.
    pub ops_per_query: u64,
    /// 1000 x major + 10 x minor.
    pub driver_version: u64,
    /// Number of devices; without any, `cuInit` fails.
    pub devices: u64,
    /// 10 x major + minor.
    pub compute_capability: u64,
    /// Bytes of memory of each device.
    pub device_memory: u64,
    /// Host to device, MB/s.
    pub h2d_rate: u64,
    /// Device to host, MB/s.
    pub d2h_rate: u64,
    /// Within a device, MB/s.
    pub d2d_rate: u64,
    /// MB/s that a kernel moves over the link with each of its blocks of threads.
    pub cta_rate: u64,
    /// MB/s that a kernel moves over the link at most.
    pub kernel_link_rate: u64,
    /// Nanoseconds before the first byte of a copy.
    pub copy_latency_ns: u64,
    /// Nanoseconds of a copy engine for each descriptor.
    pub descriptor_ns: u64,
    /// Nanoseconds of a kernel that does nothing.
    pub launch_ns: u64,
}

/// What exists in the driver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Retains of primary contexts that were not released.
    pub contexts: u64,
    /// Streams.
    pub streams: u64,
    /// Events.
    pub events: u64,
    /// Modules.
    pub modules: u64,
    /// Allocations of device memory.
    pub device_allocations: u64,
    /// Their bytes.
    pub device_bytes: u64,
    /// Allocations of pinned host memory.
    pub pinned_allocations: u64,
    /// Registrations of host memory.
    pub registrations: u64,
    /// Device memory that was opened through IPC.
    pub imports: u64,
    /// Operations that were submitted and have not run.
    pub queued: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RawCall {
    pub(super) symbol: *const c_char,
    pub(super) stream: u64,
    pub(super) bytes: u64,
    pub(super) result: i64,
    pub(super) times: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RawOp {
    pub(super) name: *const c_char,
    pub(super) stream: u64,
    pub(super) sequence: u64,
    pub(super) bytes: u64,
    pub(super) descriptors: u64,
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
}

/// Declares the table of functions, and how it is filled from the library.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($arg:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of `control.h`.
        pub(super) struct Control {
            $($field: unsafe extern "C" fn($($arg),*) $(-> $result)?,)*
        }

        impl Control {
            /// `handle` is the open library.
            fn of(handle: *mut c_void) -> Self {
                $(
                    // SAFETY: the handle is open and the name a C string.
                    let $field = unsafe { libc::dlsym(handle, $symbol.as_ptr()) };
                    assert!(!$field.is_null(), "{:?} is missing", $symbol);
                )*
                Self {
                    $($field: {
                        type Function = unsafe extern "C" fn($($arg),*) $(-> $result)?;
                        // SAFETY: control.h declares the function with this type.
                        unsafe { std::mem::transmute::<*mut c_void, Function>($field) }
                    },)*
                }
            }
        }
    };
}

functions! {
    settings_size = c"fake_settings_size": fn() -> usize;
    settings = c"fake_settings": fn(*mut Settings);
    configure = c"fake_configure": fn(*const Settings);
    reset = c"fake_reset": fn();
    fail = c"fake_fail": fn(*const c_char, u64, i64, i64);
    die = c"fake_die": fn(u64, i64);
    stall = c"fake_stall": fn(i64);
    live = c"fake_live": fn(*mut Live);
    calls = c"fake_calls": fn(*mut RawCall, usize) -> usize;
    ops = c"fake_ops": fn(*mut RawOp, usize) -> usize;
    clear_trace = c"fake_clear_trace": fn();
    violation = c"fake_violation": fn(usize, *mut c_char, usize) -> i64;
    clear_violations = c"fake_clear_violations": fn();
    peek = c"fake_peek": fn(u64, *mut c_void, usize) -> i64;
    now_ns = c"fake_now_ns": fn() -> u64;
}

impl Control {
    /// Loads the library for the whole process, for ever.
    pub(super) fn load(path: &Path) -> Self {
        let path = CString::new(path.as_os_str().as_bytes()).expect("a path");
        // SAFETY: the path is a C string; the library's initialisers only set up C++ objects of its own.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        assert!(!handle.is_null(), "{path:?} cannot be loaded: {}", last_error());
        // SAFETY: as above; loads nothing.
        let known = unsafe { libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        assert_eq!(known, handle, "this process has another CUDA driver already");
        let control = Self::of(handle);
        // SAFETY: takes nothing and touches nothing.
        let size = unsafe { (control.settings_size)() };
        assert_eq!(size, size_of::<Settings>(), "control.h and ffi.rs differ");
        control
    }

    pub(super) fn settings(&self) -> Settings {
        let mut out = MaybeUninit::uninit();
        // SAFETY: the function fills the whole struct, whose size was compared.
        unsafe {
            (self.settings)(out.as_mut_ptr());
            out.assume_init()
        }
    }

    pub(super) fn configure(&self, settings: &Settings) {
        // SAFETY: reads one struct and keeps no pointer.
        unsafe { (self.configure)(settings) }
    }

    pub(super) fn reset(&self) {
        // SAFETY: takes the library's lock; handles of before are numbers that it no longer knows.
        unsafe { (self.reset)() }
    }

    pub(super) fn fail(&self, symbol: &CStr, nth: u64, code: i32, for_ever: bool) {
        // SAFETY: the string is copied.
        unsafe { (self.fail)(symbol.as_ptr(), nth, code.into(), for_ever.into()) }
    }

    pub(super) fn die(&self, nth: u64, code: i32) {
        // SAFETY: plain numbers.
        unsafe { (self.die)(nth, code.into()) }
    }

    pub(super) fn stall(&self, stalled: bool) {
        // SAFETY: plain numbers.
        unsafe { (self.stall)(stalled.into()) }
    }

    pub(super) fn live(&self) -> Live {
        let mut out = Live::default();
        // SAFETY: writes one struct of this layout.
        unsafe { (self.live)(&raw mut out) }
        out
    }

    pub(super) fn calls(&self) -> Vec<RawCall> {
        collect(self.calls)
    }

    pub(super) fn ops(&self) -> Vec<RawOp> {
        collect(self.ops)
    }

    pub(super) fn clear_trace(&self) {
        // SAFETY: takes nothing.
        unsafe { (self.clear_trace)() }
    }

    pub(super) fn violations(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut text = [0; 512];
        // SAFETY: writes at most that many bytes and ends them with a zero.
        while unsafe { (self.violation)(all.len(), text.as_mut_ptr(), text.len()) } != 0 {
            // SAFETY: ended with a zero, see above.
            all.push(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned());
        }
        all
    }

    pub(super) fn clear_violations(&self) {
        // SAFETY: takes nothing.
        unsafe { (self.clear_violations)() }
    }

    pub(super) fn peek(&self, address: u64, bytes: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; bytes];
        // SAFETY: writes that many bytes or none.
        let found = unsafe { (self.peek)(address, out.as_mut_ptr().cast(), bytes) };
        (found != 0).then_some(out)
    }

    pub(super) fn now_ns(&self) -> u64 {
        // SAFETY: takes nothing.
        unsafe { (self.now_ns)() }
    }
}

/// All entries of a trace, which may grow meanwhile.
fn collect<T: Copy>(copy_out: unsafe extern "C" fn(*mut T, usize) -> usize) -> Vec<T> {
    let mut out: Vec<T> = Vec::new();
    loop {
        // SAFETY: writes at most as many entries as there is room for, and says how many it has.
        let there = unsafe { copy_out(out.as_mut_ptr(), out.capacity()) };
        if there <= out.capacity() {
            // SAFETY: so many were written just now.
            unsafe { out.set_len(there) };
            return out;
        }
        out.reserve(there);
    }
}

fn last_error() -> String {
    // SAFETY: the string lasts until the next call of dl*, and is copied before.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    }
}
