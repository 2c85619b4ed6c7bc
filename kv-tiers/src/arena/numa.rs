//! NUMA placement, by system call: nothing is linked, and on one node nothing is done.

use std::io;
use std::path::Path;

use serde::Serialize;

/// Where the arena's pages should lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Placement {
    /// Spread evenly over the nodes: right when GPUs or disks hang off several of them.
    Interleave,
    /// All on one node: right when the GPU and the disk hang off that node.
    Node(u32),
}

/// Online nodes; `[0]` where the kernel does not say.
pub(super) fn online_nodes() -> Vec<u32> {
    let list = std::fs::read_to_string(Path::new("/sys/devices/system/node/online")).unwrap_or_default();
    let nodes = parse_list(&list);
    if nodes.is_empty() { vec![0] } else { nodes }
}

/// The kernel's list format: `0-1,4`. Nonsense gives no nodes.
fn parse_list(list: &str) -> Vec<u32> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<u32>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (last < MAX_NODES).then_some(first..=last)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// Nodes that the mask below can name; Linux is built for at most 1024.
const MAX_NODES: u32 = 1024;

/// Tells the kernel where the pages of a mapping, not touched yet, should come from.
pub(super) fn place(base: *mut u8, len: usize, nodes: &[u32], placement: Placement) -> io::Result<()> {
    if nodes.len() < 2 {
        return Ok(());
    }
    let (mode, wanted) = match placement {
        Placement::Interleave => (libc::MPOL_INTERLEAVE, nodes.to_vec()),
        Placement::Node(node) if nodes.contains(&node) => (libc::MPOL_BIND, vec![node]),
        Placement::Node(_) => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    let mut mask = [0u64; MAX_NODES as usize / 64];
    for node in wanted.into_iter().filter(|&n| n < MAX_NODES) {
        mask[node as usize / 64] |= 1 << (node % 64);
    }
    // SAFETY: the range is a mapping of ours, and the kernel only reads the mask, which is MAX_NODES bits long
    // (it wants the count plus one).
    let rc = unsafe { libc::syscall(libc::SYS_mbind, base, len, mode, mask.as_ptr(), MAX_NODES + 1, 0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_lists() {
        assert_eq!(parse_list("0\n"), [0]);
        assert_eq!(parse_list("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert!(parse_list("").is_empty());
        assert!(parse_list("x-y,3-,99999999").is_empty());
        assert!(!online_nodes().is_empty());
    }
}
