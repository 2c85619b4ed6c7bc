//! Page-aligned buffers for what is not a record: headers, footers and recovery.

use bytemuck::{Pod, Zeroable};

use crate::arena::PAGE;

/// One page, aligned for `O_DIRECT`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// A zeroed run of whole pages.
pub(crate) struct PageBuf(Box<[Page]>);

impl PageBuf {
    /// Room for `bytes`, rounded up to pages; at least one.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(vec![Page::zeroed(); bytes.div_ceil(PAGE).max(1)].into_boxed_slice())
    }

    /// No pages at all: nothing is allocated.
    pub(crate) fn empty() -> Self {
        Self(Box::new([]))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_whole_and_zero() {
        for bytes in [1, 4096, 4097] {
            let mut buf = PageBuf::new(bytes);
            assert_eq!(buf.bytes().as_ptr() as usize % PAGE, 0);
            assert_eq!(buf.bytes().len(), bytes.next_multiple_of(PAGE));
            assert!(buf.bytes_mut().iter().all(|&b| b == 0));
        }
    }
}
