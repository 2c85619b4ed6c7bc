//! Where completions go.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kv_core::Verified;
use kv_core::ids::JobId;
use kv_core::job::TransferError;

/// Told the outcome of every submitted job, exactly once, on a thread of the log's. The job's slot is free again.
/// Must not block, for other completions wait behind it, and must not drop the log. May submit more jobs.
pub trait CompletionSink: Send + Sync {
    /// `job` is over.
    fn complete(&self, job: JobId, result: Result<Verified, TransferError>);
}

/// Delivers a completion. A sink that panics must not take the I/O thread, and every job in flight, with it.
pub(crate) fn deliver(sink: &dyn CompletionSink, job: JobId, result: Result<Verified, TransferError>) {
    if catch_unwind(AssertUnwindSafe(|| sink.complete(job, result))).is_err() {
        tracing::error!(?job, "the completion sink panicked");
    }
}
