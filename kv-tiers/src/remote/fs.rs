//! A shared file system as a remote store: NFS, Lustre, or any other that renames atomically.
//!
//! ```text
//! kvtier-1/tmp/<namespace>-<epoch>-<writer>-<n>                   being written
//! kvtier-1/<namespace>/<epoch>/<fingerprint>/<3 digits>/<key>     a record, whole
//! ```
//!
//! A put writes a file of its own that no other writer on any node can open, makes it durable, renames it over the
//! final name, and makes the directory durable. So every file with a final name is whole as long as the file system
//! keeps its word, two writers of one block replace each other's equal records, and a killed writer leaves a file in
//! `tmp` that nobody reads: the next [`FsStore::open`] after an hour removes it, or the sweep of its namespace.
//!
//! Every path is walked from the directory opened at the start, so a file system that was unmounted is an error and
//! never a write to whatever lies below it; links are not followed.

use std::ffi::CStr;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kv_core::key::NamespaceId;
use kv_core::units::Epoch;
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::backend::{Backend, Call, Fetch, Store};
use super::buffers::Buffers;
use super::call::Reply;
use super::client::{Client, remote_store};
use super::envelope::RawRecord;
use super::keys::{epoch_name, epoch_of, hex};
use super::pool::{Pool, Task};
use super::{Limits, OpenError, RemoteError, RemoteKey};

/// Everything of ours lies in it. Another layout would get another number.
const VERSION_DIR: &str = "kvtier-1";
const TMP: &str = "kvtier-1/tmp";

/// Enough to keep a file server busy, few enough to be idle most of the time.
const THREADS: usize = 16;

/// No put takes that long. Older files in `tmp` are left over.
const LEFT_OVER_SECONDS: i64 = 3600;

const DIR_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::from_raw_mode(0o600);

/// Blocks as files of a shared directory.
///
/// Calls run on a small pool of threads. One that hangs in the kernel, as on a dead NFS server, keeps its thread and
/// its permit until the kernel lets it go; callers leave at their deadlines all the same.
pub struct FsStore(Client<FsBackend>);

impl FsStore {
    /// Uses an existing directory, which all nodes that share blocks must give.
    ///
    /// # Errors
    /// The directory cannot be opened or written, or no threads.
    ///
    /// ```
    /// use kv_tiers::remote::{FsStore, Limits, RemoteStore};
    /// let dir = tempfile::tempdir()?;
    /// let store = FsStore::open(dir.path(), Limits::default())?;
    /// assert_eq!(store.counters().misses(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(directory: &Path, limits: Limits) -> Result<Self, OpenError> {
        let of_directory =
            |error: Errno| OpenError::Directory { path: directory.to_path_buf(), source: error.into() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(directory, flags, Mode::empty()).map_err(of_directory)?;
        let (random, other) = (RandomState::new().hash_one(0), RandomState::new().hash_one(1));
        let writer = format!("{random:016x}{other:016x}");
        let buffers = Arc::new(Buffers::default());
        let files = Files { root, writer, next: AtomicU64::new(0), buffers: Arc::clone(&buffers) };
        files.make(VERSION_DIR).and_then(|()| files.make(TMP)).map_err(of_directory)?;
        let removed = files.remove_left_overs().map_err(of_directory)?;
        if removed > 0 {
            tracing::info!(removed, "files of writers that did not finish");
        }
        let pool = Pool::start(THREADS).map_err(OpenError::Threads)?;
        Ok(Self(Client::new(FsBackend { pool, files: Arc::new(files) }, limits, buffers)))
    }
}

remote_store!(FsStore);

struct FsBackend {
    pool: Pool,
    files: Arc<Files>,
}

impl FsBackend {
    /// Work for the one block that `reply` is about.
    fn task<T: Send + 'static>(
        &self,
        reply: Reply<T>,
        work: impl FnOnce(&Files, Reply<T>) + Send + 'static,
    ) -> Option<Task> {
        let (flight, files) = (Arc::clone(reply.flight()?), Arc::clone(&self.files));
        Some(Task { flight, work: Box::new(move || work(&files, reply)) })
    }
}

