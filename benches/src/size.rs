//! Sizes in bytes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes: `4096`, `512KiB`, `2MiB`, `1GiB`. Serialised as a plain number.
///
/// ```
/// use kvtier_benches::ByteSize;
///
/// let size: ByteSize = "512KiB".parse()?;
/// assert_eq!(size, ByteSize(512 << 10));
/// assert_eq!(ByteSize(6 << 20).to_string(), "6 MiB");
/// assert_eq!(ByteSize(1500).to_string(), "1500 B");
/// # Ok::<(), kvtier_benches::BadSize>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// Text that is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a size: write a whole number with KiB, MiB, GiB or nothing for bytes, such as 512KiB")]
pub struct BadSize;

/// Powers of 1024 only: with KB or K nobody knows which is meant.
const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl FromStr for ByteSize {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let unit = UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
        let (digits, shift) = unit.unwrap_or((text, 0));
        let number: u64 = digits.trim_end().parse().map_err(|_| BadSize)?;
        number.checked_mul(1 << shift).map(Self).ok_or(BadSize)
    }
}

/// With the largest unit that divides it.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, shift)| self.0 > 0 && self.0.is_multiple_of(1 << shift)) {
            Some((unit, shift)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        for bytes in [0, 1, 4095, 4096, 512 << 10, 3 << 20, 2 << 30, u64::MAX] {
            assert_eq!(ByteSize(bytes).to_string().trim_end_matches(" B").parse(), Ok(ByteSize(bytes)));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "KiB", "1.5MiB", "-1", "4K", "4kib", "18446744073709551616", "17179869184GiB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(BadSize), "{text}");
        }
    }
}
