//! Memory that the library reads and writes: registered once, cut into lanes. Nothing else is ever shown to it, so
//! a call that hangs holds a lane and no memory of a caller.

use std::alloc::Layout;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

/// Alignment of the whole, for registration.
const PAGE: usize = 4096;

/// Alignment of every record in a lane.
const LINE: usize = 64;

/// Lanes of equal size, each of one call at a time.
pub(super) struct Staging {
    base: NonNull<u8>,
    layout: Layout,
    lane_bytes: usize,
    free: Mutex<Vec<usize>>,
}

// SAFETY: the memory is the process's; who may touch which part is decided by the lanes that are handed out.
unsafe impl Send for Staging {}
// SAFETY: as above; `base`, `layout` and `lane_bytes` never change.
unsafe impl Sync for Staging {}

impl Staging {
    /// `lanes` lanes with room for a record of `record_bytes` each. Zeroed, and touched only when it is used.
    /// `None` if there is no such memory.
    pub(super) fn new(lanes: usize, record_bytes: usize) -> Option<Arc<Self>> {
        let lane_bytes = record_bytes.max(1).checked_next_multiple_of(PAGE)?;
        let layout = Layout::from_size_align(lane_bytes.checked_mul(lanes.max(1))?, PAGE).ok()?;
        // SAFETY: at least a page.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        Some(Arc::new(Self { base, layout, lane_bytes, free: Mutex::new((0..lanes).collect()) }))
    }

    /// All of it.
    pub(super) fn whole(&self) -> (*mut c_void, usize) {
        (self.base.as_ptr().cast(), self.layout.size())
    }

    /// Bytes of a lane.
    pub(super) fn lane_bytes(&self) -> usize {
        self.lane_bytes
    }

    /// A lane that nobody has.
    pub(super) fn lane(self: &Arc<Self>) -> Option<Lane> {
        let number = self.free.lock().pop()?;
        Some(Lane { staging: Arc::clone(self), number, used: 0 })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: ours, once; every lane keeps the staging alive.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// Room that a record takes in a lane.
pub(super) fn rounded(record_bytes: usize) -> usize {
    record_bytes.checked_next_multiple_of(LINE).unwrap_or(usize::MAX)
}

/// One call's part of the staging.
pub(super) struct Lane {
    staging: Arc<Staging>,
    number: usize,
    used: usize,
}

impl Lane {
    /// Room for one more record.
    pub(super) fn room(&mut self, bytes: usize) -> Option<Range<usize>> {
        let end = self.used.checked_add(rounded(bytes)).filter(|&end| end <= self.staging.lane_bytes)?;
        let room = self.used..self.used + bytes;
        self.used = end;
        Some(room)
    }

    /// Where a room begins, for the library; null if it does not lie in the lane.
    pub(super) fn address(&mut self, room: &Range<usize>) -> *mut c_void {
        if room.start <= room.end && room.end <= self.staging.lane_bytes {
            self.start().wrapping_add(room.start).cast()
        } else {
            std::ptr::null_mut()
        }
    }

    /// What is in it.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: a lane has one owner, and its part of the memory lives as long as `staging`. The library writes to
        // it only during a call that borrows the lane mutably.
        unsafe { std::slice::from_raw_parts(self.start(), self.staging.lane_bytes) }
    }

    /// The same, to be written.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.staging.lane_bytes) }
    }

    fn start(&self) -> *mut u8 {
        self.staging.base.as_ptr().wrapping_add(self.number * self.staging.lane_bytes)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.staging.free.lock().push(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_apart_and_come_back() {
        let staging = Staging::new(2, 5000).unwrap();
        assert_eq!(staging.lane_bytes(), 8192);
        let (mut a, mut b) = (staging.lane().unwrap(), staging.lane().unwrap());
        assert!(staging.lane().is_none());
        a.bytes_mut().fill(1);
        b.bytes_mut().fill(2);
        assert!(a.bytes().iter().all(|&byte| byte == 1));
        let rooms = [a.room(100).unwrap(), a.room(64).unwrap(), a.room(7940).unwrap()];
        assert_eq!(rooms, [0..100, 128..192, 192..8132]);
        assert_eq!((a.room(1), a.room(usize::MAX)), (None, None));
        let distance = a.address(&rooms[1]).addr() - a.address(&rooms[0]).addr();
        assert_eq!(distance, 128);
        drop(a);
        assert!(staging.lane().is_some());
        assert!(Staging::new(2, usize::MAX - 10).is_none());
    }
}
