//! Where segments live: files, or memory that can crash, or either with planned faults.

mod faulty;
mod file;
mod mem;

use std::io;

use kv_core::ids::SegmentId;

pub use faulty::{Fault, FaultyStore};
pub(crate) use file::Access;
pub use file::FileStore;
pub use mem::MemStore;

/// Numbered files of fixed size, and one small superblock that is replaced as a whole.
///
/// Offsets and lengths are multiples of 4096 and buffers are aligned to 4096. A transfer may be short; the
/// caller treats that as a failure. A write is durable once a later [`SegmentStore::sync`] of that segment
/// returned; before that a crash may keep any part of it, down to single sectors.
pub trait SegmentStore: Send + Sync {
    /// The segments that exist, with their sizes, in any order.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn segments(&self) -> io::Result<Vec<(SegmentId, u64)>>;

    /// Makes the segment if it is missing, as zeros, and reserves `bytes` for it; what it holds stays. Durable on
    /// return.
    ///
    /// # Errors
    /// No space, no permission, or the device failed.
    fn reserve(&self, segment: SegmentId, bytes: u64) -> io::Result<()>;

    /// Removes the segment and gives its space back. Not used while anything of it is in flight.
    ///
    /// # Errors
    /// No such segment, no permission, or the device failed.
    fn remove(&self, segment: SegmentId) -> io::Result<()>;

    /// Reads at an offset; returns how many bytes there were.
    ///
    /// # Errors
    /// No such segment, or the device failed.
    fn read_at(&self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Writes at an offset; returns how many bytes were taken.
    ///
    /// # Errors
    /// No such segment, no space, read-only, or the device failed.
    fn write_at(&self, segment: SegmentId, offset: u64, from: &[u8]) -> io::Result<usize>;

    /// Makes every completed write of the segment durable. After an error nothing is known about them.
    ///
    /// # Errors
    /// No such segment, or the device failed.
    fn sync(&self, segment: SegmentId) -> io::Result<()>;

    /// The superblock, or `None` before the first one.
    ///
    /// # Errors
    /// It exists and cannot be read.
    fn superblock(&self) -> io::Result<Option<Vec<u8>>>;

    /// Replaces the superblock: after a crash it is the old one or the new one. Durable on return.
    ///
    /// # Errors
    /// No space, no permission, or the device failed; the old one is still there.
    fn replace_superblock(&self, bytes: &[u8]) -> io::Result<()>;
}

/// A segment that was never created or opened.
fn no_such_segment() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}