impl Backend for FsBackend {
    /// One task for each block, so that a batch uses every thread.
    fn submit(&self, call: Call) {
        let tasks = match call {
            Call::Exists(blocks) => blocks
                .into_iter()
                .filter_map(|(key, reply)| {
                    self.task(reply, move |files, reply| reply.answer(files.exists(&key)))
                })
                .collect(),
            Call::Get(fetches) => fetches
                .into_iter()
                .filter_map(|Fetch { key, record_bytes, reply }| {
                    self.task(reply, move |files, reply| reply.answer(files.read(&key, record_bytes)))
                })
                .collect(),
            Call::Put(stores) => stores
                .into_iter()
                .filter_map(|Store { key, record, writer, reply }| {
                    self.task(reply, move |files, reply| {
                        let stored = files.write(&key, &record, || reply.is_wanted());
                        drop((record, writer));
                        reply.answer(stored);
                    })
                })
                .collect(),
            Call::Delete(blocks) => blocks
                .into_iter()
                .filter_map(|(key, reply)| {
                    self.task(reply, move |files, reply| reply.answer(files.delete(&key)))
                })
                .collect(),
            Call::Sweep(namespace, up_to, reply) => {
                let sweep = move |files: &Files, reply: Reply<u64>| {
                    let swept = files.sweep(namespace, up_to, &|| reply.is_wanted());
                    reply.answer(swept);
                };
                self.task(reply, sweep).into_iter().collect()
            }
        };
        self.pool.submit(tasks);
    }
}

/// The directory.
struct Files {
    root: OwnedFd,
    /// Random name of this writer, so that no two on any node make the same temporary file.
    writer: String,
    next: AtomicU64,
    buffers: Arc<Buffers>,
}

/// The directory of a block, and its name there.
fn place(key: &RemoteKey) -> (String, String) {
    let leaf = key.leaf();
    let RemoteKey { namespace, epoch, fingerprint, .. } = key;
    let fan_out = leaf.get(..3).unwrap_or_default();
    let dir = format!(
        "{VERSION_DIR}/{}/{}/{}/{fan_out}",
        hex(&namespace.0),
        epoch_name(*epoch),
        hex(&fingerprint.0)
    );
    (dir, leaf)
}

fn error(errno: Errno) -> RemoteError {
    RemoteError::from(&io::Error::from(errno))
}

