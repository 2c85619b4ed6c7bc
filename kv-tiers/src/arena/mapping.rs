//! One anonymous mapping: huge pages if there are any, placed, touched and locked.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::numa::{self, Placement};
use super::{ArenaReport, PAGE, Pages};

/// 2 MiB: the huge page of x86-64 and of arm64 with 4 KiB pages.
pub(super) const HUGE_PAGE: usize = 2 << 20;

/// Memory that is ours until drop. Zeroed, and never moved.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; access to its bytes is governed by `Arena`.
unsafe impl Send for Mapping {}
// SAFETY: as above; the fields never change.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, a multiple of [`HUGE_PAGE`].
    pub(super) fn new(len: usize, placement: Placement) -> io::Result<(Self, ArenaReport)> {
        let mut warnings = Vec::new();
        let (mapping, pages) = match Self::map(len, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB) {
            Ok(mapping) => (mapping, Pages::Huge2M),
            Err(_) => {
                let mapping = Self::map(len, 0)?;
                let transparent = mapping.advise(libc::MADV_HUGEPAGE).is_ok();
                (mapping, if transparent { Pages::Transparent } else { Pages::Small })
            }
        };
        if pages == Pages::Small {
            warnings.push(format!(
                "the arena lies in 4 KiB pages; reserve huge pages: echo {} > /proc/sys/vm/nr_hugepages",
                len / HUGE_PAGE
            ));
        }
        let nodes = numa::online_nodes();
        if let Err(e) = numa::place(mapping.base, len, &nodes, placement) {
            warnings.push(format!(
                "{placement:?} on NUMA nodes {nodes:?} refused: {e}; pages lie where they fell"
            ));
        }
        mapping.touch()?;
        let locked = pages == Pages::Huge2M || mapping.lock().is_ok();
        if !locked {
            warnings.push(format!(
                "the arena's {len} bytes could not be locked and may be swapped out; raise the limit: \
                 ulimit -l {}, or LimitMEMLOCK=infinity in the unit, or CAP_IPC_LOCK",
                len >> 10
            ));
        }
        let report = ArenaReport { bytes: len, pages, locked, numa_nodes: nodes.len(), warnings };
        Ok((mapping, report))
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn map(len: usize, flags: i32) -> io::Result<Self> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nobody's memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.cast(), len })
    }

    fn advise(&self, advice: i32) -> io::Result<()> {
        advise(self.base, self.len, advice)
    }

    /// Makes every page present, in parallel, so that no I/O pays for a page fault.
    fn touch(&self) -> io::Result<()> {
        const PIECE: usize = 64 << 20;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(16));
        let next = AtomicUsize::new(0);
        let worker = || -> io::Result<()> {
            loop {
                let start = next.fetch_add(PIECE, Ordering::Relaxed);
                if start >= self.len {
                    return Ok(());
                }
                let (piece, len) = (self.base.wrapping_add(start), PIECE.min(self.len - start));
                match advise(piece, len, libc::MADV_POPULATE_WRITE) {
                    // Before Linux 5.14.
                    Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                        for offset in (0..len).step_by(PAGE) {
                            // SAFETY: inside the mapping, which nobody else knows yet.
                            unsafe { piece.add(offset).write_volatile(0) };
                        }
                    }
                    other => other?,
                }
            }
        };
        std::thread::scope(|scope| {
            // A thread that cannot be had is no loss: this one does the work too.
            let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, worker).ok();
            let others: Vec<_> = (1..threads).filter_map(spawn).collect();
            let mut result = worker();
            for other in others {
                result = result
                    .and(other.join().unwrap_or_else(|_| Err(io::Error::other("touching thread died"))));
            }
            result
        })
    }

    fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is our mapping.
        let rc = unsafe { libc::mlock(self.base.cast(), self.len) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn advise(start: *mut u8, len: usize, advice: i32) -> io::Result<()> {
    // SAFETY: called only for ranges of a mapping of ours, with advice that keeps its contents.
    let rc = unsafe { libc::madvise(start.cast(), len, advice) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our mapping, unmapped once. Everybody who has I/O in flight holds the arena by `Arc`.
        let rc = unsafe { libc::munmap(self.base.cast(), self.len) };
        debug_assert_eq!(rc, 0, "munmap of our own mapping");
    }
}
