//! How large a log is, and what to do with one that is there.

use std::path::Path;

use super::error::NvmeError;
use super::format::Superblock;
use super::geometry::Geometry;
use super::inspect::open_to_look;

/// What to do with what is in the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenMode {
    /// Serve what is whole, drop and report the rest.
    #[default]
    Recover,
    /// Serve only if nothing is damaged. A crash leaves torn records in a segment that was being written; that
    /// counts as damage too.
    Strict,
    /// Start empty. Nothing of the old log can come back.
    Fresh,
}

/// Sizes of a log, and how to open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Number of segments. May change from one opening to the next: those that are too many are dropped, with what is
    /// in them.
    pub segments: u32,
    /// Records of a segment. Fixed for the life of a log.
    pub records_per_segment: u32,
    /// What to do with what is there.
    pub mode: OpenMode,
}

impl LogConfig {
    /// Usual size of a segment: large enough that opening and sealing one costs nothing, small enough that
    /// reclaiming one does not stall.
    pub const SEGMENT_BYTES: u64 = 256 << 20;

    /// Most segments of a log that [`LogConfig::sized`] lays out: each is an open file, and processes often
    /// may have 1024.
    pub const MOST_SEGMENTS: u64 = 512;

    /// Fewest segments, so that reclaiming one leaves most of the log alone.
    pub const FEWEST_SEGMENTS: u64 = 8;

    /// Lays out `capacity` bytes of disk: segments of 256 MiB, or such that there are 8 to 512. A capacity below one
    /// record gives one segment of one record.
    ///
    /// ```
    /// use kv_tiers::nvme::LogConfig;
    /// let log = LogConfig::sized(100 << 30, 2 << 20);
    /// assert_eq!((log.segments, log.records_per_segment), (402, 127));
    /// ```
    #[must_use]
    pub fn sized(capacity: u64, payload_bytes: usize) -> Self {
        let most = Self::MOST_SEGMENTS;
        let segment_bytes = Self::SEGMENT_BYTES.clamp(capacity / most, capacity / Self::FEWEST_SEGMENTS);
        let records_per_segment = Geometry::records_within(payload_bytes, segment_bytes);
        let segment_bytes = Geometry::new(payload_bytes, records_per_segment)
            .map_or(Self::SEGMENT_BYTES, Geometry::segment_bytes);
        let segments = (capacity / segment_bytes).clamp(1, most) as u32;
        Self { segments, records_per_segment, mode: OpenMode::Recover }
    }

    /// [`LogConfig::sized`] for a directory that may have a log already: it keeps its segments, of which there are more
    /// or fewer.
    ///
    /// # Errors
    /// [`NvmeError::Capacity`] if that would be too many or too few of them, and whatever keeps the directory from being
    /// read.
    pub fn sized_in(dir: &Path, capacity: u64, payload_bytes: usize) -> Result<Self, NvmeError> {
        let new = Self::sized(capacity, payload_bytes);
        let Some(found) = found_in(dir)?.filter(|found| found.payload_bytes == payload_bytes) else {
            return Ok(new);
        };
        if found.records_per_segment == new.records_per_segment {
            return Ok(new);
        }
        let (fewest, most) = (Self::FEWEST_SEGMENTS, most_segments());
        let segments = capacity / found.segment_bytes();
        if !(fewest..=most).contains(&segments) {
            return Err(NvmeError::Capacity {
                dir: dir.to_path_buf(),
                fewest: fewest * found.segment_bytes(),
                most: most * found.segment_bytes(),
                wanted: capacity,
            });
        }
        Ok(Self { segments: segments as u32, records_per_segment: found.records_per_segment, ..new })
    }
}

/// How the log in a directory is laid out, if there is one that can be read: opening it says why it cannot.
fn found_in(dir: &Path) -> Result<Option<Geometry>, NvmeError> {
    let (_, bytes) = open_to_look(dir)?;
    Ok(bytes.as_deref().and_then(Superblock::decode).map(|superblock| superblock.geometry))
}

/// Half of the files that this process may open, for a log that has grown.
fn most_segments() -> u64 {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    (files.unwrap_or(u64::MAX) / 2).clamp(LogConfig::MOST_SEGMENTS, 1 << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sized_log_fits_its_capacity() {
        for capacity in [1 << 20, 100 << 20, 1 << 30, 100 << 30, 8 << 40] {
            for payload_bytes in [4096, 5000, 2 << 20, 64 << 20] {
                let log = LogConfig::sized(capacity, payload_bytes);
                let geometry = Geometry::new(payload_bytes, log.records_per_segment).unwrap();
                let bytes = u64::from(log.segments) * geometry.segment_bytes();
                let smallest = geometry.segment_bytes();
                assert!(bytes <= capacity || log.segments == 1, "{capacity} {payload_bytes} {log:?}");
                assert!(bytes + smallest > capacity || u64::from(log.segments) == LogConfig::MOST_SEGMENTS);
            }
        }
        assert!(
            LogConfig::sized(0, 4096).segments == 1 && LogConfig::sized(u64::MAX, usize::MAX).segments > 0
        );
    }
}
