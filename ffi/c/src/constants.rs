//! Numbers of the ABI that are not an enum's.

/// The operation is under way.
pub const KEY_PENDING: u8 = 0;
/// Loaded, stored or pinned.
pub const KEY_DONE: u8 = 1;
/// A put, and the block was there already. Nothing was copied: a key names its bytes.
pub const KEY_PRESENT: u8 = 2;
/// Not in the store. For a put of a chain: a block before it is missing, so that this one could not be found.
pub const KEY_MISSING: u8 = 3;
/// Its bytes could not be read, or were not those that were stored. Treat it as missing.
pub const KEY_FAILED: u8 = 4;
/// No room: everything is pinned or on its way.
pub const KEY_NO_ROOM: u8 = 5;
/// Its time was over.
pub const KEY_TIMED_OUT: u8 = 6;
/// Cancelled before its turn.
pub const KEY_CANCELLED: u8 = 7;

/// `kvtier_store_exists`: nowhere.
pub const AT_NONE: u8 = 0;
/// `kvtier_store_exists`: in host memory.
pub const AT_HOST: u8 = 1;
/// `kvtier_store_exists`: on NVMe.
pub const AT_NVME: u8 = 2;

/// `kvtier_store_remove`: it was not there.
pub const REMOVE_ABSENT: u8 = 0;
/// `kvtier_store_remove`: it can no longer be found.
pub const REMOVE_DONE: u8 = 1;
/// `kvtier_store_remove`: somebody reads, writes or pins it; it stays.
pub const REMOVE_IN_USE: u8 = 2;

/// The keys are one chain, first block first: eviction takes its end first, and a put stores a block only if all before
/// it are stored; a load or a pin ends at the first block that is not there. In a put, keys without runs stand for blocks that should be there already. Without this flag each key
/// stands by itself.
pub const BATCH_CHAIN: u32 = 1;

/// What survives the process is what write-behind has written by then: a cache.
pub const DURABILITY_WRITE_BEHIND: u32 = 0;
/// Closing writes the rest to NVMe first.
pub const DURABILITY_AT_CLOSE: u32 = 1;

/// bfloat16.
pub const DTYPE_BF16: u32 = 1;
/// IEEE 754 binary16.
pub const DTYPE_F16: u32 = 2;
/// 8-bit float, 4 exponent bits.
pub const DTYPE_FP8_E4M3: u32 = 3;
/// 8-bit float, 5 exponent bits.
pub const DTYPE_FP8_E5M2: u32 = 4;
/// IEEE 754 binary32.
pub const DTYPE_F32: u32 = 5;

/// Token, head, dim.
pub const ORDER_NHD: u32 = 1;
/// Head, token, dim.
pub const ORDER_HND: u32 = 2;

/// A stride: each index of this axis has a buffer of its own.
pub const OWN_BUFFER: u64 = 0xFFFF_FFFF_FFFF_FFFF;
/// The pool is in ordinary memory of this process.
pub const DEVICE_HOST: i32 = -1;

/// No messages.
pub const LOG_OFF: u32 = 0;
/// Something was lost.
pub const LOG_ERROR: u32 = 1;
/// Something is not as it should be.
pub const LOG_WARN: u32 = 2;
/// What was chosen, and why.
pub const LOG_INFO: u32 = 3;
/// For developers.
pub const LOG_DEBUG: u32 = 4;
/// Everything.
pub const LOG_TRACE: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use kvtier_ffi::KeyStatus;
    use kvtier_ffi::store::{Presence, Removal};

    #[test]
    fn the_numbers_are_those_of_the_enums() {
        let pairs = [
            (KEY_PENDING, KeyStatus::Pending),
            (KEY_DONE, KeyStatus::Done),
            (KEY_PRESENT, KeyStatus::Present),
            (KEY_MISSING, KeyStatus::Missing),
            (KEY_FAILED, KeyStatus::Failed),
            (KEY_NO_ROOM, KeyStatus::NoRoom),
            (KEY_TIMED_OUT, KeyStatus::TimedOut),
            (KEY_CANCELLED, KeyStatus::Cancelled),
        ];
        assert!(pairs.iter().all(|(number, status)| *number == *status as u8));
        let removals = [Removal::Absent as u8, Removal::Removed as u8, Removal::InUse as u8];
        assert_eq!(removals, [REMOVE_ABSENT, REMOVE_DONE, REMOVE_IN_USE]);
        let tiers = [Presence::Absent as u8, Presence::Host as u8, Presence::Nvme as u8];
        assert_eq!(tiers, [AT_NONE, AT_HOST, AT_NVME]);
    }
}
