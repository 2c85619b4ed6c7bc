//! `kvtier gpu check`: whether every kernel and every copy path does what it should, on this GPU.
//!
//! ```text
//! copies    blocks in and out by every method, on drawn layouts and on those of runtimes
//! permutes  between orders of a block, and between tensor-parallel shares
//! evidence  zeroing, digests, single blocks, against the processor
//! order     a copy waits for the runtime's stream; layers are there when they are said to be; two urgencies
//! refusals  what cannot be is refused, and harms nothing after it
//! leaks     what was opened and closed leaves no device memory behind
//! ```
//!
//! Before each case all memory holds random bytes; after it every byte of it is compared with an image that
//! the processor has kept: blocks, padding between them and guard bands around them.

mod copies;
mod evidence;
mod leaks;
mod order;
mod permutes;
mod refusals;
mod report;

pub use super::shapes::Scale;
pub use report::{CheckReport, Failure, Row};

use super::GpuError;
use super::info::{DriverFacts, Gpu};
use super::rig::Rig;
use crate::SplitMix64;

/// What is to be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Number of the GPU in this process.
    pub ordinal: u32,
    /// Seed of the first drawn case. The next case has the next seed.
    pub seed: u64,
    /// Drawn cases of each kind.
    pub cases: u32,
    /// How much a case has.
    pub scale: Scale,
    /// Only what borrows memory that is not kvtier's.
    pub only_borrowed: bool,
}

/// What a case did, for the table.
struct Done {
    what: String,
    bytes: u64,
}

/// One case: a kind, a name and a seed.
struct Case<'a> {
    part: &'static str,
    name: String,
    seed: u64,
    run: Box<Run<'a>>,
}

/// Plays a case through with random numbers of its own.
type Run<'a> = dyn Fn(&Rig, &mut SplitMix64) -> Result<Done, GpuError> + 'a;

/// So many failures are enough.
const ENOUGH: usize = 10;

impl Check {
    /// Runs all cases. `progress` is told how many are over, and how many there are.
    ///
    /// # Errors
    /// [`GpuError`] if there is nothing to be checked: no driver, no GPU. What a check finds is in the
    /// report.
    pub fn run(&self, progress: &mut dyn FnMut(usize, usize)) -> Result<CheckReport, GpuError> {
        let rig = Rig::open(self.ordinal)?;
        let facts = (DriverFacts::of(rig.context.driver()), Gpu::of(rig.gpu()));
        let mut report = CheckReport::new(*self, facts);
        let cases = self.cases(&rig)?;
        for (over, case) in cases.iter().enumerate() {
            progress(over, cases.len());
            match (case.run)(&rig, &mut SplitMix64::new(case.seed)) {
                Ok(done) => report.passed(case.part, done.what, done.bytes),
                Err(error) => {
                    let fatal = error.is_fatal();
                    report.failed(case.part, &case.name, case.seed, &error);
                    if fatal || report.failures().len() >= ENOUGH {
                        report.stopped(cases.len() - over - 1);
                        break;
                    }
                }
            }
        }
        Ok(report)
    }

    fn cases(&self, rig: &Rig) -> Result<Vec<Case<'_>>, GpuError> {
        let mut cases = copies::cases(self, rig)?;
        if !self.only_borrowed {
            cases.extend(permutes::cases(self));
            cases.extend(evidence::cases(self));
            cases.extend(order::cases(self, rig));
            cases.extend(refusals::cases(self));
            // Last: what the others have left behind would show here.
            cases.extend(leaks::cases(self));
        }
        Ok(cases)
    }

    /// Seeds of the drawn cases.
    fn seeds(&self) -> impl Iterator<Item = u64> {
        let first = self.seed;
        (0..u64::from(self.cases)).map(move |at| first.wrapping_add(at))
    }
}
