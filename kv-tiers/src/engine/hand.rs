//! What carries out jobs. The engine knows nothing of files or devices beyond this trait.

use kv_core::ids::JobId;
use kv_core::job::{Job, TransferError};

/// Something that carries out jobs: devices and logs of this machine, a simulator, workers in other
/// processes.
pub trait Hand: Send + Sync {
    /// Takes jobs on without waiting for them; each will be reported exactly once, maybe before this
    /// returns. Returns the jobs that were *not* taken on and will not be reported, with the reason.
    fn submit(&self, jobs: Vec<Job>) -> Vec<(JobId, TransferError)>;

    /// Makes every write that was reported before this call survive a power loss. Blocks.
    ///
    /// # Errors
    /// When that cannot be promised.
    fn sync(&self) -> Result<(), TransferError>;

    /// Reports what is outstanding and takes no more jobs. Blocks.
    fn close(&self);
}
