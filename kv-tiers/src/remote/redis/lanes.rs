//! A fixed number of connections, made when needed, and made again with patience.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::dial::Dial;
use super::link::{Link, remote_error};
use crate::remote::RemoteError;

/// Connections to each server. One keeps a loopback busy with large values; more hide a network's latency.
const LANES: usize = 8;

/// Longest pause between attempts to connect, before jitter.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The connections.
pub(super) struct Lanes {
    dial: Dial,
    free: Semaphore,
    idle: Mutex<Vec<Link>>,
    patience: Mutex<Patience>,
}

/// What attempts to connect came to.
#[derive(Default)]
struct Patience {
    failures: u32,
    not_before: Option<Instant>,
}

impl Lanes {
    pub(super) fn new(dial: Dial) -> Self {
        Self { dial, free: Semaphore::new(LANES), idle: Mutex::default(), patience: Mutex::default() }
    }

    /// A connection for one call, when there is one.
    pub(super) async fn enter(&self) -> Result<Lane<'_>, RemoteError> {
        let permit = self.free.acquire().await.map_err(|_| RemoteError::Closed)?;
        let idle = self.idle.lock().pop();
        let fresh = idle.is_none();
        let link = match idle {
            Some(link) => link,
            None => self.connect().await?,
        };
        Ok(Lane { lanes: self, link: Some(link), fresh, _permit: permit })
    }

    /// After failures there is a pause in which attempts fail at once: a miss costs nothing then, and a server that
    /// comes back is not met by everybody in the same moment.
    async fn connect(&self) -> Result<Link, RemoteError> {
        if self.patience.lock().not_before.is_some_and(|then| Instant::now() < then) {
            return Err(RemoteError::Unreachable);
        }
        let attempt = Attempt { lanes: self, ended: false };
        let link = self.dial.dial().await.map_err(|error| remote_error(&error))?;
        attempt.succeeded();
        Ok(link)
    }

    fn failed(&self) {
        let mut patience = self.patience.lock();
        let pause = Duration::from_millis(5 << patience.failures.min(8)).min(LONGEST_PAUSE);
        // Between half and three halves of it.
        let jitter = RandomState::new().hash_one(patience.failures) % 1024;
        patience.not_before = Some(Instant::now() + pause / 2 + pause * jitter as u32 / 1024);
        patience.failures = patience.failures.saturating_add(1);
    }
}

/// One attempt to connect. It failed unless it says otherwise, also when its deadline cuts it off.
struct Attempt<'a> {
    lanes: &'a Lanes,
    ended: bool,
}

impl Attempt<'_> {
    fn succeeded(mut self) {
        self.ended = true;
        *self.lanes.patience.lock() = Patience::default();
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.lanes.failed();
        }
    }
}

/// One connection in use. Closed when dropped, unless [`Lane::leave`] says that it is good.
pub(super) struct Lane<'a> {
    lanes: &'a Lanes,
    link: Option<Link>,
    fresh: bool,
    _permit: SemaphorePermit<'a>,
}

impl Lane<'_> {
    pub(super) fn link(&mut self) -> Result<&mut Link, RemoteError> {
        self.link.as_mut().ok_or(RemoteError::Closed)
    }

    /// Replaces a connection that had been idle and may have died meanwhile; false if it had not been idle.
    pub(super) async fn renew(&mut self) -> Result<bool, RemoteError> {
        if std::mem::replace(&mut self.fresh, true) {
            return Ok(false);
        }
        self.link = None;
        // The others are as old.
        let old = std::mem::take(&mut *self.lanes.idle.lock());
        drop(old);
        self.link = Some(self.lanes.connect().await?);
        Ok(true)
    }

    /// Every answer was read and made sense: the connection is kept for the next call.
    pub(super) fn leave(mut self) {
        if let Some(link) = self.link.take() {
            self.lanes.idle.lock().push(link);
        }
    }
}
