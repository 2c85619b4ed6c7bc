//! The buffers of a pool in ordinary memory: its own, or a runtime's.

use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use kv_core::layout::{Fragments, Placement};

use crate::device::DeviceError;

/// All of them.
pub(super) struct Hbm(pub(super) Vec<Buffer>);

pub(super) enum Buffer {
    Own(Vec<u8>),
    Borrowed(Borrowed),
}

/// A buffer of somebody else. References are made only to the fragments of blocks that are copied.
pub(super) struct Borrowed {
    start: NonNull<u8>,
    len: usize,
    /// Keeps the buffer allocated.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: memory without an owning thread, reached under the lock of `Shared::hbm` alone.
unsafe impl Send for Borrowed {}

impl Buffer {
    pub(super) fn bytes(&self, part: Range<usize>) -> &[u8] {
        match self {
            Self::Own(bytes) => &bytes[part],
            Self::Borrowed(buffer) => {
                assert!(part.start <= part.end && part.end <= buffer.len, "fragments lie in their buffer");
                // SAFETY: in the buffer (above). Whoever lent it warrants that nobody writes the blocks of a copy
                // under way.
                unsafe { std::slice::from_raw_parts(buffer.start.add(part.start).as_ptr(), part.len()) }
            }
        }
    }

    pub(super) fn bytes_mut(&mut self, part: Range<usize>) -> &mut [u8] {
        match self {
            Self::Own(bytes) => &mut bytes[part],
            Self::Borrowed(buffer) => {
                assert!(part.start <= part.end && part.end <= buffer.len, "fragments lie in their buffer");
                // SAFETY: as in `bytes`, and nobody reads them either.
                unsafe { std::slice::from_raw_parts_mut(buffer.start.add(part.start).as_ptr(), part.len()) }
            }
        }
    }
}

impl Hbm {
    /// Zeroed, like memory that no kernel has written.
    pub(super) fn new(placement: &Placement) -> Result<Self, DeviceError> {
        let (buffers, bytes) = (placement.buffers(), placement.buffer_bytes());
        let buffer = |_| {
            let mut buffer = Vec::new();
            buffer.try_reserve_exact(bytes).map_err(|_| DeviceError::OutOfMemory { buffers, bytes })?;
            buffer.resize(bytes, 0);
            Ok(Buffer::Own(buffer))
        };
        (0..buffers).map(buffer).collect::<Result<_, _>>().map(Self)
    }

    /// Buffers of somebody else.
    ///
    /// # Safety
    /// Each has [`Placement::buffer_bytes`] readable and writable bytes for as long as `owner` is kept, and nobody else
    /// uses the blocks that are copied meanwhile.
    pub(super) unsafe fn borrow(
        placement: &Placement,
        buffers: &[NonNull<u8>],
        owner: &Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let len = placement.buffer_bytes();
        let lend = |&start| Buffer::Borrowed(Borrowed { start, len, _owner: Arc::clone(owner) });
        Self(buffers.iter().map(lend).collect())
    }

    /// Device to page-first order. Returns the number of bytes copied.
    pub(super) fn gather(&self, from: Fragments, block: &mut [u8]) -> usize {
        let (mut rest, mut done) = (block, 0);
        for fragment in from {
            let (piece, tail) = rest.split_at_mut(fragment.len);
            let part = fragment.offset..fragment.offset + fragment.len;
            piece.copy_from_slice(self.0[fragment.buffer as usize].bytes(part));
            rest = tail;
            done += fragment.len;
        }
        done
    }

    /// Page-first to device order. Returns the number of bytes copied.
    pub(super) fn scatter(&mut self, block: &[u8], to: Fragments) -> usize {
        self.scatter_part(block, 0..block.len(), to)
    }

    /// The same for some of the block's bytes.
    pub(super) fn scatter_part(&mut self, block: &[u8], part: Range<usize>, to: Fragments) -> usize {
        let (mut at, mut done) = (0, 0);
        for fragment in to {
            let (start, end) = (at.max(part.start), (at + fragment.len).min(part.end));
            if start < end {
                let first = fragment.offset + start - at;
                let device = self.0[fragment.buffer as usize].bytes_mut(first..first + end - start);
                device.copy_from_slice(&block[start..end]);
                done += end - start;
            }
            at += fragment.len;
        }
        done
    }
}
