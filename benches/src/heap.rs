//! Heap bytes and allocations of a piece of code, counted by the allocator itself.
//!
//! A binary that wants figures installs it; elsewhere [`measure`] reports `None` rather than zero:
//!
//! ```
//! #[global_allocator]
//! static HEAP: kvtier_benches::heap::CountingHeap = kvtier_benches::heap::CountingHeap;
//!
//! let (kept, growth) = kvtier_benches::heap::measure(|| vec![0u8; 1000]);
//! let growth = growth.expect("the counting heap is installed");
//! assert_eq!((growth.bytes, growth.allocations), (1000, 1));
//! # drop(kept);
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};

static INSTALLED: AtomicBool = AtomicBool::new(false);
/// Off while time is measured: then an allocation costs one predictable branch more.
static COUNTING: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicI64 = AtomicI64::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// What a piece of code did to the heap. All threads count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Bytes allocated and not freed; negative when more was freed.
    pub bytes: i64,
    /// Calls that allocated or resized.
    pub allocations: u64,
}

/// The system allocator with counters that [`measure`] turns on.
pub struct CountingHeap;

fn count(bytes: i64, allocations: u64) {
    if COUNTING.load(Relaxed) {
        BYTES.fetch_add(bytes, Relaxed);
        ALLOCATIONS.fetch_add(allocations, Relaxed);
    }
}

// SAFETY: every call is handed to `System` unchanged, so its guarantees are this allocator's. The counters
// are atomics in statics: touching them allocates nothing and cannot unwind.
unsafe impl GlobalAlloc for CountingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64, 1);
        // SAFETY: the caller's promises about `layout` are the ones that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64, 1);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64), 0);
        // SAFETY: `at` came from this allocator with `layout`, hence from `System` with `layout`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64, 1);
        // SAFETY: `at` came from `System` with `layout`; the caller vouches for `size`.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Runs `work` and says what it did to the heap; `None` when [`CountingHeap`] is not the global allocator.
pub fn measure<R>(work: impl FnOnce() -> R) -> (R, Option<Growth>) {
    if !installed() {
        return (work(), None);
    }
    let before = (BYTES.load(Relaxed), ALLOCATIONS.load(Relaxed));
    COUNTING.store(true, Relaxed);
    let result = work();
    COUNTING.store(false, Relaxed);
    let growth =
        Growth { bytes: BYTES.load(Relaxed) - before.0, allocations: ALLOCATIONS.load(Relaxed) - before.1 };
    (result, Some(growth))
}

/// Asks the allocator by allocating once: nothing else knows whether it was installed.
fn installed() -> bool {
    if !INSTALLED.load(Relaxed) {
        let before = ALLOCATIONS.load(Relaxed);
        COUNTING.store(true, Relaxed);
        drop(std::hint::black_box(Box::new(0u8)));
        COUNTING.store(false, Relaxed);
        INSTALLED.store(ALLOCATIONS.load(Relaxed) != before, Relaxed);
    }
    INSTALLED.load(Relaxed)
}
