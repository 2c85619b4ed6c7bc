//! A CUDA driver without a GPU, for tests of `kv-cuda`.
//!
//! ```text
//!   test ── FakeCuda ──► fake_*   steer, look inside           C++, compiled when the first test asks:
//!   kv-cuda ── dlsym ──► cu*      the driver's own ABI         driver, memory, streams, cost, kernel, guard, api_*
//!                                     │
//!                                     └─► kernels/host: the kernels, compiled for the host
//! ```
//!
//! It is a shared library that calls itself `libcuda.so`. A process that loads it before anything asks for a
//! driver gets it in place of the real one. Device memory is ordinary memory at addresses that the host
//! cannot touch; streams are queues, and nothing in them runs before somebody waits or asks; each copy
//! engine works in order of submission; time is virtual. So what a GPU does rarely, this does always: a
//! forgotten wait shows the old bytes, memory that was freed too early is an error. What was done wrong but
//! would have gone unnoticed is in [`FakeCuda::violations`].
//!
//! There is one driver in a process. Tests that share a process take turns: [`FakeCuda::alone`].

mod ffi;

use std::ffi::{CStr, CString};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use parking_lot::{Mutex, MutexGuard};

use crate::cxx::Library;
pub use ffi::{Live, Settings};

/// Whether the driver has `cuMemcpyBatchAsync`, which came with CUDA 12.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// It has.
    WithBatch,
    /// The symbol is not there.
    WithoutBatch,
}

/// A call of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverCall {
    /// The function.
    pub symbol: String,
    /// The stream's handle, 0 if the call has none.
    pub stream: u64,
    /// Bytes to be copied, filled, allocated or registered.
    pub bytes: u64,
    /// A `CUresult`.
    pub result: i32,
    /// So many equal calls in a row.
    pub times: u64,
}

/// An operation that has run, in the order of their running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverOp {
    /// The function that submitted it, or the kernel.
    pub name: String,
    /// The stream's handle.
    pub stream: u64,
    /// Rank in the order of submission.
    pub sequence: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Parts of a batch.
    pub descriptors: u64,
    /// Where the first part went, 0 for kernels.
    pub dst: u64,
    /// Where the first part came from, 0 for kernels and fills.
    pub src: u64,
    /// Nanoseconds of virtual time.
    pub start_ns: u64,
    /// Nanoseconds of virtual time.
    pub end_ns: u64,
}

/// The fake driver of this process.
pub struct FakeCuda {
    control: ffi::Control,
    variant: Variant,
    turn: Mutex<()>,
}

/// The right to use the driver, which is as new.
pub struct Alone {
    fake: &'static FakeCuda,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Alone {
    type Target = FakeCuda;

    fn deref(&self) -> &FakeCuda {
        self.fake
    }
}

static FAKE: OnceLock<FakeCuda> = OnceLock::new();

