//! One request to the bucket, and how often it is made.

use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::aws::AmazonS3;
use object_store::client::HttpError;
use tokio::sync::Semaphore;

use super::wire::Refusal;
use crate::remote::RemoteError;

/// Requests at a time, each with a connection of its own. One connection carries 85 to 90 MB/s of Amazon's, so these
/// fill a 25 Gbit/s link. <https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-design-patterns.html>
pub(super) const LANES: usize = 32;

/// Attempts at one request. With the pauses that is at most 0.3 s, which is what a miss may cost.
const ATTEMPTS: u32 = 5;

/// Longest pause after the first failure; it doubles with every other.
const PAUSE: Duration = Duration::from_millis(20);

/// A bucket.
pub(super) struct Bucket {
    pub(super) store: AmazonS3,
    lanes: Semaphore,
}

impl Bucket {
    pub(super) fn new(store: AmazonS3) -> Self {
        Self { store, lanes: Semaphore::new(LANES) }
    }
}

/// The requests of one call.
#[derive(Clone)]
pub(super) struct Requests {
    pub(super) bucket: Arc<Bucket>,
    deadline: Instant,
}

impl Requests {
    pub(super) fn new(bucket: &Arc<Bucket>, deadline: Instant) -> Self {
        Self { bucket: Arc::clone(bucket), deadline }
    }

    /// Makes a request, and again if it failed in a way that passes. `once` reads the answer to its end, because its
    /// connection is somebody else's then.
    pub(super) async fn ask<T, F>(&self, mut once: impl FnMut() -> F) -> Result<T, RemoteError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut attempt = 1;
        loop {
            let failure = match self.attempt(once()).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let pause = pause(attempt);
            // Nobody is there any more when such a pause is over: they may as well know now.
            if !failure.passes || attempt == ATTEMPTS || Instant::now() + pause >= self.deadline {
                return Err(failure.why);
            }
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    async fn attempt<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> Result<T, Failure> {
        let closed = |_| Failure { why: RemoteError::Closed, passes: false };
        let _lane = self.bucket.lanes.acquire().await.map_err(closed)?;
        // They are kept while they are valid. Whoever refuses to give them speaks in the bucket's words, and does not
        // mean its objects.
        let credentials = self.bucket.store.credentials().get_credential().await;
        credentials.map_err(|error| Failure { why: RemoteError::Denied, ..Failure::of(&error) })?;
        request.await.map_err(|error| Failure::of(&error))
    }
}

/// Any time up to one that doubles, so that those who failed together do not come back together ("full jitter").
/// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
fn pause(attempt: u32) -> Duration {
    let longest = PAUSE * 2_u32.saturating_pow(attempt - 1);
    longest.mul_f64(RandomState::new().hash_one(attempt) as f64 / u64::MAX as f64)
}

/// What an error of the client means to us.
pub(super) fn why(error: &object_store::Error) -> RemoteError {
    Failure::of(error).why
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    why: RemoteError,
    /// Whether it may succeed if it is made again.
    passes: bool,
}

impl Failure {
    fn of(error: &object_store::Error) -> Self {
        let mut on_the_way = false;
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(Refusal { status, code }) = error.downcast_ref() {
                return Self::of_refusal(*status, code);
            }
            on_the_way |= error.is::<HttpError>();
            cause = error.source();
        }
        if on_the_way {
            return Self { why: RemoteError::Unreachable, passes: true };
        }
        // Some errors are the text of a success.
        let text = error.to_string();
        let says = |codes: &[&str]| codes.iter().any(|code| text.contains(code));
        if says(&["AccessDenied"]) {
            return Self { why: RemoteError::Denied, passes: false };
        }
        Self { why: RemoteError::Server, passes: says(&["InternalError", "SlowDown"]) }
    }

    /// Names of errors: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>; of those about space,
    /// MinIO's and Ceph's.
    fn of_refusal(status: u16, code: &str) -> Self {
        let (why, passes) = match (status, code) {
            (507, _) | (_, "QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded") => {
                (RemoteError::NoSpace, false)
            }
            (_, "NoSuchBucket") => (RemoteError::Server, false),
            (404, _) => (RemoteError::Absent, false),
            (401 | 403, _) | (_, "ExpiredToken" | "InvalidToken") => (RemoteError::Denied, false),
            // A range beyond the end: something shorter than any record of that length.
            (416, _) => (RemoteError::NoRecord, false),
            (408 | 429 | 500 | 502..=504, _) | (_, "RequestTimeout" | "SlowDown") => {
                (RemoteError::Server, true)
            }
            _ => (RemoteError::Server, false),
        };
        Self { why, passes }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::code;
    use super::*;

    #[test]
    fn pauses_grow_are_random_and_are_bounded() {
        for attempt in 1..ATTEMPTS {
            let pauses: Vec<_> = (0..1000).map(|_| pause(attempt)).collect();
            let longest = PAUSE * (1 << (attempt - 1));
            assert!(pauses.iter().all(|pause| *pause <= longest), "{attempt}");
            assert!(pauses.iter().any(|pause| *pause > longest.mul_f64(0.9)), "{attempt}");
            assert!(pauses.iter().any(|pause| *pause < longest.mul_f64(0.1)), "{attempt}");
        }
        let sum: Duration = (1..ATTEMPTS).map(|attempt| PAUSE * (1 << (attempt - 1))).sum();
        assert_eq!(sum, Duration::from_millis(300));
    }

    #[test]
    fn refusals_are_told_apart() {
        let of = |status, text: &str| {
            let Failure { why, passes } = Failure::of_refusal(status, &code(text.as_bytes()));
            (why, passes)
        };
        assert_eq!(of(404, "<Error><Code>NoSuchKey</Code></Error>"), (RemoteError::Absent, false));
        assert_eq!(of(404, ""), (RemoteError::Absent, false));
        assert_eq!(of(404, "<Error><Code>NoSuchBucket</Code></Error>"), (RemoteError::Server, false));
        assert_eq!(of(403, "<Code>SignatureDoesNotMatch</Code>"), (RemoteError::Denied, false));
        assert_eq!(of(400, "<Code>ExpiredToken</Code>"), (RemoteError::Denied, false));
        assert_eq!(of(403, "<Code>QuotaExceeded</Code>"), (RemoteError::NoSpace, false));
        assert_eq!(of(507, "what?"), (RemoteError::NoSpace, false));
        assert_eq!(of(503, "<Code>SlowDown</Code>"), (RemoteError::Server, true));
        assert_eq!(of(429, ""), (RemoteError::Server, true));
        assert_eq!(of(400, "<Code>RequestTimeout</Code>"), (RemoteError::Server, true));
        assert_eq!(of(400, "<Code>MalformedXML"), (RemoteError::Server, false));
    }
}
