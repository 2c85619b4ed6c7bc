//! What blocks are called in Mooncake, whose names are flat.

use std::ffi::CString;

use kv_core::key::NamespaceId;
use kv_core::units::Epoch;

use crate::remote::RemoteKey;
use crate::remote::keys::{epoch_name, hex};

/// `kvtier:1:<namespace>:<epoch>:<fingerprint>:<key>`.
pub(super) fn name(key: &RemoteKey) -> CString {
    let RemoteKey { namespace, epoch, fingerprint, .. } = key;
    let owner = format!("{}:{}:{}", hex(&namespace.0), epoch_name(*epoch), hex(&fingerprint.0));
    text(format!("kvtier:1:{owner}:{}", key.leaf()))
}

/// ECMAScript pattern of the names of a namespace in the epochs up to one.
pub(super) fn pattern(namespace: NamespaceId, up_to: Epoch) -> CString {
    text(format!("^kvtier:1:{}:(?:{}):", hex(&namespace.0), epochs(up_to)))
}

/// Names are hexadecimal of fixed width. A smaller one has a smaller digit somewhere, the same before it, and
/// anything behind it.
fn epochs(up_to: Epoch) -> String {
    let name = epoch_name(up_to);
    let smaller = |(at, digit): (usize, char)| {
        let below = char::from_digit(digit.to_digit(16)?.checked_sub(1)?, 16)?;
        let class = if below.is_ascii_digit() { format!("[0-{below}]") } else { format!("[0-9a-{below}]") };
        let (before, rest) = (name.get(..at)?, name.len() - at - 1);
        Some(format!("{before}{class}[0-9a-f]{{{rest}}}"))
    };
    name.char_indices().filter_map(smaller).chain([name.clone()]).collect::<Vec<_>>().join("|")
}

/// Of characters that are all ours: none is zero.
fn text(text: String) -> CString {
    CString::new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stores' tests match it with the regular expressions that the master uses.
    #[test]
    fn a_pattern_spells_out_the_smaller_epochs() {
        assert_eq!(epochs(Epoch(0)), "0000000000000000");
        assert_eq!(
            epochs(Epoch(0x1b)),
            "00000000000000[0-0][0-9a-f]{1}|000000000000001[0-9a-a][0-9a-f]{0}|000000000000001b"
        );
        assert_eq!(epochs(Epoch(u64::MAX)).split('|').count(), 17);
    }
}
