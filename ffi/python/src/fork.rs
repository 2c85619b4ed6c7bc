//! What a forked process may still touch: nothing. Its threads of kvtier are gone, and locks may be held for ever.

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::prelude::*;

use crate::errors::Forked;

/// Forks between the process that loaded the module and this one.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Runs in the child of a fork, where only async-signal-safe things are allowed.
extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Starts counting forks, also those of C code, which Python does not hear about.
pub(crate) fn watch() -> PyResult<()> {
    static STATUS: OnceLock<i32> = OnceLock::new();
    // SAFETY: the handler changes one atomic number, and is never unloaded: CPython does not unload extensions.
    let status = *STATUS.get_or_init(|| unsafe { libc::pthread_atfork(None, None, Some(in_child)) });
    if status == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(status).into()) }
}

fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Whether the threads of kvtier, if there are any, are those of this process.
pub(crate) fn is_theirs() -> bool {
    let first = THREADS.load(Ordering::Relaxed);
    first == NONE || first == generation()
}

/// The generation that first had threads of kvtier; [`NONE`] before there are any.
static THREADS: AtomicU32 = AtomicU32::new(NONE);
const NONE: u32 = u32::MAX;

/// Asks for threads in this process. A process that was forked from one with threads cannot have any: `parking_lot` knows
/// the threads that wait by addresses in their stacks, which the child takes for threads of its own.
pub(crate) fn may_have_threads() -> PyResult<()> {
    let now = generation();
    match THREADS.compare_exchange(NONE, now, Ordering::Relaxed, Ordering::Relaxed) {
        Err(first) if first != now => Err(Forked::new_err(
            "this process was forked from one that had opened a store: fork before that, or use the start method 'spawn'",
        )),
        _ => Ok(()),
    }
}

/// A value that threads of this process work with. In a forked process it cannot be reached, and is never dropped.
pub(crate) struct Native<T> {
    value: ManuallyDrop<T>,
    born: u32,
}

impl<T> Native<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: ManuallyDrop::new(value), born: generation() }
    }

    /// The value, in the process that made it.
    pub(crate) fn get(&self) -> PyResult<&T> {
        if self.is_here() {
            Ok(&self.value)
        } else {
            Err(Forked::new_err(
                "this object belongs to the process that was forked: fork before a store is opened, or use the start \
                 method 'spawn'",
            ))
        }
    }

    pub(crate) fn is_here(&self) -> bool {
        self.born == generation()
    }
}

/// Only for values that were just made, or behind [`Native::is_here`].
impl<T> Deref for Native<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for Native<T> {
    fn drop(&mut self) {
        if self.is_here() {
            // SAFETY: dropped nowhere else, and not used after it.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}
