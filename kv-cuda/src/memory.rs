//! Host memory as a device sees it.

use std::ptr::NonNull;

/// A region of host memory that devices copy to and from: the pinned arena. A device keeps it alive by the
/// `Arc` that it was given, and a CUDA device registers all of it with the driver.
///
/// # Safety
/// - `base` and `size` never change, and `base..base + size` is one allocation, readable and writable,
///   for the life of the value.
/// - The implementor gives safe code no way to a reference into the region. Whoever makes one does so in
///   an `unsafe` block and answers for it that no copy of these bytes is outstanding, see
///   [`Device::submit`](crate::Device::submit).
pub unsafe trait HostMemory: Send + Sync {
    /// First byte.
    fn base(&self) -> NonNull<u8>;
    /// Number of bytes.
    fn size(&self) -> usize;
    /// Bytes of what is copied as one: memory is handed to the driver in pieces that are multiples of this,
    /// so that nothing lies across two of them. A multiple of the page size, or 1 if there is no such size.
    fn granule(&self) -> usize {
        1
    }
}

impl dyn HostMemory {
    /// The bytes of `span`, as a pointer. `None` if the region does not hold all of them.
    #[must_use]
    pub fn slice(&self, span: HostSpan) -> Option<NonNull<[u8]>> {
        if span.offset.checked_add(span.len)? > self.size() {
            return None;
        }
        // SAFETY: offset <= size, so the pointer stays in the allocation that the implementor promised.
        let first = unsafe { self.base().add(span.offset) };
        Some(NonNull::slice_from_raw_parts(first, span.len))
    }
}

/// A part of a [`HostMemory`], in bytes. Plain data: naming bytes does not yet touch them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostSpan {
    /// First byte, from the base of the region.
    pub offset: usize,
    /// Number of bytes.
    pub len: usize,
}
