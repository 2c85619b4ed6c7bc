//! A disk that misbehaves at random, from a seed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use kv_core::ids::SegmentId;
use kv_tiers::nvme::{MemStore, SegmentStore};
use kvtier_benches::SplitMix64;
use parking_lot::Mutex;

/// How a disk misbehaves. Each number is "once in so many operations"; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Misbehaviour {
    /// The operation fails.
    pub errors: u64,
    /// A transfer stops half-way.
    pub short: u64,
    /// A read returns other bytes than are stored, and says that all is well.
    pub lying_reads: u64,
    /// A write stores other bytes than it was given, and says that all is well.
    pub lying_writes: u64,
}

impl Misbehaviour {
    /// Whether what the disk calls durable is.
    #[must_use]
    pub fn keeps_its_word(&self) -> bool {
        self.lying_writes == 0
    }
}

/// What the disk does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mood {
    /// Works.
    Good,
    /// Fails and lies as its [`Misbehaviour`] says.
    Bad,
    /// Does nothing any more.
    Unplugged,
}

/// A [`MemStore`] behind a bad cable.
pub struct BadDisk {
    inner: Arc<MemStore>,
    how: Misbehaviour,
    mood: AtomicU8,
    sync_failed: AtomicBool,
    rng: Mutex<SplitMix64>,
}

impl BadDisk {
    /// Good at first. The same seed and the same operations: the same faults.
    #[must_use]
    pub fn new(inner: Arc<MemStore>, how: Misbehaviour, seed: u64) -> Self {
        Self {
            inner,
            how,
            mood: AtomicU8::new(Mood::Good as u8),
            sync_failed: AtomicBool::new(false),
            rng: Mutex::new(SplitMix64::new(seed)),
        }
    }

    /// From now on.
    pub fn set_mood(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::Relaxed);
    }

    /// Whether a sync has failed since this was last asked. It is the one failure after which a disk may keep
    /// less than it promised before.
    pub fn take_sync_failure(&self) -> bool {
        self.sync_failed.swap(false, Ordering::Relaxed)
    }

    fn once_in(&self, n: u64) -> bool {
        self.mood.load(Ordering::Relaxed) == Mood::Bad as u8 && self.rng.lock().once_in(n)
    }

    fn may_fail(&self) -> io::Result<()> {
        if self.mood.load(Ordering::Relaxed) == Mood::Unplugged as u8 {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        if self.once_in(self.how.errors) {
            let errno = [libc::EIO, libc::ENOSPC, libc::EROFS][self.rng.lock().below(3) as usize];
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(())
    }

    fn flip(&self, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            let bit = self.rng.lock().below(bytes.len() as u64 * 8);
            bytes[bit as usize / 8] ^= 1 << (bit % 8);
        }
    }
}

impl SegmentStore for BadDisk {
    fn segments(&self) -> io::Result<Vec<(SegmentId, u64)>> {
        self.inner.segments()
    }
    fn reserve(&self, segment: SegmentId, bytes: u64) -> io::Result<()> {
        self.inner.reserve(segment, bytes)
    }
    fn remove(&self, segment: SegmentId) -> io::Result<()> {
        self.inner.remove(segment)
    }
    fn read_at(&self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.may_fail()?;
        if self.once_in(self.how.short) {
            let half = into.len() / 8192 * 4096;
            return self.inner.read_at(segment, offset, &mut into[..half]);
        }
        let done = self.inner.read_at(segment, offset, into)?;
        if self.once_in(self.how.lying_reads) {
            self.flip(into);
        }
        Ok(done)
    }
    fn write_at(&self, segment: SegmentId, offset: u64, from: &[u8]) -> io::Result<usize> {
        self.may_fail()?;
        if self.once_in(self.how.short) {
            let half = from.len() / 8192 * 4096;
            return self.inner.write_at(segment, offset, &from[..half]);
        }
        if self.once_in(self.how.lying_writes) {
            let mut wrong = from.to_vec();
            self.flip(&mut wrong);
            return self.inner.write_at(segment, offset, &wrong);
        }
        self.inner.write_at(segment, offset, from)
    }
    fn sync(&self, segment: SegmentId) -> io::Result<()> {
        self.may_fail().inspect_err(|_| self.sync_failed.store(true, Ordering::Relaxed))?;
        self.inner.sync(segment)
    }
    fn superblock(&self) -> io::Result<Option<Vec<u8>>> {
        self.inner.superblock()
    }
    fn replace_superblock(&self, bytes: &[u8]) -> io::Result<()> {
        self.inner.replace_superblock(bytes)
    }
}
