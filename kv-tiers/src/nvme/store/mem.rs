//! Segments in memory, with a disk's idea of durability: for simulation and for tests of crashes.
//!
//! Every change is also kept as an [`Event`], so that a test can stop the disk after any of them.

use std::collections::BTreeMap;
use std::io;

use kv_core::ids::SegmentId;
use parking_lot::Mutex;

use super::{SegmentStore, no_such_segment};

/// What a disk writes atomically.
const SECTOR: usize = 512;

/// One change, in the order in which the store saw them.
#[derive(Clone, Debug)]
enum Event {
    Reserve(SegmentId, u64),
    Remove(SegmentId),
    Write(SegmentId, u64, Vec<u8>),
    Sync(SegmentId),
    Superblock(Vec<u8>),
}

#[derive(Clone, Debug, Default)]
struct Image {
    segments: BTreeMap<SegmentId, Vec<u8>>,
    superblock: Option<Vec<u8>>,
}

impl Image {
    fn write(&mut self, segment: SegmentId, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let data = self.segments.get_mut(&segment).ok_or_else(no_such_segment)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let taken = bytes.len().min(data.len() - start);
        data[start..start + taken].copy_from_slice(&bytes[..taken]);
        Ok(taken)
    }
}

#[derive(Debug, Default)]
struct Journal {
    /// What there was before.
    base: Image,
    events: Vec<Event>,
}

#[derive(Debug, Default)]
struct State {
    /// What reads see.
    volatile: Image,
    /// What survives a power failure for certain.
    durable: Image,
    /// Writes since the last sync of their segment, oldest first.
    unsynced: Vec<(SegmentId, u64, Vec<u8>)>,
    /// Everything since it began, if asked for.
    journal: Option<Journal>,
}

/// Segments in memory.
#[derive(Debug, Default)]
pub struct MemStore {
    state: Mutex<State>,
}

impl MemStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store that remembers every change, for [`MemStore::cut`].
    #[must_use]
    pub fn recording() -> Self {
        Self { state: Mutex::new(State { journal: Some(Journal::default()), ..State::default() }) }
    }

    /// Number of changes remembered so far.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.state.lock().journal.as_ref().map_or(0, |j| j.events.len())
    }

    /// Sectors that the remembered change number `change` writes; 0 if it is not a write.
    #[must_use]
    pub fn sectors_of(&self, change: usize) -> usize {
        match self.state.lock().journal.as_ref().and_then(|j| j.events.get(change)) {
            Some(Event::Write(_, _, bytes)) => bytes.len().div_ceil(SECTOR),
            _ => 0,
        }
    }

    /// The store as `kill -9` leaves it: the first `changes` changes, and `torn` sectors of the next one.
    #[must_use]
    pub fn cut(&self, changes: usize, torn: usize) -> Self {
        let state = self.state.lock();
        let Some(journal) = &state.journal else { return Self::holding(state.volatile.clone()) };
        let after = Self::holding(journal.base.clone());
        for event in journal.events.iter().take(changes) {
            after.apply(event);
        }
        if let Some(Event::Write(segment, offset, bytes)) = journal.events.get(changes) {
            let kept = bytes.len().min(torn * SECTOR);
            after.apply(&Event::Write(*segment, *offset, bytes[..kept].to_vec()));
        }
        after
    }

    /// Forgets the changes so far and remembers those from here on.
    pub fn record(&self) {
        let mut state = self.state.lock();
        state.journal = Some(Journal { base: state.volatile.clone(), events: Vec::new() });
    }

    /// The store as a power failure leaves it: what was synced, and of the other writes any subset of sectors.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let state = self.state.lock();
        let mut image = state.durable.clone();
        let mut random = seed;
        // Every 16th seed keeps all, the next none, the others each sector with its own probability.
        let keep = seed % 16;
        for (segment, offset, bytes) in &state.unsynced {
            for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                random = splitmix(random);
                if keep == 0 || (keep != 1 && random % 16 < keep) {
                    // A missing segment cannot have been written.
                    drop(image.write(*segment, offset + (i * SECTOR) as u64, sector));
                }
            }
        }
        Self::holding(image)
    }

    /// All of it durable.
    fn holding(image: Image) -> Self {
        Self { state: Mutex::new(State { volatile: image.clone(), durable: image, ..State::default() }) }
    }

    /// Flips one bit of what is stored, counted over all segments and then the superblock; modulo their size.
    pub fn flip_bit(&self, bit: u64) {
        let mut state = self.state.lock();
        let State { volatile, durable, .. } = &mut *state;
        for image in [volatile, durable] {
            let superblock = image.superblock.iter_mut().map(|s| s.as_mut_slice());
            let mut parts: Vec<&mut [u8]> =
                image.segments.values_mut().map(Vec::as_mut_slice).chain(superblock).collect();
            let total: usize = parts.iter().map(|p| p.len()).sum();
            let mut byte = (bit / 8) as usize % total.max(1);
            for part in &mut parts {
                if let Some(found) = part.get_mut(byte) {
                    *found ^= 1 << (bit % 8);
                    break;
                }
                byte -= part.len();
            }
        }
    }

    fn apply(&self, event: &Event) {
        // The event succeeded once on the same images, so it does again.
        drop(match event {
            Event::Reserve(segment, bytes) => self.reserve(*segment, *bytes),
            Event::Remove(segment) => self.remove(*segment),
            Event::Write(segment, offset, bytes) => self.write_at(*segment, *offset, bytes).map(drop),
            Event::Sync(segment) => self.sync(*segment),
            Event::Superblock(bytes) => self.replace_superblock(bytes),
        });
    }
}

