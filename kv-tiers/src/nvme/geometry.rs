//! Where things lie in a segment file. `docs/nvme-format.md` draws it.

use kv_core::job::Place;

use super::format::{FOOTER_ENTRY, FOOTER_HEAD};
use crate::arena::{MAX_SLOT, PAGE};

/// Header copies at the start of a segment.
pub(crate) const HEADER_COPIES: u64 = 2;

/// Sizes that every segment of a log shares, fixed when the log is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) payload_bytes: usize,
    pub(crate) records_per_segment: u32,
}

impl Geometry {
    /// `None` if a record would not fit a slot or a segment holds none.
    pub(crate) fn new(payload_bytes: usize, records_per_segment: u32) -> Option<Self> {
        let fits = (1..=MAX_SLOT - PAGE).contains(&payload_bytes);
        (fits && records_per_segment > 0).then_some(Self { payload_bytes, records_per_segment })
    }

    /// Bytes from one record to the next: header page and padded payload, the size of an arena slot.
    pub(crate) fn stride(self) -> usize {
        PAGE + self.payload_bytes.next_multiple_of(PAGE)
    }

    /// Offset of a record.
    pub(crate) fn record(self, index: u32) -> u64 {
        HEADER_COPIES * PAGE as u64 + u64::from(index) * self.stride() as u64
    }

    /// Offset of the footer.
    pub(crate) fn footer(self) -> u64 {
        self.record(self.records_per_segment)
    }

    /// Bytes of a footer that holds `records` entries.
    pub(crate) fn footer_bytes(self, records: u32) -> usize {
        (FOOTER_HEAD + records as usize * FOOTER_ENTRY).next_multiple_of(PAGE)
    }

    /// Bytes of a segment file.
    pub(crate) fn segment_bytes(self) -> u64 {
        self.footer() + self.footer_bytes(self.records_per_segment) as u64
    }

    /// Most records that leave a segment within `bytes`; at least one.
    pub(crate) fn records_within(payload_bytes: usize, bytes: u64) -> u32 {
        let record = (payload_bytes.div_ceil(PAGE) as u64).saturating_add(1).saturating_mul(PAGE as u64);
        // One page for rounding the footer up.
        let room = bytes.saturating_sub((HEADER_COPIES + 1) * PAGE as u64 + FOOTER_HEAD as u64);
        (room / record.saturating_add(FOOTER_ENTRY as u64)).clamp(1, u64::from(u32::MAX)) as u32
    }

    /// Whether there is such a record in a segment.
    pub(crate) fn holds(self, place: Place) -> bool {
        place.index < self.records_per_segment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_page_aligned_and_in_order() {
        for payload in [1, 4096, 4097, 512 << 10] {
            let g = Geometry::new(payload, 7).unwrap();
            assert_eq!(g.stride() % PAGE, 0);
            assert!(g.stride() >= PAGE + payload);
            assert_eq!(g.record(0), 8192);
            assert_eq!(g.record(3) - g.record(2), g.stride() as u64);
            assert_eq!(g.footer(), g.record(6) + g.stride() as u64);
            assert_eq!(g.segment_bytes() % PAGE as u64, 0);
        }
    }

    #[test]
    fn segments_fill_the_bytes_they_are_given() {
        for payload in [4096, 2 << 20, 100_000] {
            let bytes = 256 << 20;
            let records = Geometry::records_within(payload, bytes);
            let g = Geometry::new(payload, records).unwrap();
            assert!(g.segment_bytes() <= bytes);
            let more = Geometry::new(payload, records + 2).unwrap();
            assert!(more.segment_bytes() > bytes);
        }
        assert_eq!(Geometry::records_within(2 << 20, 0), 1);
    }

    #[test]
    fn impossible_geometries() {
        assert_eq!(Geometry::new(0, 1), None);
        assert_eq!(Geometry::new(1, 0), None);
        assert_eq!(Geometry::new(MAX_SLOT, 1), None);
        assert_eq!(Geometry::new(usize::MAX, 1), None);
    }
}
