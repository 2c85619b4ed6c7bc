//! Remote stores: blocks that other nodes, or later lives of this one, can load.
//!
//! ```text
//!   RemoteStore   exists, get, put, delete, sweep; each with a deadline; each answer a Pending
//!        │
//!   Client        permits (calls, bytes) · records around payloads · counters · verification
//!        │  Call: names and buffers of its own
//!   Backend       FsStore: a few threads
//!                 RedisStore, S3Store: an event loop on two threads (features `redis`, `s3`)
//!                 MooncakeStore: a few threads around a C library (feature `mooncake`)
//! ```
//!
//! What holds for every store:
//!
//! - **A store may lie.** [`RemoteStore::exists`] is a hint. A block is served only with a
//!   [`Verified`], and only [`PendingGet::wait_into`] makes one: from a record whose header names
//!   what was asked for, and whose payload, *where the reader will read it*, has its checksum.
//! - **A store may hang.** The caller leaves at its deadline. Nothing is ever read into the caller's memory, nor
//!   written from it, by the store: bytes land in buffers that belong to the call, and the caller copies them when it
//!   has the answer. So a write that comes late hits nothing, for the price of one copy at memory speed.
//! - **What hangs stays bounded.** A call holds a permit for itself and for its bytes until caller *and* store have
//!   let go of it. What has not begun when the caller leaves is forgotten at once. There is no thread per call.
//!
//! Names are `version/namespace/epoch/fingerprint/key`, so that what a purge must sweep has one prefix.

mod backend;
mod buffers;
mod call;
mod client;
mod coding;
mod counters;
mod envelope;
mod error;
#[cfg(feature = "_event-loop")]
mod event_loop;
mod fs;
mod keys;
mod limits;
#[cfg(feature = "mooncake")]
mod mooncake;
mod pool;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "s3")]
mod s3;
mod writers;

use std::time::Instant;

use kv_core::Verified;
use kv_core::ids::JobId;
use kv_core::job::RecordMeta;
use kv_core::key::NamespaceId;
use kv_core::units::Epoch;

pub use call::Pending;
pub use coding::Coding;
pub use counters::RemoteCounters;
pub use error::{OpenError, RemoteError};
pub use fs::FsStore;
pub use keys::RemoteKey;
pub use limits::{InFlight, Limits};
#[cfg(feature = "mooncake")]
pub use mooncake::{MooncakeConfig, MooncakeStore};
#[cfg(feature = "redis")]
pub use redis::{RedisConfig, RedisStore, Servers};
#[cfg(feature = "s3")]
pub use s3::{S3Config, S3Credentials, S3Store};

use crate::codec::Elements;
use call::Finished;
use counters::add;
use envelope::RawRecord;

/// One block to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its name.
    pub key: RemoteKey,
    /// Bytes of its KV. A record of another length is refused.
    pub payload_bytes: usize,
}

/// One block to be stored.
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    /// Its name and its place in its chain. The generation is not stored.
    pub meta: RecordMeta,
    /// Its KV. Copied, or encoded, before [`RemoteStore::put`] returns.
    pub payload: &'a [u8],
    /// What it consists of, if it is to be encoded; `None` to store it as it is. A block that would not shrink is
    /// stored as it is all the same. Readers need not know.
    pub elements: Option<Elements>,
}

/// A store of blocks that is not on this node. Calls start at once, never block, and may be waited for or dropped.
pub trait RemoteStore: Send + Sync {
    /// Which blocks the store says to have. No proof.
    fn exists(&self, keys: &[RemoteKey], deadline: Instant) -> Pending<bool>;

    /// Fetches blocks.
    fn get(&self, wants: &[Want], deadline: Instant) -> PendingGet;

    /// Stores blocks. A block is visible completely or not at all, and two writers of one block cannot corrupt it,
    /// provided that both encode it or both do not.
    /// After [`RemoteError::Late`] it may still appear.
    fn put(&self, puts: &[Put<'_>], deadline: Instant) -> Pending<()>;

    /// Deletes blocks. It is no error if they are not there.
    fn delete(&self, keys: &[RemoteKey], deadline: Instant) -> Pending<()>;

    /// Deletes every block of a namespace whose epoch is `up_to` or an older one. Can be repeated until it is done.
    /// No name of theirs is found any more; what a store does with the bytes behind the names is its own affair.
    fn sweep(&self, namespace: NamespaceId, up_to: Epoch, deadline: Instant) -> PendingSweep;

    /// What happened so far.
    fn counters(&self) -> RemoteCounters;

    /// What has not ended yet.
    fn in_flight(&self) -> InFlight;
}

/// A [`RemoteStore::get`] that was started.
#[must_use = "dropping it cancels the call"]
pub struct PendingGet {
    pending: Pending<RawRecord>,
    keys: Vec<RemoteKey>,
}

impl PendingGet {
    /// Whether [`PendingGet::wait_into`] would return without waiting.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.pending.is_done()
    }

    /// See [`Pending::when_done`].
    pub fn when_done(&self, tell: impl FnOnce() + Send + 'static) {
        self.pending.when_done(tell);
    }

    /// Waits, to the deadline at most, and copies or decodes each block to its destination, in the order asked for.
    /// With an error the destination holds anything; without a destination a block is [`RemoteError::Closed`].
    pub fn wait_into(self, into: &mut [(JobId, &mut [u8])]) -> Vec<Result<Verified, RemoteError>> {
        self.wait_into_measured(into).0
    }

    /// The same, and what decoding took: it is done here, on this thread, after the transfer.
    pub fn wait_into_measured(
        self,
        into: &mut [(JobId, &mut [u8])],
    ) -> (Vec<Result<Verified, RemoteError>>, Coding) {
        let Self { pending, keys } = self;
        let Finished { answers, counters, _flight } = pending.finish();
        let mut destinations = into.iter_mut();
        let mut decoding = Coding::default();
        let verify = |(key, answer): (&RemoteKey, Result<RawRecord, RemoteError>)| {
            let destination = destinations.next();
            let verified = answer.and_then(|record| {
                let (job, into) = destination.ok_or(RemoteError::Closed)?;
                let (verified, coding) = record.verify_into(*job, &key.identity(), into)?;
                add(&counters.hits, 1);
                add(&counters.bytes_in, into.len() as u64);
                decoding += coding;
                Ok(verified)
            });
            verified.inspect_err(|error| counters.miss(*error))
        };
        let results = keys.iter().zip(answers).map(verify).collect();
        counters.decoded.add(decoding);
        (results, decoding)
    }
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Blocks that were deleted.
    pub removed: u64,
    /// Puts of this store into the swept epochs that had not really ended when the sweep began. Unless it is 0 the
    /// sweep proves nothing: one of them may have written behind it. Other nodes' puts are not known here.
    pub writers: u64,
}

/// A [`RemoteStore::sweep`] that was started.
#[must_use = "dropping it cancels the call"]
pub struct PendingSweep {
    pending: Pending<u64>,
    writers: u64,
}

impl PendingSweep {
    /// Waits, to the deadline at most.
    ///
    /// # Errors
    /// [`RemoteError`]: some of it may have been deleted.
    pub fn wait(self) -> Result<Swept, RemoteError> {
        let removed = self.pending.wait().pop().unwrap_or(Err(RemoteError::Closed))?;
        Ok(Swept { removed, writers: self.writers })
    }
}