/// SplitMix64: a seed for the next draw.
fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl State {
    fn note(&mut self, event: impl FnOnce() -> Event) {
        if let Some(journal) = &mut self.journal {
            journal.events.push(event());
        }
    }
}

impl SegmentStore for MemStore {
    fn segments(&self) -> io::Result<Vec<(SegmentId, u64)>> {
        Ok(self.state.lock().volatile.segments.iter().map(|(s, d)| (*s, d.len() as u64)).collect())
    }

    fn reserve(&self, segment: SegmentId, bytes: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::StorageFull)?;
        let State { volatile, durable, .. } = &mut *state;
        for image in [volatile, durable] {
            let data = image.segments.entry(segment).or_default();
            data.resize(bytes.max(data.len()), 0);
        }
        state.note(|| Event::Reserve(segment, bytes as u64));
        Ok(())
    }

    fn remove(&self, segment: SegmentId) -> io::Result<()> {
        let mut state = self.state.lock();
        state.volatile.segments.remove(&segment).ok_or_else(no_such_segment)?;
        state.durable.segments.remove(&segment);
        state.unsynced.retain(|(s, ..)| *s != segment);
        state.note(|| Event::Remove(segment));
        Ok(())
    }

    fn read_at(&self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let state = self.state.lock();
        let data = state.volatile.segments.get(&segment).ok_or_else(no_such_segment)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let given = into.len().min(data.len() - start);
        into[..given].copy_from_slice(&data[start..start + given]);
        Ok(given)
    }

    fn write_at(&self, segment: SegmentId, offset: u64, from: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        let taken = state.volatile.write(segment, offset, from)?;
        state.unsynced.push((segment, offset, from[..taken].to_vec()));
        state.note(|| Event::Write(segment, offset, from[..taken].to_vec()));
        Ok(taken)
    }

    fn sync(&self, segment: SegmentId) -> io::Result<()> {
        let mut state = self.state.lock();
        let State { volatile, durable, unsynced, .. } = &mut *state;
        if !volatile.segments.contains_key(&segment) {
            return Err(no_such_segment());
        }
        for (_, offset, bytes) in unsynced.extract_if(.., |(s, ..)| *s == segment) {
            durable.write(segment, offset, &bytes)?;
        }
        state.note(|| Event::Sync(segment));
        Ok(())
    }

    fn superblock(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.state.lock().volatile.superblock.clone())
    }

    fn replace_superblock(&self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        state.volatile.superblock = Some(bytes.to_vec());
        state.durable.superblock = Some(bytes.to_vec());
        state.note(|| Event::Superblock(bytes.to_vec()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: SegmentId = SegmentId(0);

    fn read(store: &MemStore) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        assert_eq!(store.read_at(S, 0, &mut bytes).unwrap(), 4096);
        bytes
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_any_sectors_of_the_rest() {
        let store = MemStore::new();
        store.reserve(S, 4096).unwrap();
        store.write_at(S, 0, &[1; 4096]).unwrap();
        store.sync(S).unwrap();
        store.write_at(S, 0, &[2; 4096]).unwrap();
        assert_eq!(read(&store), [2; 4096]);
        let mut outcomes = std::collections::HashSet::new();
        for seed in 0..64 {
            let after = read(&store.crash(seed));
            for sector in after.chunks(SECTOR) {
                assert!(sector == [1; SECTOR] || sector == [2; SECTOR]);
            }
            outcomes.insert(after);
        }
        assert!(outcomes.contains(&vec![1; 4096]) && outcomes.contains(&vec![2; 4096]));
        assert!(outcomes.len() > 10, "torn in many ways");
        store.sync(S).unwrap();
        assert_eq!(read(&store.crash(1)), [2; 4096]);
    }

    #[test]
    fn a_cut_keeps_a_prefix_of_the_changes() {
        let store = MemStore::recording();
        store.reserve(S, 4096).unwrap();
        store.write_at(S, 0, &[1; 4096]).unwrap();
        store.write_at(S, 0, &[2; 4096]).unwrap();
        assert_eq!((store.changes(), store.sectors_of(0), store.sectors_of(2)), (3, 0, 8));
        assert_eq!(read(&store.cut(1, 0)), [0; 4096]);
        assert_eq!(read(&store.cut(2, 0)), [1; 4096]);
        let torn = read(&store.cut(2, 3));
        assert_eq!((&torn[..1536], &torn[1536..]), (&[2; 1536][..], &[1; 2560][..]));
        assert_eq!(read(&store.cut(3, 9)), [2; 4096]);
    }

    #[test]
    fn the_end_of_a_segment_is_a_short_transfer() {
        let store = MemStore::new();
        store.reserve(S, 4096).unwrap();
        assert_eq!(store.write_at(S, 4000, &[1; 200]).unwrap(), 96);
        assert_eq!(store.read_at(S, u64::MAX, &mut [0; 8]).unwrap(), 0);
        assert!(store.write_at(SegmentId(1), 0, &[0; 8]).is_err());
        assert!(store.sync(SegmentId(1)).is_err());
    }

    #[test]
    fn a_flipped_bit_is_one_bit() {
        let store = MemStore::new();
        store.reserve(S, 4096).unwrap();
        store.replace_superblock(&[0; 4]).unwrap();
        store.flip_bit(8 * 4095 + 3);
        assert_eq!(read(&store)[4095], 8);
        store.flip_bit(8 * 4097);
        assert_eq!(store.superblock().unwrap().unwrap(), [0, 1, 0, 0]);
    }
}
