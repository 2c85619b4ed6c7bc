//! The contiguous pieces of a block, one after the other.

use super::Step;

/// A contiguous piece of a block in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Which buffer: layer by layer, and K before V where they have their own.
    pub buffer: u32,
    /// First byte.
    pub offset: usize,
    /// Number of bytes.
    pub len: usize,
}

/// One level of the nest of loops that visits a block's fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loop {
    pub(super) count: u32,
    pub(super) step: Step,
}

/// Iterator over the fragments of a block, see [`Placement::fragments`](super::Placement::fragments).
#[derive(Clone, Debug)]
pub struct Fragments {
    loops: [Loop; 4],
    index: [u32; 4],
    run: usize,
    remaining: usize,
    buffer: u32,
    offset: usize,
}

impl Iterator for Fragments {
    type Item = Fragment;

    fn next(&mut self) -> Option<Fragment> {
        self.remaining = self.remaining.checked_sub(1)?;
        let fragment = Fragment { buffer: self.buffer, offset: self.offset, len: self.run };
        self.advance();
        Some(fragment)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining, Some(self.remaining))
    }
}

impl ExactSizeIterator for Fragments {}

impl Fragments {
    /// The fragments of the block whose first vector lies at `offset` of the first buffer.
    pub(super) fn new(loops: [Loop; 4], run: usize, offset: usize) -> Self {
        let remaining = loops.iter().map(|level| level.count as usize).product();
        Self { loops, index: [0; 4], run, remaining, buffer: 0, offset }
    }

    /// Counts the innermost loop up; a loop that is through starts over and the next one outwards counts.
    fn advance(&mut self) {
        // Buffers are numbered in the order of the loops: one step outwards skips all inner buffers.
        let mut inner_buffers = 1;
        for (level, index) in self.loops.iter().zip(&mut self.index).rev() {
            let last = level.count - 1;
            let over = *index == last;
            match level.step {
                Step::Bytes(bytes) if over => self.offset -= last as usize * bytes,
                Step::Bytes(bytes) => self.offset += bytes,
                Step::Buffer if over => self.buffer -= last * inner_buffers,
                Step::Buffer => self.buffer += inner_buffers,
            }
            if !over {
                *index += 1;
                return;
            }
            *index = 0;
            if level.step == Step::Buffer {
                inner_buffers *= level.count;
            }
        }
    }
}