impl Files {
    fn exists(&self, key: &RemoteKey) -> Result<bool, RemoteError> {
        let (dir, leaf) = place(key);
        match rustix::fs::statat(&self.root, format!("{dir}/{leaf}"), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode).is_file()),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(error(errno)),
        }
    }

    /// As much as there is room for, which is a byte more than the right record has at least.
    fn read(&self, key: &RemoteKey, record_bytes: usize) -> Result<RawRecord, RemoteError> {
        let (dir, leaf) = place(key);
        // Without NONBLOCK a pipe of that name would hang.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.root, format!("{dir}/{leaf}"), flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => return Err(RemoteError::NoRecord),
            Err(errno) => return Err(error(errno)),
        };
        let mut record = self.buffers.take(record_bytes + 1);
        while record.len() <= record_bytes {
            match rustix::io::read(&file, spare_capacity(&mut record)) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::ISDIR) => return Err(RemoteError::NoRecord),
                Err(errno) => return Err(error(errno)),
            }
        }
        Ok(RawRecord(vec![record]))
    }

    fn write(&self, key: &RemoteKey, record: &[u8], wanted: impl Fn() -> bool) -> Result<(), RemoteError> {
        let owner = format!("{}-{}", hex(&key.namespace.0), epoch_name(key.epoch));
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let tmp = format!("{TMP}/{owner}-{}-{n}", self.writer);
        let written = self.write_tmp(&tmp, record).and_then(|()| {
            // The last moment at which a put that nobody waits for can be undone.
            if wanted() { self.publish(&tmp, key) } else { Err(RemoteError::Late) }
        });
        written.map_err(|error| {
            if let Err(errno) = rustix::fs::unlinkat(&self.root, &tmp, AtFlags::empty()) {
                tracing::debug!(%errno, "a temporary file stays until it is swept");
            }
            match error {
                // The directory is gone. A put has no plain misses.
                RemoteError::Absent => RemoteError::Io(libc::ENOENT),
                other => other,
            }
        })
    }

    fn write_tmp(&self, tmp: &str, record: &[u8]) -> Result<(), RemoteError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.root, tmp, flags, FILE_MODE).map_err(error)?);
        file.write_all(record).and_then(|()| file.sync_all()).map_err(|e| RemoteError::from(&e))
    }

    fn publish(&self, tmp: &str, key: &RemoteKey) -> Result<(), RemoteError> {
        let (dir, leaf) = place(key);
        let rename = || rustix::fs::renameat(&self.root, tmp, &self.root, format!("{dir}/{leaf}"));
        match rename() {
            Err(Errno::NOENT) => {
                self.make_all(&dir).and_then(|()| rename()).map_err(error)?;
            }
            other => other.map_err(error)?,
        }
        self.sync(&dir).map_err(error)
    }

    fn delete(&self, key: &RemoteKey) -> Result<(), RemoteError> {
        let (dir, leaf) = place(key);
        match rustix::fs::unlinkat(&self.root, format!("{dir}/{leaf}"), AtFlags::empty()) {
            Ok(()) => self.sync(&dir).map_err(error),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(errno) => Err(error(errno)),
        }
    }

    /// Also the temporary files of that namespace, whoever writes them: their puts then fail.
    fn sweep(
        &self,
        namespace: NamespaceId,
        up_to: Epoch,
        wanted: &dyn Fn() -> bool,
    ) -> Result<u64, RemoteError> {
        let mut removed = 0;
        let namespace = hex(&namespace.0);
        for name in self.list(TMP)? {
            let mut parts = name.split('-');
            let ours = parts.next() == Some(&*namespace);
            if ours && parts.next().and_then(epoch_of).is_some_and(|epoch| epoch <= up_to) {
                removed += self.remove(&format!("{TMP}/{name}"), wanted)?;
            }
        }
        let dir = format!("{VERSION_DIR}/{namespace}");
        for name in self.list(&dir)? {
            if epoch_of(&name).is_some_and(|epoch| epoch <= up_to) {
                removed += self.remove(&format!("{dir}/{name}"), wanted)?;
            }
        }
        match self.sync(&dir) {
            Ok(()) | Err(Errno::NOENT) => Ok(removed),
            Err(errno) => Err(error(errno)),
        }
    }

    /// Removes a file, or a directory with everything in it; answers how many files that were.
    fn remove(&self, path: &str, wanted: &dyn Fn() -> bool) -> Result<u64, RemoteError> {
        if !wanted() {
            return Err(RemoteError::Late);
        }
        match rustix::fs::unlinkat(&self.root, path, AtFlags::empty()) {
            Ok(()) => return Ok(1),
            Err(Errno::NOENT) => return Ok(0),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(error(errno)),
        }
        let mut removed = 0;
        for name in self.list(path)? {
            removed += self.remove(&format!("{path}/{name}"), wanted)?;
        }
        match rustix::fs::unlinkat(&self.root, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(removed),
            Err(errno) => Err(error(errno)),
        }
    }

    /// Names in a directory; none if there is no such directory. Names that are not text are not ours.
    fn list(&self, path: &str) -> Result<Vec<String>, RemoteError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(&self.root, path, flags, Mode::empty()) {
            Ok(dir) => Dir::new(dir).map_err(error)?,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(errno) => return Err(error(errno)),
        };
        let mut names = Vec::new();
        for entry in dir {
            let entry = entry.map_err(error)?;
            let name: &CStr = entry.file_name();
            if let Ok(name) = name.to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn make(&self, path: &str) -> Result<(), Errno> {
        match rustix::fs::mkdirat(&self.root, path, DIR_MODE) {
            Ok(()) => self.sync(path.rsplit_once('/').map_or(".", |(parent, _)| parent)),
            Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// A directory and those above it, but never the version's: if that is gone, so is the store.
    fn make_all(&self, path: &str) -> Result<(), Errno> {
        let ends = path.match_indices('/').map(|(end, _)| end).skip(1).chain([path.len()]);
        ends.filter_map(|end| path.get(..end)).try_for_each(|dir| self.make(dir))
    }

    /// Makes a directory's entries durable.
    fn sync(&self, path: &str) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::fsync(rustix::fs::openat(&self.root, path, flags, Mode::empty())?)
    }

    /// By the file server's clock, which is not ours: a file made now tells it.
    fn remove_left_overs(&self) -> Result<u64, Errno> {
        let probe = format!("{TMP}/now-{}", self.writer);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let now = rustix::fs::fstat(rustix::fs::openat(&self.root, &probe, flags, FILE_MODE)?)?.st_mtime;
        rustix::fs::unlinkat(&self.root, &probe, AtFlags::empty())?;
        let mut removed = 0;
        for name in self.list(TMP).unwrap_or_default() {
            let path = format!("{TMP}/{name}");
            let stat = rustix::fs::statat(&self.root, &path, AtFlags::SYMLINK_NOFOLLOW);
            if stat.is_ok_and(|stat| now - stat.st_mtime > LEFT_OVER_SECONDS)
                && rustix::fs::unlinkat(&self.root, &path, AtFlags::empty()).is_ok()
            {
                removed += 1;
            }
        }
        Ok(removed)
    }
}
