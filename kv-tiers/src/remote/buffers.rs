//! Memory for records, used again.
//!
//! Fresh memory costs a page fault for every 4 KiB, which is more than it costs to copy 4 KiB. So buffers that were
//! let go of are kept, up to a bound, for the next call that needs as much.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;

/// What is kept at most. Beyond it memory goes back to the system: it is for a few calls of large blocks under way,
/// not for the largest batch that there ever was.
const KEPT_BYTES: usize = 64 << 20;

/// Smaller buffers are the allocator's business: it does not go to the system for them.
const LEAST: usize = 32 << 10;

/// Buffers that nobody uses now.
#[derive(Default)]
pub(crate) struct Buffers(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// The one that was used last, and may still be in a cache, at the end.
    free: Vec<Vec<u8>>,
    bytes: usize,
}

impl Buffers {
    /// An empty buffer with room for so many bytes.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Buffer {
        if bytes < LEAST {
            return Buffer { bytes: Vec::with_capacity(bytes), home: None };
        }
        let mut kept = self.0.lock();
        // One that is much too large would be missed by who needs it.
        let fits = |buffer: &Vec<u8>| (bytes..=2 * bytes).contains(&buffer.capacity());
        let found = kept.free.iter().rposition(fits).map(|at| kept.free.remove(at));
        kept.bytes -= found.as_ref().map_or(0, Vec::capacity);
        drop(kept);
        let bytes = found.unwrap_or_else(|| Vec::with_capacity(bytes));
        Buffer { bytes, home: Some(Arc::clone(self)) }
    }

    fn keep(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut kept = self.0.lock();
        kept.bytes += buffer.capacity();
        kept.free.push(buffer);
        // The oldest go first: they have a size that nobody asks for any more.
        let mut gone = 0;
        while kept.bytes > KEPT_BYTES
            && let Some(oldest) = kept.free.get(gone)
        {
            kept.bytes -= oldest.capacity();
            gone += 1;
        }
        let gone: Vec<_> = kept.free.drain(..gone).collect();
        drop(kept);
        // Outside the lock: the system takes its time.
        drop(gone);
    }
}

/// A buffer in use. Dropped, it can be used again.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// `None` for memory from elsewhere.
    home: Option<Arc<Buffers>>,
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, home: None }
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.keep(std::mem::take(&mut self.bytes));
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(buffers: &Buffers) -> (usize, usize) {
        let kept = buffers.0.lock();
        assert_eq!(kept.bytes, kept.free.iter().map(Vec::capacity).sum::<usize>());
        (kept.free.len(), kept.bytes)
    }

    #[test]
    fn a_buffer_is_used_again_by_who_needs_as_much_and_comes_empty() {
        let buffers = Arc::new(Buffers::default());
        let mut first = buffers.take(100_000);
        first.extend_from_slice(b"old bytes");
        let at = first.as_ptr();
        drop(first);
        assert_eq!(kept(&buffers).0, 1);
        assert_ne!(buffers.take(40_000).as_ptr(), at, "too large for this");
        let again = buffers.take(90_000);
        assert_eq!((again.as_ptr(), again.len()), (at, 0));
        assert_ne!(buffers.take(90_000).as_ptr(), at, "it is in use");
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
        let buffers = Arc::new(Buffers::default());
        let small = buffers.take(LEAST);
        let large: Vec<_> = (0..100).map(|_| buffers.take(1 << 20)).collect();
        drop(small);
        drop(large);
        assert_eq!(kept(&buffers), (64, KEPT_BYTES));
        drop(buffers.take(KEPT_BYTES + 1));
        assert_eq!(kept(&buffers), (0, 0));
        drop(buffers.take(LEAST - 1));
        assert_eq!(kept(&buffers), (0, 0));
    }
}
