//! What is done to every block, checked.

use std::ops::Range;

use super::InvalidDivisor;
use super::args::{KV_LEVELS, kv_divisor, kv_nest};

/// Loops around a contiguous run: the nest of `kv_kernels.h` before it is turned into a kernel's constants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loops {
    /// Indices of each loop, outermost first. Loops that are not used have one, and go first: the kernels
    /// are faster when the outer two have one.
    pub counts: [u32; KV_LEVELS as usize],
    /// Bytes of a run.
    pub run_bytes: usize,
    /// Bytes that are moved at a time: 1, 2, 4, 8 or 16.
    pub vector_bytes: u32,
    /// Runs that are visited of each block, in the order of the loops.
    pub runs: Range<u32>,
}

/// Why loops cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLoops {
    /// Kernels have vectors of 1, 2, 4, 8 and 16 bytes.
    #[error("vectors of {0} bytes")]
    Vector(u32),
    /// A run is a whole number of vectors, and at least one.
    #[error("a run of {run_bytes} bytes is not a number of vectors of {vector_bytes}")]
    Run {
        /// Bytes of a run.
        run_bytes: usize,
        /// Bytes of a vector.
        vector_bytes: u32,
    },
    /// The loops do not have these runs, or there is none.
    #[error("runs {first}..{end} of {of}")]
    Runs {
        /// First run named.
        first: u32,
        /// The one after the last.
        end: u32,
        /// Runs that the loops have.
        of: u64,
    },
    /// Too many vectors for 32-bit arithmetic.
    #[error(transparent)]
    TooMany(#[from] InvalidDivisor),
}

impl Loops {
    /// All runs that the loops have.
    ///
    /// # Errors
    /// More runs than 32 bits count.
    pub fn whole(
        counts: [u32; KV_LEVELS as usize],
        run_bytes: usize,
        vector_bytes: u32,
    ) -> Result<Self, InvalidLoops> {
        let of = runs_of(counts);
        let end = u32::try_from(of).map_err(|_| InvalidLoops::Runs { first: 0, end: u32::MAX, of })?;
        Ok(Self { counts, run_bytes, vector_bytes, runs: 0..end })
    }

    /// What a kernel is given.
    ///
    /// ```
    /// use kv_cuda::kernels::Loops;
    /// // 32 layers, K and V of each, and a run of 64 KiB.
    /// let nest = Loops::whole([1, 1, 32, 2], 64 << 10, 16)?.nest()?;
    /// assert_eq!((nest.run.divisor, nest.block.divisor), (4096, 64 * 4096));
    /// # Ok::<(), kv_cuda::kernels::InvalidLoops>(())
    /// ```
    ///
    /// # Errors
    /// What no kernel can run, see [`InvalidLoops`].
    pub fn nest(&self) -> Result<kv_nest, InvalidLoops> {
        let Self { counts, run_bytes, vector_bytes, ref runs } = *self;
        if !matches!(vector_bytes, 1 | 2 | 4 | 8 | 16) {
            return Err(InvalidLoops::Vector(vector_bytes));
        }
        if run_bytes == 0 || !run_bytes.is_multiple_of(vector_bytes as usize) {
            return Err(InvalidLoops::Run { run_bytes, vector_bytes });
        }
        let of = runs_of(counts);
        if runs.is_empty() || u64::from(runs.end) > of {
            return Err(InvalidLoops::Runs { first: runs.start, end: runs.end, of });
        }
        let saturate = |vectors: u64| u32::try_from(vectors).unwrap_or(u32::MAX);
        let run = (run_bytes / vector_bytes as usize) as u64;
        let block = run.saturating_mul(u64::from(runs.end - runs.start));
        let [outer, second, third, inner] = counts.map(kv_divisor::new);
        Ok(kv_nest {
            count: [outer?, second?, third?, inner?],
            run: kv_divisor::new(saturate(run))?,
            block: kv_divisor::new(saturate(block))?,
            first_run: runs.start,
            vector_bytes,
        })
    }
}

fn runs_of(counts: [u32; KV_LEVELS as usize]) -> u64 {
    counts.into_iter().map(u64::from).fold(1, u64::saturating_mul)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loops() -> Loops {
        Loops::whole([1, 2, 3, 4], 96, 16).unwrap()
    }

    #[test]
    fn constants_are_in_vectors() {
        let nest = Loops { runs: 5..9, ..loops() }.nest().unwrap();
        assert_eq!(nest.count.map(|count| count.divisor), [1, 2, 3, 4]);
        assert_eq!((nest.run.divisor, nest.block.divisor, nest.first_run), (6, 24, 5));
        assert_eq!(nest.vector_bytes, 16);
    }

    #[test]
    fn what_no_kernel_can_run_is_refused() {
        let error = |loops: Loops| loops.nest().unwrap_err();
        assert_eq!(error(Loops { vector_bytes: 3, ..loops() }), InvalidLoops::Vector(3));
        assert_eq!(
            error(Loops { run_bytes: 0, ..loops() }),
            InvalidLoops::Run { run_bytes: 0, vector_bytes: 16 }
        );
        assert_eq!(
            error(Loops { run_bytes: 8, ..loops() }),
            InvalidLoops::Run { run_bytes: 8, vector_bytes: 16 }
        );
        assert_eq!(error(Loops { runs: 3..3, ..loops() }), InvalidLoops::Runs { first: 3, end: 3, of: 24 });
        assert_eq!(error(Loops { runs: 3..25, ..loops() }), InvalidLoops::Runs { first: 3, end: 25, of: 24 });
        let huge = Loops { run_bytes: 16 << 31, ..loops() };
        assert_eq!(error(huge), InvalidLoops::TooMany(InvalidDivisor(u32::MAX)));
        let none = Loops { counts: [1, 0, 3, 4], ..loops() };
        assert!(matches!(error(none), InvalidLoops::Runs { of: 0, .. }));
    }
}
