//! What a back end is asked to do: to move opaque bytes under names, and to answer. What the bytes mean, whether
//! they are right, how long anybody waits and how much may be in flight is decided in front of it.

#[cfg(feature = "_event-loop")]
use std::sync::Arc;

use kv_core::key::NamespaceId;
use kv_core::units::Epoch;

use super::buffers::Buffer;
#[cfg(feature = "_event-loop")]
use super::call::Flight;
use super::call::Reply;
use super::envelope::RawRecord;
use super::keys::RemoteKey;
use super::writers::Writer;

/// One call. Every buffer in it belongs to the back end until it answers, so a write that comes late hits memory
/// that nobody else uses.
pub(crate) enum Call {
    /// Is anything there?
    Exists(Vec<(RemoteKey, Reply<bool>)>),
    /// Fetch records of `record_bytes`.
    Get(Vec<Fetch>),
    /// Store whole records, each visible completely or not at all.
    Put(Vec<Store>),
    /// Delete what is there. It is no error if nothing is.
    Delete(Vec<(RemoteKey, Reply<()>)>),
    /// Delete everything of a namespace up to an epoch; answers how many blocks that were.
    Sweep(NamespaceId, Epoch, Reply<u64>),
}

#[cfg(feature = "_event-loop")]
impl Call {
    /// What is known of it on both sides; `None` if it is about nothing.
    pub(crate) fn flight(&self) -> Option<&Arc<Flight>> {
        match self {
            Self::Exists(blocks) => blocks.first().and_then(|(_, reply)| reply.flight()),
            Self::Get(fetches) => fetches.first().and_then(|fetch| fetch.reply.flight()),
            Self::Put(stores) => stores.first().and_then(|store| store.reply.flight()),
            Self::Delete(blocks) => blocks.first().and_then(|(_, reply)| reply.flight()),
            Self::Sweep(_, _, reply) => reply.flight(),
        }
    }
}

/// One block to be fetched.
pub(crate) struct Fetch {
    pub(crate) key: RemoteKey,
    /// Bytes of a record that can be the right one. More need not be fetched, only noticed.
    pub(crate) record_bytes: usize,
    pub(crate) reply: Reply<RawRecord>,
}

/// One block to be stored.
pub(crate) struct Store {
    pub(crate) key: RemoteKey,
    pub(crate) record: Buffer,
    /// To be kept until nothing can be written any more.
    pub(crate) writer: Writer,
    pub(crate) reply: Reply<()>,
}

/// A store of bytes. Dropping it does not wait for what hangs.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Takes a call on. Never blocks.
    fn submit(&self, call: Call);
}
