//! What a remote store did, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use kv_core::Mismatch;
use serde::Serialize;

use super::RemoteError;
use super::coding::{Coding, CodingCounter};

/// Totals since a store was opened. Every block of every call is counted once, by how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RemoteCounters {
    /// Blocks whose bytes were verified.
    pub hits: u64,
    /// Blocks stored.
    pub puts: u64,
    /// Blocks that a store said to have, without proof.
    pub said_present: u64,
    /// Blocks deleted.
    pub deletes: u64,
    /// Payload bytes verified.
    pub bytes_in: u64,
    /// Nothing under that name.
    pub absent: u64,
    /// Something that is no record.
    pub no_record: u64,
    /// A record of another namespace, epoch, model or block.
    pub wrong_identity: u64,
    /// A record of another length.
    pub wrong_length: u64,
    /// A record whose payload is not what was stored.
    pub wrong_checksum: u64,
    /// Not done at the deadline.
    pub late: u64,
    /// Refused because too much was in flight.
    pub busy: u64,
    /// Refused by the store for lack of space.
    pub no_space: u64,
    /// Refused by the store for lack of permission.
    pub denied: u64,
    /// No connection, or a broken one.
    pub unreachable: u64,
    /// Anything else that failed.
    pub failed: u64,
    /// Blocks that were offered with their elements, encoded or, if they would not shrink, not.
    pub encoded: Coding,
    /// Encoded blocks that were fetched.
    pub decoded: Coding,
}

impl RemoteCounters {
    /// Blocks that were there under their name, and whose bytes were refused.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.no_record + self.wrong_identity + self.wrong_length + self.wrong_checksum
    }

    /// Blocks that were asked for or offered, and not served, for whatever reason.
    #[must_use]
    pub const fn misses(&self) -> u64 {
        let refused_by_store = self.no_space + self.denied + self.unreachable + self.failed;
        self.absent + self.refused() + self.late + self.busy + refused_by_store
    }
}

macro_rules! counters {
    ($($name:ident),*) => {
        /// The same, counting.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
            pub(crate) encoded: CodingCounter,
            pub(crate) decoded: CodingCounter,
        }

        impl Counters {
            pub(crate) fn read(&self) -> RemoteCounters {
                RemoteCounters {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                    encoded: self.encoded.read(),
                    decoded: self.decoded.read(),
                }
            }
        }
    };
}
counters!(
    hits,
    puts,
    said_present,
    deletes,
    bytes_in,
    absent,
    no_record,
    wrong_identity,
    wrong_length,
    wrong_checksum,
    late,
    busy,
    no_space,
    denied,
    unreachable,
    failed
);

impl Counters {
    /// One block that was not served.
    pub(crate) fn miss(&self, error: RemoteError) {
        add(
            match error {
                RemoteError::Absent => &self.absent,
                RemoteError::NoRecord => &self.no_record,
                RemoteError::Refused(Mismatch::Identity) => &self.wrong_identity,
                RemoteError::Refused(Mismatch::Length) => &self.wrong_length,
                RemoteError::Refused(Mismatch::Checksum) => &self.wrong_checksum,
                RemoteError::Late => &self.late,
                RemoteError::Busy | RemoteError::TooLarge => &self.busy,
                RemoteError::NoSpace => &self.no_space,
                RemoteError::Denied => &self.denied,
                RemoteError::Unreachable => &self.unreachable,
                RemoteError::Io(_) | RemoteError::Server | RemoteError::Closed => &self.failed,
            },
            1,
        );
    }
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
