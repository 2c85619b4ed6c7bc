//! Registered host memory, and what its bytes should be.

use std::ptr::NonNull;
use std::sync::Arc;

use kv_cuda::{HostMemory, HostSpan};
use memmap2::MmapMut;

use super::GpuError;
use crate::SplitMix64;

/// Ordinary memory. Devices register it.
struct Region {
    base: NonNull<u8>,
    map: MmapMut,
}

// SAFETY: owned memory; access is the business of whoever uses the pointer.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

// SAFETY: one mapping, never moved or resized, ours until drop; safe code gets no reference into it.
unsafe impl HostMemory for Region {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn size(&self) -> usize {
        self.map.len()
    }
}

/// Equal spans with gaps between them, all filled with random bytes, and a second copy of all that.
pub(crate) struct HostBlocks {
    memory: Arc<Region>,
    /// What the bytes should be.
    image: Vec<u8>,
    first: usize,
    step: usize,
    len: usize,
}

impl HostBlocks {
    /// `count` spans of `len` bytes, the first one at `first`, `gap` bytes between them and at the end.
    pub(crate) fn new(
        count: usize,
        len: usize,
        first: usize,
        gap: usize,
        rng: &mut SplitMix64,
    ) -> Result<Self, GpuError> {
        let step = len + gap;
        let mut map = MmapMut::map_anon((first + count * step).max(1))?;
        rng.fill(&mut map);
        let image = map.to_vec();
        let base = NonNull::new(map.as_mut_ptr()).unwrap_or(NonNull::dangling());
        Ok(Self { memory: Arc::new(Region { base, map }), image, first, step, len })
    }

    /// For a device.
    pub(crate) fn memory(&self) -> Arc<dyn HostMemory> {
        Arc::clone(&self.memory) as Arc<dyn HostMemory>
    }

    /// One of the spans.
    pub(crate) const fn span(&self, at: usize) -> HostSpan {
        HostSpan { offset: self.first + at * self.step, len: self.len }
    }

    /// What a span should hold.
    pub(crate) fn block(&self, at: usize) -> &[u8] {
        &self.image[self.span(at).offset..][..self.len]
    }

    /// From now on a span should hold this.
    pub(crate) fn set_block(&mut self, at: usize, bytes: &[u8]) {
        let span = self.span(at);
        self.image[span.offset..][..span.len].copy_from_slice(bytes);
    }

    /// Compares every byte, gaps included.
    ///
    /// # Safety
    /// No copy to this memory is outstanding.
    pub(crate) unsafe fn check(&self) -> Result<(), GpuError> {
        // SAFETY: the whole mapping, which nobody writes now.
        let found = unsafe { std::slice::from_raw_parts(self.memory.base.as_ptr(), self.image.len()) };
        let place = |at: usize| match at.checked_sub(self.first) {
            Some(at) if at % self.step < self.len => {
                format!("byte {} of host block {}", at % self.step, at / self.step)
            }
            _ => format!("byte {at} of host memory, outside of all blocks"),
        };
        compare(&self.image, found, place)
    }
}

/// Says where bytes differ first, and how many do.
pub(crate) fn compare(
    expected: &[u8],
    found: &[u8],
    place: impl Fn(usize) -> String,
) -> Result<(), GpuError> {
    if expected == found {
        return Ok(());
    }
    let differ = || expected.iter().zip(found).enumerate().filter(|(_, (a, b))| a != b);
    let (Some((at, (expected, found))), count) = (differ().next(), differ().count()) else { return Ok(()) };
    let place = place(at);
    Err(GpuError::wrong(format!("{place} is {found:#04x} instead of {expected:#04x}; {count} bytes differ")))
}
