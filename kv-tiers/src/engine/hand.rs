//! What carries out jobs. The engine knows nothing of files or devices beyond this trait.

use kv_core::ids::JobId;
use kv_core::job::{Job, RemoteJob, TransferError};

/// Something that carries out jobs: devices and logs of this machine, a simulator, workers in other
/// processes.
pub trait Hand: Send + Sync {
    /// Takes jobs on without waiting for them; each will be reported exactly once, maybe before this
    /// returns. Returns the jobs that were *not* taken on and will not be reported, with the reason.
    fn submit(&self, jobs: Vec<Job>) -> Vec<(JobId, TransferError)>;

    /// Takes calls to remote stores on, under the same rules. Each is answered to an
    /// [`AnswerSink`](kv_core::job::AnswerSink). A hand without remote stores takes none.
    fn call(&self, calls: Vec<RemoteJob>) -> Vec<(JobId, TransferError)> {
        calls.iter().map(|call| (call.id, TransferError::Down)).collect()
    }

    /// Leaves the calls to remote stores that are under way, answers them, and takes no more. Blocks, but for no store.
    fn leave_calls(&self) {}

    /// Makes every write that was reported before this call survive a power loss. Blocks.
    ///
    /// # Errors
    /// When that cannot be promised.
    fn sync(&self) -> Result<(), TransferError>;

    /// Reports what is outstanding and takes no more jobs. Blocks.
    fn close(&self);
}
