//! `kvtier gpu explain`: how a transfer would be copied, and why. Needs a calibration, no GPU.

use std::fmt;

use kv_core::job::Urgency;
use kv_cuda::Direction;
use kv_cuda::cuda::{Calibration, Candidate, Chooser, Explanation, Method, Shape};
use serde::Serialize;

use crate::ByteSize;

/// The transfer in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Transfer {
    /// Bytes of a block.
    pub block: ByteSize,
    /// Bytes of its contiguous pieces in device memory.
    pub fragment: ByteSize,
    /// Number of blocks.
    pub blocks: usize,
}

/// Fragments do not fill blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fragments of {} do not fill blocks of {}", .0.fragment, .0.block)]
pub struct BadTransfer(Transfer);

impl Transfer {
    /// # Errors
    /// [`BadTransfer`].
    pub fn new(block: ByteSize, fragment: ByteSize, blocks: usize) -> Result<Self, BadTransfer> {
        let transfer = Self { block, fragment, blocks };
        let fits = block.0.checked_rem(fragment.0) == Some(0) && block.0 > 0 && blocks > 0;
        let countable = block.0.checked_mul(blocks as u64).is_some_and(|bytes| bytes < 1 << 60);
        if fits && countable { Ok(transfer) } else { Err(BadTransfer(transfer)) }
    }
}

/// A choice in words and in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    schema: &'static str,
    /// Where the calibration comes from.
    device: String,
    direction: &'static str,
    urgency: &'static str,
    transfer: Transfer,
    chosen: String,
    candidates: Vec<CandidateRecord>,
    #[serde(skip)]
    text: Explanation,
}

#[derive(Clone, Debug, Serialize)]
struct CandidateRecord {
    method: String,
    predicted_seconds: f64,
    correction: f64,
    price_seconds: f64,
    gigabytes_per_second: f64,
}

/// Name of a direction in results.
#[must_use]
pub const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::ToDevice => "h2d",
        Direction::ToHost => "d2h",
    }
}

impl Explained {
    /// What a device with this calibration, of which nothing else is known yet, would choose.
    #[must_use]
    pub fn new(
        device: String,
        calibration: Calibration,
        direction: Direction,
        urgency: Urgency,
        transfer: Transfer,
        forced: Option<Method>,
    ) -> Self {
        let (block, fragment) = (transfer.block.0 as usize, transfer.fragment.0 as usize);
        let shape = Shape::well_laid(direction, urgency, transfer.blocks, block, fragment);
        let text = Chooser::new(calibration, forced).explain(&shape);
        let record = |candidate: &Candidate| CandidateRecord {
            method: candidate.method.to_string(),
            predicted_seconds: candidate.predicted,
            correction: candidate.correction,
            price_seconds: candidate.price,
            gigabytes_per_second: shape.bytes() as f64 / 1e9 / (candidate.predicted * candidate.correction),
        };
        Self {
            schema: "kvtier.gpu.explain/1",
            device,
            direction: direction_name(direction),
            urgency: match urgency {
                Urgency::Demand => "demand",
                Urgency::WriteBack => "write-back",
            },
            transfer,
            chosen: text.chosen.to_string(),
            candidates: text.candidates.iter().map(record).collect(),
            text,
        }
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, as measured when it was opened\n\n{}", self.device, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_must_fill_blocks() {
        let sizes = |block, fragment, blocks| Transfer::new(ByteSize(block), ByteSize(fragment), blocks);
        assert!(sizes(64, 16, 3).is_ok() && sizes(64, 64, 1).is_ok());
        for bad in [(64, 0, 1), (64, 5, 1), (0, 8, 1), (64, 8, 0), (1 << 50, 8, 1 << 20)] {
            assert!(sizes(bad.0, bad.1, bad.2).is_err(), "{bad:?}");
        }
    }
}
