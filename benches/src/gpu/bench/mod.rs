//! `kvtier gpu bench`: rates and latencies on this GPU, each beside its limit, in one run.
//!
//! ```text
//! link    host to device, device to host, both ways: every method, by fragment, end to end
//! hbm     within the GPU: gathers, permutes, resharding, digests, zeroing
//! load    a demand load alone and behind write-backs; a load by layers; opening a device
//! gemm    what copies cost a matrix product beside them
//! peers   the copies of other projects, as far as they are installed
//! marks   what kvtier wants to reach, and whether it does
//! ```
//!
//! Contenders take turns; a share is that of the limit in the same round.

mod figure;
mod gemm;
mod hbm;
mod link;
mod load;
mod marks;
mod peers;
mod report;
mod scene;

pub use figure::Figure;
pub use marks::Mark;
pub use peers::Skipped;
pub use report::BenchReport;

use super::GpuError;
use super::info::{DriverFacts, Gpu};
use super::rig::Rig;
use crate::ByteSize;

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bench {
    /// Number of the GPU in this process.
    pub ordinal: u32,
    /// Rounds; the figure is their median.
    pub rounds: usize,
    /// Bytes of a copy.
    pub bytes: ByteSize,
    /// Sizes of the contiguous pieces in device memory.
    pub fragments: Vec<ByteSize>,
    /// Rows and columns of the matrices, a multiple of 128.
    pub matrix: u32,
    /// Whether copies of other projects take part.
    pub peers: bool,
}

impl Bench {
    /// Measures everything. `progress` is told what comes next.
    ///
    /// # Errors
    /// [`GpuError`]. A figure is never left out in silence: what fails, fails all.
    pub fn run(&self, progress: &mut dyn FnMut(&str)) -> Result<BenchReport, GpuError> {
        let rig = Rig::open(self.ordinal)?;
        let mut figures = Vec::new();
        for &fragment in &self.fragments {
            progress(&format!("copies in fragments of {fragment}"));
            figures.extend(link::measure(&rig, self, fragment)?);
        }
        progress("within the GPU");
        figures.extend(hbm::measure(&rig, self)?);
        progress("demand loads, loads by layers, opening");
        figures.extend(load::measure(&rig, self)?);
        progress("a matrix product beside copies");
        figures.extend(gemm::measure(&rig, self)?);
        let facts = (DriverFacts::of(rig.context.driver()), Gpu::of(rig.gpu()));
        drop(rig);
        let mut skipped = Vec::new();
        if self.peers {
            progress("copies of other projects");
            let found = peers::measure(self);
            figures.extend(found.figures);
            skipped = found.skipped;
        }
        Ok(BenchReport::new(self, facts, figures, skipped))
    }
}
