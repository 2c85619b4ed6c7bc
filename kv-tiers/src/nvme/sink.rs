//! Where completions go.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kv_core::Verified;
use kv_core::ids::JobId;
use kv_core::job::TransferError;

pub use kv_core::job::CompletionSink;

/// Delivers a completion. A sink that panics must not take the I/O thread, and every job in flight, with it.
pub(crate) fn deliver(sink: &dyn CompletionSink, job: JobId, result: Result<Verified, TransferError>) {
    if catch_unwind(AssertUnwindSafe(|| sink.complete(job, result))).is_err() {
        tracing::error!(?job, "the completion sink panicked");
    }
}