impl FakeCuda {
    /// The driver, compiled and loaded if this is the first call. Must come before anything looks for a
    /// CUDA driver.
    ///
    /// # Panics
    /// If there is no C++ compiler, if another driver was loaded before, or if the process has the other
    /// variant.
    #[must_use]
    pub fn load() -> &'static Self {
        Self::load_variant(Variant::WithBatch)
    }

    /// The driver of a process whose tests need that variant.
    ///
    /// # Panics
    /// As [`FakeCuda::load`].
    #[must_use]
    pub fn load_variant(variant: Variant) -> &'static Self {
        let fake = FAKE.get_or_init(|| {
            let path = Self::library(variant);
            Self { control: ffi::Control::load(&path), variant, turn: Mutex::new(()) }
        });
        assert_eq!(fake.variant, variant, "a process has one fake driver");
        fake
    }

    /// The driver as a library for another process, compiled if need be. A process that finds it as
    /// `libcuda.so` on its `LD_LIBRARY_PATH` has this driver; `environment.h` says how it is steered.
    ///
    /// # Panics
    /// If there is no C++ compiler.
    #[must_use]
    pub fn library(variant: Variant) -> PathBuf {
        library(variant).build().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits for the other tests of this process and resets the driver.
    #[must_use]
    pub fn alone(&'static self) -> Alone {
        let turn = self.turn.lock();
        self.reset();
        Alone { fake: self, _turn: turn }
    }

    /// Forgets everything but that the driver was initialised: objects, memory, plans, traces. Handles of
    /// before are invalid from now on.
    pub fn reset(&self) {
        self.control.reset();
    }

    /// What is pretended.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.control.settings()
    }

    /// Changes what is pretended, from now on.
    pub fn configure(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.settings();
        change(&mut settings);
        self.control.configure(&settings);
    }

    /// The `nth` call of `symbol` from now, 1 being the next, returns `code` and does nothing else. `"*"` is
    /// any symbol.
    pub fn fail_once(&self, symbol: &str, nth: u64, code: i32) {
        self.control.fail(&c_string(symbol), nth, code, false);
    }

    /// The `nth` call of `symbol` from now, and all that follow, return `code` and do nothing else.
    pub fn fail_from(&self, symbol: &str, nth: u64, code: i32) {
        self.control.fail(&c_string(symbol), nth, code, true);
    }

    /// The `nth` operation from now, 1 being the next, is not carried out: its device is lost, and answers
    /// `code` to everything. 0: all devices are lost at once.
    pub fn die_at_op(&self, nth: u64, code: i32) {
        self.control.die(nth, code);
    }

    /// Nothing moves any more: who waits, waits; who asks is told that it is not ready.
    pub fn stall(&self) {
        self.control.stall(true);
    }

    /// Ends a stall.
    pub fn resume(&self) {
        self.control.stall(false);
    }

    /// What exists now.
    #[must_use]
    pub fn live(&self) -> Live {
        self.control.live()
    }

    /// Calls since the trace was cleared.
    #[must_use]
    pub fn calls(&self) -> Vec<DriverCall> {
        let own = |call: ffi::RawCall| DriverCall {
            symbol: name(call.symbol),
            stream: call.stream,
            bytes: call.bytes,
            result: i32::try_from(call.result).expect("a CUresult"),
            times: call.times,
        };
        self.control.calls().into_iter().map(own).collect()
    }

    /// How often a function was called since the trace was cleared.
    #[must_use]
    pub fn count(&self, symbol: &str) -> u64 {
        self.calls().iter().filter(|call| call.symbol == symbol).map(|call| call.times).sum()
    }

    /// Operations that have run since the trace was cleared.
    #[must_use]
    pub fn ops(&self) -> Vec<DriverOp> {
        let own = |op: ffi::RawOp| DriverOp {
            name: name(op.name),
            stream: op.stream,
            sequence: op.sequence,
            bytes: op.bytes,
            descriptors: op.descriptors,
            dst: op.dst,
            src: op.src,
            start_ns: op.start_ns,
            end_ns: op.end_ns,
        };
        self.control.ops().into_iter().map(own).collect()
    }

    /// Empties the trace.
    pub fn clear_trace(&self) {
        self.control.clear_trace();
    }

    /// What was done wrong, in words: device memory or pinned memory used after its end, host memory that is
    /// not pinned in an asynchronous copy, a context that ended with objects in it.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.control.violations()
    }

    /// Forgives them.
    pub fn clear_violations(&self) {
        self.control.clear_violations();
    }

    /// Device memory as it is now, whatever is queued. `None` if it is not allocated.
    #[must_use]
    pub fn peek(&self, address: u64, bytes: usize) -> Option<Vec<u8>> {
        self.control.peek(address, bytes)
    }

    /// Virtual time, in nanoseconds, at which the host has last seen something done.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.control.now_ns()
    }
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("a symbol")
}

fn name(text: *const std::ffi::c_char) -> String {
    // SAFETY: the library gives out literals and names of kernels, which last as long as the process.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn library(variant: Variant) -> Library {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = root.join("src/fake_cuda");
    let kernels = root.join("../kernels");
    let files = [
        "api_device.cpp",
        "api_kernels.cpp",
        "api_memory.cpp",
        "api_streams.cpp",
        "cost.cpp",
        "driver.cpp",
        "environment.cpp",
        "guard.cpp",
        "kernel.cpp",
        "memory.cpp",
        "streams.cpp",
    ];
    let mut sources = files.map(|file| here.join(file)).to_vec();
    sources.push(kernels.join("host/kernels.cpp"));
    let mut flags = vec!["-Wl,-soname,libcuda.so".to_owned(), "-Wl,-z,defs".to_owned()];
    let name = match variant {
        Variant::WithBatch => "fake_cuda",
        Variant::WithoutBatch => {
            flags.push("-DFAKE_NO_BATCH".to_owned());
            "fake_cuda_without_batch"
        }
    };
    Library { name: name.to_owned(), sources, include: vec![kernels.clone(), kernels.join("host")], flags }
}
