//! Segments as files of one directory, `O_DIRECT` where the filesystem agrees.
//!
//! ```text
//! LOCK            held (flock) by the one process that may write
//! kvtier.log      superblock, replaced by rename
//! seg-00000.kvt   segments
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::ids::SegmentId;
use parking_lot::RwLock;
use rustix::fs::FallocateFlags;

use super::{SegmentStore, no_such_segment};

const SUPERBLOCK: &str = "kvtier.log";
const SUPERBLOCK_NEW: &str = "kvtier.log.new";
const LOCK: &str = "LOCK";

/// What the directory is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// By its one owner.
    Write,
    /// Beside the owner, to look.
    ReadOnly,
}

/// A directory of segment files.
#[derive(Debug)]
pub struct FileStore {
    dir: PathBuf,
    access: Access,
    /// Open files by segment number; the directory may have gaps.
    files: RwLock<Vec<Option<Arc<File>>>>,
    /// Held while the store may be written.
    lock: Option<File>,
}

/// A child that the last owner forked holds the lock until it execs, and the kernel holds it until the last I/O of a
/// killed owner has ended. Somebody who really uses the log holds it longer.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

fn lock(file: &File) -> io::Result<()> {
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) if Instant::now() >= end => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Unlocks, rather than only closing the file: a forked child may have it open still.
impl Drop for FileStore {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.lock.as_ref().map(File::unlock) {
            tracing::debug!(%error, "the log's lock goes when its file is closed");
        }
    }
}

impl FileStore {
    /// Opens an existing directory and every segment in it.
    ///
    /// # Errors
    /// `WouldBlock` if another process has it open; otherwise what the operating system said.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::open_for(dir, Access::Write)
    }

    pub(crate) fn open_for(dir: &Path, access: Access) -> io::Result<Self> {
        // Distinguishes "no such directory" from "not a directory" before any file is made in it.
        std::fs::read_dir(dir)?;
        let lock = match access {
            Access::ReadOnly => None,
            Access::Write => {
                let path = dir.join(LOCK);
                let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
                lock(&file)?;
                Some(file)
            }
        };
        let store = Self { dir: dir.to_path_buf(), access, files: RwLock::default(), lock };
        for entry in std::fs::read_dir(dir)? {
            if let Some(segment) = segment_of(&entry?.file_name().to_string_lossy()) {
                store.remember(segment, open_segment(&store.path(segment), access)?);
            }
        }
        Ok(store)
    }

    /// The descriptors of segments `0..segments`, for registration; `None` if one is missing. They stay open
    /// as long as the store and may not be closed by the caller.
    pub(crate) fn descriptors(&self, segments: u32) -> Option<Vec<RawFd>> {
        let files = self.files.read();
        (0..segments as usize).map(|i| Some(files.get(i)?.as_ref()?.as_raw_fd())).collect()
    }

    fn path(&self, segment: SegmentId) -> PathBuf {
        self.dir.join(format!("seg-{:05}.kvt", segment.0))
    }

    fn remember(&self, segment: SegmentId, file: File) {
        let mut files = self.files.write();
        let index = segment.0 as usize;
        if files.len() <= index {
            files.resize(index + 1, None);
        }
        if let Some(place) = files.get_mut(index) {
            *place = Some(Arc::new(file));
        }
    }

    fn file(&self, segment: SegmentId) -> io::Result<Arc<File>> {
        let files = self.files.read();
        files.get(segment.0 as usize).and_then(Clone::clone).ok_or_else(no_such_segment)
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

/// `seg-00007.kvt` is segment 7. A number that no log uses is somebody else's file.
fn segment_of(name: &str) -> Option<SegmentId> {
    const MOST: u32 = 1 << 20;
    let number = name.strip_prefix("seg-")?.strip_suffix(".kvt")?;
    let number: u32 = number.parse().ok()?;
    (number < MOST && name == format!("seg-{number:05}.kvt")).then_some(SegmentId(number))
}

/// Opens with `O_DIRECT`, or through the page cache on a filesystem that refuses it.
fn open_segment(path: &Path, access: Access) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::Write);
    match options.custom_flags(libc::O_DIRECT).open(path) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!("{} does not take O_DIRECT: using the page cache", path.display());
            options.custom_flags(0).open(path)
        }
        other => other,
    }
}

