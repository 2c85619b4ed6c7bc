//! What stands between a caller in C and everything else: no panic passes, no call is served in a forked child, and a
//! failure leaves its sentence behind.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::status::{Failure, Status};

thread_local! {
    static MESSAGE: RefCell<CString> = RefCell::default();
    /// A logging callback is running on this thread.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Set in a child that was forked after kvtier was first used: its threads are gone and its locks may be held for ever.
static FORKED: AtomicBool = AtomicBool::new(false);

/// Every function of the ABI runs its body in here.
pub(crate) fn entry(body: impl FnOnce() -> Result<(), Failure>) -> Status {
    if FORKED.load(Ordering::Relaxed) {
        return Status::Forked;
    }
    if IN_CALLBACK.try_with(Cell::get).unwrap_or(false) {
        return Status::Reentered;
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Status::Ok,
        Ok(Err(Failure { status, message })) => {
            remember(&message);
            status
        }
        Err(payload) => {
            let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
            remember(&format!("a bug in kvtier: {text}"));
            // A payload whose destructor panics is not worth our process.
            std::mem::forget(payload);
            Status::Panic
        }
    }
}

fn remember(message: &str) {
    let bytes: Vec<u8> = message.bytes().filter(|byte| *byte != 0).collect();
    let text = CString::new(bytes).unwrap_or_default();
    // No message while the thread ends.
    let _kept = MESSAGE.try_with(|message| *message.borrow_mut() = text);
}

/// The last failure of this thread. Valid until the next failure of this thread.
pub(crate) fn message() -> *const c_char {
    if FORKED.load(Ordering::Relaxed) {
        return c"this process was forked from one that uses kvtier".as_ptr();
    }
    let text = MESSAGE.try_with(|message| message.borrow().as_ptr());
    text.unwrap_or_else(|_| CStr::as_ptr(c""))
}

/// Notices forks from now on. Called before the first thread or lock is made that a child would miss.
pub(crate) fn watch_forks() {
    extern "C" fn in_child() {
        FORKED.store(true, Ordering::Relaxed);
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler stores one atomic, which may be done between fork and exec. Fails only without memory.
        let _status = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

/// Marks this thread as being in a callback of the caller.
pub(crate) fn calling_back(callback: impl FnOnce()) {
    let Ok(before) = IN_CALLBACK.try_with(|flag| flag.replace(true)) else { return };
    if !before {
        callback();
    }
    let _restored = IN_CALLBACK.try_with(|flag| flag.set(before));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        // SAFETY: the message is this thread's, and nothing has failed since.
        unsafe { CStr::from_ptr(message()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_becomes_a_status() {
        assert_eq!(entry(|| panic!("number {}", 7)), Status::Panic);
        assert_eq!(last(), "a bug in kvtier: number 7");
        assert_eq!(entry(|| std::panic::panic_any(5_u8)), Status::Panic);
        assert_eq!(entry(|| Ok(())), Status::Ok);
    }

    #[test]
    fn a_failure_leaves_its_sentence_on_its_thread() {
        assert_eq!(entry(|| Err(Failure::argument("a\0b"))), Status::InvalidArgument);
        assert_eq!(last(), "ab");
        std::thread::spawn(|| assert_eq!(last(), "")).join().unwrap();
    }

    #[test]
    fn callbacks_may_not_call_back() {
        calling_back(|| assert_eq!(entry(|| Ok(())), Status::Reentered));
        assert_eq!(entry(|| Ok(())), Status::Ok);
    }
}
