//! What keeps the memory of an operation alive, and when it is let go.

use std::sync::Arc;

use kvtier_ffi::Ticket;
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::fork::Native;
use crate::view::View;

/// Something that must stay as long as an operation uses its memory.
#[expect(dead_code, reason = "kept, not read")]
pub(crate) enum Owner {
    /// Exported by the buffer protocol.
    View(View),
    /// A tensor, a capsule, or whatever the caller named.
    Object(Py<PyAny>),
}

/// The owners of one operation. Made and dropped by threads that are attached to the interpreter only: the workers of
/// kvtier never see them.
pub(crate) type Owners = Vec<Owner>;

/// Operations whose ticket nobody holds any more, while their memory is in use.
static ABANDONED: Mutex<Vec<(Native<Arc<Ticket>>, Owners)>> = Mutex::new(Vec::new());

/// A ticket was dropped before its operation was over.
pub(crate) fn abandon(ticket: Native<Arc<Ticket>>, owners: Owners) {
    ABANDONED.lock().push((ticket, owners));
}

/// Lets go of what is not in use any more. Called by every submission, so that what is abandoned is bounded by what a
/// store takes on.
pub(crate) fn sweep(_attached: Python<'_>) {
    let mut abandoned = ABANDONED.lock();
    if abandoned.is_empty() {
        return;
    }
    let in_use =
        |(ticket, _): &mut (Native<Arc<Ticket>>, Owners)| !ticket.is_here() || ticket.poll().is_none();
    let over: Vec<_> = abandoned.extract_if(.., |entry| !in_use(entry)).collect();
    // Not under the lock: dropping a Python object may run any code, this function included.
    drop(abandoned);
    drop(over);
}
