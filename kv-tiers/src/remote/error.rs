//! Why a remote store did not do what it was asked. Every one of these is a miss and a counter, never wrong bytes.

use std::io;
use std::path::PathBuf;

use kv_core::Mismatch;
use kv_core::job::TransferError;

/// Why one block was not found, fetched, stored or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// Nothing is stored under that name: a plain miss.
    #[error("not there")]
    Absent,
    /// What is stored under that name is no record: cut short, overwritten by somebody, of another version.
    #[error("not a record")]
    NoRecord,
    /// A record, but not the one that was asked for, or not its bytes.
    #[error("refused: {0}")]
    Refused(#[from] Mismatch),
    /// Not done at the deadline. A put or delete may still happen.
    #[error("late")]
    Late,
    /// As many calls or bytes are in flight as the [`Limits`](super::Limits) allow.
    #[error("too much in flight")]
    Busy,
    /// One call asks for more bytes than may ever be in flight.
    #[error("more bytes in one call than may ever be in flight")]
    TooLarge,
    /// The store is full.
    #[error("no space left")]
    NoSpace,
    /// The store does not let us: credentials, permissions, a read-only file system.
    #[error("denied")]
    Denied,
    /// No connection, or one that broke.
    #[error("unreachable")]
    Unreachable,
    /// The operating system refused; the number is `errno`.
    #[error("input/output error (errno {0})")]
    Io(i32),
    /// The server answered with an error, or with something that is no answer.
    #[error("the server's answer makes no sense or is an error")]
    Server,
    /// The store is closed, or broke down in the middle of the call.
    #[error("closed")]
    Closed,
}

impl From<&io::Error> for RemoteError {
    fn from(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT) => Self::Absent,
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace,
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => Self::Denied,
            Some(errno) => Self::Io(errno),
            None => match error.kind() {
                io::ErrorKind::UnexpectedEof => Self::NoRecord,
                io::ErrorKind::StorageFull | io::ErrorKind::WriteZero => Self::NoSpace,
                _ => Self::Io(libc::EIO),
            },
        }
    }
}

/// What the planner is told.
impl From<RemoteError> for TransferError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Refused(mismatch) => Self::Refused(mismatch),
            RemoteError::NoRecord => Self::Refused(Mismatch::Identity),
            RemoteError::NoSpace => Self::NoSpace,
            RemoteError::Io(errno) => Self::Io(errno),
            RemoteError::Absent => Self::Absent,
            RemoteError::Late => Self::Late,
            // Our own limits: the store was not even asked, and is not to blame.
            RemoteError::Busy | RemoteError::TooLarge => Self::Down,
            RemoteError::Denied => Self::Io(libc::EACCES),
            RemoteError::Unreachable => Self::Io(libc::EHOSTUNREACH),
            RemoteError::Server => Self::Io(libc::EPROTO),
            RemoteError::Closed => Self::Io(libc::ESHUTDOWN),
        }
    }
}

/// Why a remote store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory does not exist, is not one, or may not be used.
    #[error("{path}: {source}; make the directory on the shared file system and let this user write it")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The threads that do the work could not be started.
    #[error("cannot start threads for a remote store: {0}")]
    Threads(io::Error),
    /// The address is not one that the client understands.
    #[error("not an address that this client understands: {0}")]
    Address(String),
    /// The library of a store is not there, or has not what it must have.
    #[error(
        "{name}: {why}; build Mooncake with -DWITH_STORE_C_SHARED=ON and name its libmooncake_store.so in the \
         configuration or in MOONCAKE_STORE_LIBRARY"
    )]
    Library {
        /// Which.
        name: String,
        /// What the loader said.
        why: String,
    },
    /// The library of a store refused to start.
    #[error("{call} failed with code {code}; is the master up, and can it be reached from here?")]
    Setup {
        /// The function.
        call: &'static str,
        /// What it answered.
        code: i64,
    },
    /// The store was not ready at the deadline.
    #[error("the store was not ready in time")]
    Late,
    /// Text for a C library that has a zero byte in it, or memory that no address space has room for.
    #[error("{0} cannot be used")]
    Configuration(&'static str),
}
