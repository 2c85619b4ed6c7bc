//! Two threads for the clients of servers.

use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

use super::OpenError;
use super::call::Flight;

/// One parses while the other copies.
const THREADS: usize = 2;

/// The threads. Dropping it forgets what has not ended, and waits for nothing.
pub(crate) struct EventLoop {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl EventLoop {
    /// Starts it, and chooses who speaks TLS.
    pub(crate) fn start(thread_name: &str) -> Result<Self, OpenError> {
        // Somebody else in the process may have chosen another provider: then that one is used.
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("TLS is somebody else's choice in this process");
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            // Name resolution, the only blocking work.
            .max_blocking_threads(2)
            .thread_name(thread_name)
            .enable_io()
            .enable_time()
            .build()
            .map_err(OpenError::Threads)?;
        Ok(Self { runtime: Some(runtime) })
    }

    /// Does a call until its deadline, and not a moment longer than somebody waits for it. What is not answered by
    /// then says so itself when it is dropped.
    pub(crate) fn run(&self, flight: &Arc<Flight>, work: impl Future<Output = ()> + Send + 'static) {
        let Some(runtime) = &self.runtime else { return };
        let deadline = flight.deadline();
        let task = runtime.spawn(async move {
            if tokio::time::timeout_at(deadline.into(), work).await.is_err() {
                tracing::debug!("a call to a remote store was late");
            }
        });
        let task = task.abort_handle();
        flight.when_left(move || task.abort());
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
