//! A store whose k-th operation fails, for tests that try every k.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use kv_core::ids::SegmentId;

use super::SegmentStore;

/// What happens to the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this `errno` and has no effect.
    Errno(i32),
    /// It and every later one fail with this `errno`: the disk is gone.
    Dead(i32),
    /// A transfer stops half-way; other operations fail with `EIO`.
    Short,
    /// A transfer says that all is well and flips this bit, modulo its length; other operations work.
    FlipBit(u64),
}

/// Wraps a store and spoils one operation.
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: S,
    at: AtomicU64,
    fault: Fault,
    done: AtomicU64,
}

impl<S: SegmentStore> FaultyStore<S> {
    /// Spoils operation number `at`, counted from 0.
    pub fn new(inner: S, at: u64, fault: Fault) -> Self {
        Self { inner, at: AtomicU64::new(at), fault, done: AtomicU64::new(0) }
    }

    /// Spoils the next operation instead.
    pub fn spoil_next(&self) {
        self.at.store(self.operations(), Ordering::Relaxed);
    }

    /// Operations asked for so far.
    pub fn operations(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// The store beneath.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn next(&self) -> Option<Fault> {
        let number = self.done.fetch_add(1, Ordering::Relaxed);
        let at = self.at.load(Ordering::Relaxed);
        let hit = number == at || (number > at && matches!(self.fault, Fault::Dead(_)));
        hit.then_some(self.fault)
    }

    /// For operations that move no bytes.
    fn gate(&self) -> io::Result<()> {
        match self.next() {
            None | Some(Fault::FlipBit(_)) => Ok(()),
            Some(Fault::Errno(errno) | Fault::Dead(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short) => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }
}

fn flip(bytes: &mut [u8], bit: u64) {
    let len = bytes.len().max(1) as u64;
    if let Some(byte) = bytes.get_mut((bit / 8 % len) as usize) {
        *byte ^= 1 << (bit % 8);
    }
}

impl<S: SegmentStore> SegmentStore for FaultyStore<S> {
    fn segments(&self) -> io::Result<Vec<(SegmentId, u64)>> {
        self.gate()?;
        self.inner.segments()
    }

    fn reserve(&self, segment: SegmentId, bytes: u64) -> io::Result<()> {
        self.gate()?;
        self.inner.reserve(segment, bytes)
    }

    fn remove(&self, segment: SegmentId) -> io::Result<()> {
        self.gate()?;
        self.inner.remove(segment)
    }

    fn read_at(&self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        match self.next() {
            Some(Fault::Errno(errno) | Fault::Dead(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short) => {
                let half = into.len() / 2;
                self.inner.read_at(segment, offset, &mut into[..half])
            }
            Some(Fault::FlipBit(bit)) => {
                let given = self.inner.read_at(segment, offset, into)?;
                flip(&mut into[..given], bit);
                Ok(given)
            }
            None => self.inner.read_at(segment, offset, into),
        }
    }

    fn write_at(&self, segment: SegmentId, offset: u64, from: &[u8]) -> io::Result<usize> {
        match self.next() {
            Some(Fault::Errno(errno) | Fault::Dead(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short) => self.inner.write_at(segment, offset, &from[..from.len() / 2]),
            Some(Fault::FlipBit(bit)) => {
                let mut spoiled = from.to_vec();
                flip(&mut spoiled, bit);
                self.inner.write_at(segment, offset, &spoiled)
            }
            None => self.inner.write_at(segment, offset, from),
        }
    }

    fn sync(&self, segment: SegmentId) -> io::Result<()> {
        self.gate()?;
        self.inner.sync(segment)
    }

    fn superblock(&self) -> io::Result<Option<Vec<u8>>> {
        self.gate()?;
        self.inner.superblock()
    }

    fn replace_superblock(&self, bytes: &[u8]) -> io::Result<()> {
        self.gate()?;
        self.inner.replace_superblock(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::store::MemStore;

    #[test]
    fn exactly_the_chosen_operation_is_spoiled() {
        let store = |fault| {
            let store = FaultyStore::new(MemStore::new(), 2, fault);
            store.reserve(SegmentId(0), 4096).unwrap();
            store.write_at(SegmentId(0), 0, &[1; 4096]).unwrap();
            store
        };
        let read = |store: &FaultyStore<MemStore>| {
            let mut bytes = vec![0; 4096];
            store.read_at(SegmentId(0), 0, &mut bytes).map(|n| (n, bytes))
        };
        let good = (4096, vec![1; 4096]);

        let eio = store(Fault::Errno(libc::EIO));
        assert_eq!(read(&eio).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(read(&eio).unwrap(), good);
        let dead = store(Fault::Dead(libc::EIO));
        assert!(read(&dead).is_err() && read(&dead).is_err() && dead.sync(SegmentId(0)).is_err());
        assert_eq!(read(&store(Fault::Short)).unwrap().0, 2048);
        let (given, bytes) = read(&store(Fault::FlipBit(8 * 100))).unwrap();
        assert_eq!((given, bytes[100], bytes[99]), (4096, 0, 1));
    }
}
