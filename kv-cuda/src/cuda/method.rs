//! The ways to copy a set of blocks.

use std::fmt;

use crate::device::Direction;

/// A way to copy blocks between HBM and host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// The copy engine, one driver call per fragment.
    EngineLoop,
    /// The copy engine, many fragments per driver call.
    EngineBatch,
    /// A kernel that reads one side and writes the other, through registers.
    Kernel {
        /// Blocks of threads it may occupy.
        ctas: u32,
    },
    /// The same with the bulk copy unit of compute capability 9.0 and later.
    Bulk {
        /// Blocks of threads it may occupy.
        ctas: u32,
    },
    /// Whole blocks by the copy engine to or from a staging buffer in HBM, and a kernel between that and
    /// the pool, one piece behind the other.
    Staged {
        /// Blocks of threads that the kernel may occupy.
        ctas: u32,
    },
}

impl Method {
    /// Blocks of threads it takes from the GPU's other work.
    #[must_use]
    pub const fn ctas(self) -> u32 {
        match self {
            Self::EngineLoop | Self::EngineBatch => 0,
            Self::Kernel { ctas } | Self::Bulk { ctas } | Self::Staged { ctas } => ctas,
        }
    }

    /// The name that [`CopyTuning`](super::CopyTuning) and the command line use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EngineLoop => "engine-loop",
            Self::EngineBatch => "engine-batch",
            Self::Kernel { .. } => "kernel",
            Self::Bulk { .. } => "bulk",
            Self::Staged { .. } => "staged",
        }
    }

    /// The method of that name; `ctas` for those that use any.
    #[must_use]
    pub fn named(name: &str, ctas: u32) -> Option<Self> {
        let all = [
            Self::EngineLoop,
            Self::EngineBatch,
            Self::Kernel { ctas },
            Self::Bulk { ctas },
            Self::Staged { ctas },
        ];
        all.into_iter().find(|method| method.name() == name)
    }

    /// Position of its kind among the five.
    pub(super) const fn kind(self) -> usize {
        match self {
            Self::EngineLoop => 0,
            Self::EngineBatch => 1,
            Self::Kernel { .. } => 2,
            Self::Bulk { .. } => 3,
            Self::Staged { .. } => 4,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ctas() {
            0 => f.pad(self.name()),
            ctas => f.pad(&format!("{} x{ctas}", self.name())),
        }
    }
}

/// What a transfer looks like to the cost model: equal blocks, each cut into equal runs in HBM and in one
/// piece in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Which way.
    pub direction: Direction,
    /// Number of blocks.
    pub blocks: usize,
    /// Bytes of each that are copied.
    pub block_bytes: usize,
    /// Bytes of one contiguous run in HBM.
    pub run_bytes: usize,
    /// Bytes of the widest access that all addresses allow: 16 unless a layout is odd.
    pub alignment: usize,
    /// Whether the GPU sees each host block as one piece of its own address space.
    pub mapped: bool,
    /// Whether pieces are whole runs: kernels walk runs, the copy engine also parts of them.
    pub whole_runs: bool,
    /// Bytes that are handed to the GPU at once, by the copy engine.
    pub piece_bytes: usize,
}

impl Shape {
    /// All bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.blocks * self.block_bytes
    }

    /// All runs.
    #[must_use]
    pub const fn runs(&self) -> usize {
        self.bytes() / if self.run_bytes == 0 { 1 } else { self.run_bytes }
    }
}

/// How much more a kernel is handed at once than the copy engine: it does not hold up a queue that others
/// wait in, but each launch has its own start and end.
pub(super) const KERNEL_PIECES: usize = 8;
