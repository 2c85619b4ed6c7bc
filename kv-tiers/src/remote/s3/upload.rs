//! A record that is stored in parts, over several connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, PutPayload};
use tokio::runtime::Handle;

use super::ops::all;
use super::request::Requests;
use crate::remote::RemoteError;
use crate::remote::call::Flight;
use crate::remote::writers::Writer;

/// Bytes of a part. Amazon wants at least 5 MiB, and at most 10,000 of them: a record has at most 64.
const PART: usize = 16 << 20;

/// Larger records go up in parts. Two requests more, to begin and to end, are then less than what a second connection
/// wins.
pub(super) const LARGE: usize = 2 * PART;

/// How long it is tried to take back an upload that failed. After that it is the bucket's lifecycle rule's.
const TAKE_BACK: Duration = Duration::from_secs(10);

/// An upload, and whom it is for.
pub(super) struct Upload<'a> {
    pub(super) requests: &'a Requests,
    pub(super) object: &'a Path,
    pub(super) writer: Writer,
    pub(super) flight: Option<Arc<Flight>>,
}

impl Upload<'_> {
    /// The object appears at the end, whole, or not at all.
    pub(super) async fn run(self, record: Bytes) -> Result<(), RemoteError> {
        let Self { requests, object, writer, flight } = self;
        // A task of its own, that goes on when this is cancelled: an upload that has begun and of which nobody knows the
        // id could not be taken back.
        let upload = Handle::current().spawn(begin(requests.clone(), object.clone(), (writer, flight)));
        let upload = upload.await.map_err(|_| RemoteError::Closed)??;
        let starts = (0..record.len()).step_by(PART);
        let parts = starts.enumerate().map(|(n, start)| {
            let bytes = record.slice(start..record.len().min(start + PART));
            let (requests, object, id) = (requests.clone(), object.clone(), upload.id.clone());
            async move { part(&requests, &object, &id, n, bytes).await }
        });
        let parts = all(parts).await?;
        let complete = || requests.bucket.store.complete_multipart(object, &upload.id, parts.clone());
        requests.ask(complete).await?;
        upload.ended();
        Ok(())
    }
}

async fn begin(
    requests: Requests,
    object: Path,
    held: (Writer, Option<Arc<Flight>>),
) -> Result<Begun, RemoteError> {
    let id = requests.ask(|| requests.bucket.store.create_multipart(&object)).await?;
    Ok(Begun { requests, object, id, event_loop: Handle::current(), held: Some(held) })
}

async fn part(
    requests: &Requests,
    object: &Path,
    id: &MultipartId,
    n: usize,
    bytes: Bytes,
) -> Result<PartId, RemoteError> {
    let payload = PutPayload::from(bytes);
    requests.ask(|| requests.bucket.store.put_part(object, id, n, payload.clone())).await
}

/// An upload that has begun. Unless it says that it ended, it is taken back when it is dropped: its parts are nothing
/// that anybody could see, list or sweep, and are paid for.
struct Begun {
    requests: Requests,
    object: Path,
    id: MultipartId,
    /// Where this runs.
    event_loop: Handle,
    /// What tells a sweep that there is a writer, and the call's permit; `None` when it has ended.
    held: Option<(Writer, Option<Arc<Flight>>)>,
}

impl Begun {
    fn ended(mut self) {
        self.held = None;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let bucket = Arc::clone(&self.requests.bucket);
        let (object, id) = (self.object.clone(), self.id.clone());
        self.event_loop.spawn(async move {
            let deadline = Instant::now() + TAKE_BACK;
            let requests = Requests::new(&bucket, deadline);
            let abort = requests.ask(|| bucket.store.abort_multipart(&object, &id));
            if !matches!(tokio::time::timeout_at(deadline.into(), abort).await, Ok(Ok(()))) {
                tracing::warn!(%object, "an unfinished upload stays until the bucket's lifecycle rule ends it");
            }
            drop(held);
        });
    }
}
