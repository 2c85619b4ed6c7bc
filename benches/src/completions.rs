//! Completions of hands as a channel, for benchmarks that wait for them on their own thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use kv_core::Verified;
use kv_core::ids::JobId;
use kv_core::job::{CompletionSink, TransferError};

/// What came of a job. No token: a benchmark hands no bytes to a runtime.
type Outcome = (JobId, Result<(), TransferError>);

/// The receiving end.
pub(crate) struct Completions(Receiver<Outcome>);

struct Sink(Sender<Outcome>);

impl CompletionSink for Sink {
    fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
        // Nobody waits any more after a first failure.
        self.0.send((job, result.map(drop))).ok();
    }
}

impl Completions {
    pub(crate) fn channel() -> (Arc<dyn CompletionSink>, Self) {
        let (sender, receiver) = channel();
        (Arc::new(Sink(sender)), Self(receiver))
    }

    /// Waits for the next job that is over.
    ///
    /// # Errors
    /// Why it failed; [`TransferError::Down`] if the hand is gone.
    pub(crate) fn wait(&self) -> Result<JobId, TransferError> {
        let (job, result) = self.0.recv().map_err(|_| TransferError::Down)?;
        result.map(|()| job)
    }

    /// As [`Completions::wait`], for hands that may hang: `None` if nothing is over in that time.
    ///
    /// # Errors
    /// As for [`Completions::wait`].
    pub(crate) fn wait_at_most(&self, time: Duration) -> Result<Option<JobId>, TransferError> {
        match self.0.recv_timeout(time) {
            Ok((job, result)) => result.map(|()| Some(job)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(TransferError::Down),
        }
    }
}
