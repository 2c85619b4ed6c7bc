//! Why a log could not be opened, and how an I/O error becomes a job's.

use std::io;
use std::path::{Path, PathBuf};

use kv_core::job::TransferError;

use super::recover::Damage;

/// Why a log could not be opened or inspected.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// The directory does not exist or is not one.
    #[error("{0}: no such directory; make it on the NVMe filesystem first")]
    NoDirectory(PathBuf),
    /// The directory or its filesystem may not be written.
    #[error("{0}: not writable; check its owner, its mode and whether the filesystem is mounted read-only")]
    ReadOnly(PathBuf),
    /// Another log object, here or in another process, has it open.
    #[error("{0}: already open for writing; two engines need two directories")]
    Locked(PathBuf),
    /// The filesystem is full.
    #[error("no space for segments of {segment_bytes} bytes: free some or configure fewer segments")]
    NoSpace {
        /// Bytes of one segment.
        segment_bytes: u64,
    },
    /// Sizes that make no log.
    #[error("no log can have {segments} segments of {records_per_segment} records of {payload_bytes} bytes")]
    Shape {
        /// Segments asked for.
        segments: u32,
        /// Records of a segment.
        records_per_segment: u32,
        /// Bytes of a payload.
        payload_bytes: usize,
    },
    /// The log was made with other sizes.
    #[error(
        "the log has {found_records} records of {found_payload} bytes per segment, not {wanted_records} of \
         {wanted_payload}: configure those, use another directory, or delete this one's files to start empty"
    )]
    Geometry {
        /// Payload bytes of the log.
        found_payload: usize,
        /// Records per segment of the log.
        found_records: u32,
        /// Payload bytes of the arena.
        wanted_payload: usize,
        /// Records per segment of the configuration.
        wanted_records: u32,
    },
    /// Strict mode met more segments than are configured.
    #[error("the log has {found} segments, not {wanted}; mode Recover drops those that are too many")]
    Shrunk {
        /// Segments of the log.
        found: u32,
        /// Segments of the configuration.
        wanted: u32,
    },
    /// A log of these segments cannot have the capacity that is configured.
    #[error(
        "{dir}: the log there can have {fewest} to {most} bytes, not {wanted}: configure one of those, use another \
         directory, or delete this one's files to start empty"
    )]
    Capacity {
        /// Where the log is.
        dir: PathBuf,
        /// Bytes that it must have at least.
        fewest: u64,
        /// Bytes that it can have at most.
        most: u64,
        /// Bytes of the configuration.
        wanted: u64,
    },
    /// There are segments, but not the superblock that says what they are.
    #[error(
        "the superblock is missing, damaged or of another version: restore kvtier.log, or delete the directory's files \
         to start empty"
    )]
    Superblock,
    /// There is no log to inspect.
    #[error("{0}: holds no log")]
    NoLog(PathBuf),
    /// Strict mode met damage.
    #[error("{count} damaged places, the first: {first}; mode Recover drops them and keeps the rest")]
    Damaged {
        /// How many.
        count: usize,
        /// One of them.
        first: Damage,
    },
    /// io_uring was demanded.
    #[error("io_uring cannot be used: {0}; use backend Auto or Pool")]
    NoUring(String),
    /// Anything else that the operating system said.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The answer.
        source: io::Error,
    },
}

impl NvmeError {
    /// For operations on a directory.
    pub(crate) fn at(dir: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NoDirectory(dir.to_path_buf()),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::ReadOnly(dir.to_path_buf())
            }
            io::ErrorKind::WouldBlock => Self::Locked(dir.to_path_buf()),
            _ => Self::Io { doing, source },
        }
    }

    /// The same failure, of a log in a directory.
    pub(crate) fn in_directory(self, dir: &Path) -> Self {
        match self {
            Self::Io { doing, source } => Self::at(dir, doing)(source),
            other => other,
        }
    }

    /// For operations on a store.
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// How a job fails because of an I/O error.
pub(crate) fn transfer_error(error: &io::Error) -> TransferError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => TransferError::NoSpace,
        Some(errno) => TransferError::Io(errno),
        None if error.kind() == io::ErrorKind::StorageFull => TransferError::NoSpace,
        None => TransferError::Io(libc::EIO),
    }
}
