//! Mooncake's error codes, of `mooncake-store/include/types.h` at the commit of `store_c.h`. The set is open.

use kv_core::Mismatch;

use crate::remote::RemoteError;

/// The argument does not fit; of a load, the value is longer than the memory that was given.
pub(super) const INVALID_PARAMS: i64 = -600;
/// Being written, by us or by somebody else.
const REPLICA_IS_NOT_READY: i64 = -703;
pub(super) const OBJECT_NOT_FOUND: i64 = -704;
pub(super) const OBJECT_ALREADY_EXISTS: i64 = -705;
/// The bytes may have been somebody else's before they had all come.
pub(super) const LEASE_EXPIRED: i64 = -707;

/// What a code means.
pub(super) fn error(code: i64) -> RemoteError {
    match code {
        // The last two: a replica that is not there, or is gone.
        REPLICA_IS_NOT_READY | OBJECT_NOT_FOUND | LEASE_EXPIRED | -710 | -712 => RemoteError::Absent,
        // BUFFER_OVERFLOW; SEGMENT_NOT_FOUND: nobody lends memory; NO_AVAILABLE_HANDLE.
        -10 | -101 | -200 => RemoteError::NoSpace,
        // ILLEGAL_CLIENT.
        -601 => RemoteError::Denied,
        // CLIENT_NOT_FOUND: the master has forgotten us; TRANSFER_FAIL; RPC_FAIL; RPC_TIMEOUT.
        -103 | -800 | -900 | -901 => RemoteError::Unreachable,
        // CHECKSUM_MISMATCH, where Mooncake is told to look itself.
        -801 => Mismatch::Checksum.into(),
        _ => RemoteError::Server,
    }
}

/// A call's answer: a number that is not negative, or an error.
pub(super) fn meaning(code: i64) -> Result<i64, RemoteError> {
    if code < 0 { Err(error(code)) } else { Ok(code) }
}