/// One system call, repeated only when a signal interrupted it.
fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl SegmentStore for FileStore {
    fn segments(&self) -> io::Result<Vec<(SegmentId, u64)>> {
        let files = self.files.read();
        let open = files.iter().enumerate().filter_map(|(i, f)| Some((SegmentId(i as u32), f.as_ref()?)));
        open.map(|(segment, file)| Ok((segment, file.metadata()?.len()))).collect()
    }

    fn reserve(&self, segment: SegmentId, bytes: u64) -> io::Result<()> {
        if self.access == Access::ReadOnly {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let path = self.path(segment);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => {
                tracing::warn!("{} cannot reserve space: a full disk will fail writes", path.display());
                file.set_len(bytes.max(file.metadata()?.len()))?;
            }
            other => other?,
        }
        file.sync_all()?;
        self.remember(segment, open_segment(&path, self.access)?);
        self.sync_dir()
    }

    fn remove(&self, segment: SegmentId) -> io::Result<()> {
        std::fs::remove_file(self.path(segment))?;
        if let Some(file) = self.files.write().get_mut(segment.0 as usize) {
            *file = None;
        }
        self.sync_dir()
    }

    fn read_at(&self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let file = self.file(segment)?;
        uninterrupted(|| file.read_at(into, offset))
    }

    fn write_at(&self, segment: SegmentId, offset: u64, from: &[u8]) -> io::Result<usize> {
        let file = self.file(segment)?;
        uninterrupted(|| file.write_at(from, offset))
    }

    fn sync(&self, segment: SegmentId) -> io::Result<()> {
        self.file(segment)?.sync_data()
    }

    fn superblock(&self) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.dir.join(SUPERBLOCK)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn replace_superblock(&self, bytes: &[u8]) -> io::Result<()> {
        let new = self.dir.join(SUPERBLOCK_NEW);
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(new, self.dir.join(SUPERBLOCK))?;
        self.sync_dir()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::page::PageBuf;

    #[test]
    fn segment_names() {
        assert_eq!(segment_of("seg-00007.kvt"), Some(SegmentId(7)));
        assert_eq!(segment_of("seg-123456.kvt"), Some(SegmentId(123_456)));
        for other in ["seg-7.kvt", "seg-.kvt", "seg-00007", "LOCK", "seg-4294967295.kvt", "seg-+0007.kvt"] {
            assert_eq!(segment_of(other), None, "{other}");
        }
    }

    #[test]
    fn files_keep_what_was_written_and_one_process_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path()).unwrap();
        assert_eq!(store.superblock().unwrap(), None);
        store.replace_superblock(b"one").unwrap();
        store.replace_superblock(b"two").unwrap();
        store.reserve(SegmentId(3), 16384).unwrap();
        let mut page = PageBuf::new(4096);
        page.bytes_mut().fill(7);
        assert_eq!(store.write_at(SegmentId(3), 4096, page.bytes()).unwrap(), 4096);
        store.sync(SegmentId(3)).unwrap();
        assert_eq!(
            store.read_at(SegmentId(0), 0, page.bytes_mut()).unwrap_err().raw_os_error(),
            Some(libc::ENOENT)
        );
        assert_eq!(store.descriptors(4), None);

        assert_eq!(FileStore::open(dir.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let beside = FileStore::open_for(dir.path(), Access::ReadOnly).unwrap();
        assert_eq!(beside.segments().unwrap(), [(SegmentId(3), 16384)]);
        assert!(beside.reserve(SegmentId(4), 4096).is_err());
        drop(store);
        let store = FileStore::open(dir.path()).unwrap();
        assert_eq!(store.superblock().unwrap().unwrap(), b"two");
        page.bytes_mut().fill(0);
        assert_eq!(store.read_at(SegmentId(3), 4096, page.bytes_mut()).unwrap(), 4096);
        assert!(page.bytes().iter().all(|&b| b == 7));
        assert_eq!(store.read_at(SegmentId(3), 16384, page.bytes_mut()).unwrap(), 0);
        store.reserve(SegmentId(3), 20480).unwrap();
        assert_eq!(store.read_at(SegmentId(3), 4096, page.bytes_mut()).unwrap(), 4096);
        assert!(page.bytes().iter().all(|&b| b == 7));
        store.remove(SegmentId(3)).unwrap();
        assert_eq!(store.segments().unwrap(), []);
    }
}
