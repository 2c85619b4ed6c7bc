//! How many transfers the device wants in flight.
//!
//! More in flight is more bandwidth up to a point, and only latency after it. The probe reads records that
//! exist, at growing depths, and takes the smallest depth that gives nearly the best rate.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::page::PageBuf;
use super::recover::Recovery;
use super::segments::Segments;

/// A depth and the reason for it.
pub(crate) struct Depth {
    pub(crate) depth: u32,
    pub(crate) why: String,
}

const CANDIDATES: [u32; 5] = [1, 4, 8, 16, 32];
/// For each candidate; all of them stay within 200 ms.
const TIME: Duration = Duration::from_millis(36);
/// Depth without a measurement: near the knee of common NVMe drives for transfers of a megabyte.
const USUAL: u32 = 16;
/// Of the best rate, for a smaller depth to be preferred.
const NEARLY: f64 = 0.95;
/// Read at once, at most, so that buffers are cheap.
const LENGTH: usize = 512 << 10;
/// Fewer records would be served by the drive's own cache.
const ENOUGH: usize = 64;

/// Measures a log that holds records; a young one gets the usual depth.
pub(crate) fn queue_depth(segments: &Segments, recovery: &Recovery) -> Depth {
    if recovery.records.len() < ENOUGH {
        return Depth { depth: USUAL, why: "usual, too few records to measure".into() };
    }
    let rates = CANDIDATES.map(|depth| rate(segments, recovery, depth));
    let best = rates.iter().copied().fold(0.0, f64::max);
    let chosen = CANDIDATES.iter().zip(rates).find(|(_, rate)| *rate >= NEARLY * best);
    match chosen {
        Some((&depth, rate)) if best > 0.0 => Depth {
            depth,
            why: format!("read {:.2} GB/s where the best of 1 to 32 read {:.2}", rate / 1e9, best / 1e9),
        },
        _ => Depth { depth: USUAL, why: "usual, the probe could not read".into() },
    }
}

/// Bytes per second at one depth; 0 if reading fails.
fn rate(segments: &Segments, recovery: &Recovery, depth: u32) -> f64 {
    let (next, bytes, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let started = Instant::now();
    let worker = || {
        let mut buffer = PageBuf::new(LENGTH.min(segments.geometry.stride()));
        while started.elapsed() < TIME && !failed.load(Ordering::Relaxed) {
            // A stride that is coprime to most counts: neighbours would be merged or read ahead.
            let n = next.fetch_add(7919, Ordering::Relaxed) + u64::from(depth);
            let Some(record) = recovery.records.get(n as usize % recovery.records.len()) else { return };
            let offset = segments.geometry.record(record.place.index);
            match segments.store.read_at(record.place.segment, offset, buffer.bytes_mut()) {
                Ok(n) => bytes.fetch_add(n as u64, Ordering::Relaxed),
                Err(_) => return failed.store(true, Ordering::Relaxed),
            };
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..depth {
            // Fewer threads measure a smaller depth, which is then all that is known.
            drop(std::thread::Builder::new().spawn_scoped(scope, worker));
        }
        worker();
    });
    if failed.into_inner() { 0.0 } else { bytes.into_inner() as f64 / started.elapsed().as_secs_f64() }
}
