//! The kernels of kvtier on one GPU, and their arguments.

use std::ops::Range;

use kv_core::layout::{Nest, Stride};

use crate::driver::{CudaError, Current, DevicePtr, Function, Grid, INVALID_VALUE, Module, Stream};
use crate::kernels::{self, Capability, Loops, args};

/// Threads of a CTA of the register kernels.
const THREADS: u32 = 1024;
/// Threads of a CTA of the bulk kernel: one issues, a warp is the least there is.
const BULK_THREADS: u32 = 32;
/// Ring of the bulk kernel: lets its CTA live beside one of a matrix product, which takes up to 200 KiB of
/// the 228 that a multiprocessor has.
const BULK_RING: u32 = 64 << 10;
/// Threads of a CTA that zeroes or digests.
const WIDE_THREADS: u32 = 256;

/// Loaded kernels.
pub struct Kernels {
    copy: Function,
    zero: Function,
    digest: Function,
    /// From compute capability 9.0 on.
    bulk: Option<Function>,
}

/// Where one side of a launch lies.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// In the buffers of a table; blocks are offsets.
    Pool {
        /// The table, in device memory.
        table: DevicePtr,
    },
    /// Contiguous blocks at addresses of their own.
    Contiguous,
}

/// One launch over some blocks.
pub struct Walk<'a> {
    /// From the source's side to the destination's.
    pub nest: &'a Nest,
    /// The source.
    pub from: Side,
    /// The destination.
    pub to: Side,
    /// Which runs of each block.
    pub runs: Range<usize>,
    /// Bytes per access.
    pub vector: usize,
    /// Block offsets, as the GPU sees them: an array of `kv_block`.
    pub blocks: DevicePtr,
    /// How many.
    pub num_blocks: usize,
}

impl Kernels {
    /// Loads them; the driver compiles them for this GPU the first time.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn load(current: &Current) -> Result<Self, CudaError> {
        let (major, minor) = current.context().info().compute_capability;
        let bulk = match module("kv_copy_bulk") {
            Some(found) if Capability(major, minor) >= found.at_least => {
                let bulk = function(current, "kv_copy_bulk")?;
                bulk.allow_shared(BULK_RING)?;
                Some(bulk)
            }
            _ => None,
        };
        Ok(Self {
            copy: function(current, "kv_copy")?,
            zero: function(current, "kv_zero")?,
            digest: function(current, "kv_digest_blocks")?,
            bulk,
        })
    }

    /// Whether this GPU has bulk copies.
    pub const fn has_bulk(&self) -> bool {
        self.bulk.is_some()
    }

    /// Queues a copy by `ctas` CTAs, by bulk copies if asked for and there.
    ///
    /// # Safety
    /// All addresses that the walk visits are allocated and mapped, and stay so, used by nobody in a way
    /// that conflicts, until the launch is over.
    ///
    /// # Errors
    /// A walk that kernels cannot make, or [`CudaError`] of the launch.
    pub unsafe fn copy(
        &self,
        current: &Current,
        stream: &Stream,
        walk: &Walk<'_>,
        ctas: u32,
        by_bulk: bool,
    ) -> Result<(), CudaError> {
        let args = args::kv_copy_args {
            src: view(walk.nest, walk.from, |level| level.0),
            dst: view(walk.nest, walk.to, |level| level.1),
            nest: nest(walk)?,
            blocks: walk.blocks.0,
            num_blocks: narrow(walk.num_blocks),
            reserved: 0,
        };
        let (function, threads, shared) = match &self.bulk {
            Some(bulk) if by_bulk && walk.vector == 16 => (bulk, BULK_THREADS, BULK_RING),
            _ => (&self.copy, THREADS, 0),
        };
        // SAFETY: the kernels take this struct; the rest is the caller's word.
        unsafe { function.launch(current, stream, Grid { ctas: ctas.max(1), threads, shared }, &args) }
    }

    /// Queues writing zeros over the destinations.
    ///
    /// # Safety
    /// As for [`Kernels::copy`].
    ///
    /// # Errors
    /// As for [`Kernels::copy`].
    pub unsafe fn zero(
        &self,
        current: &Current,
        stream: &Stream,
        walk: &Walk<'_>,
        ctas: u32,
    ) -> Result<(), CudaError> {
        let args = args::kv_zero_args {
            dst: view(walk.nest, walk.to, |level| level.1),
            nest: nest(walk)?,
            blocks: walk.blocks.0,
            num_blocks: narrow(walk.num_blocks),
            reserved: 0,
        };
        let grid = Grid { ctas: ctas.max(1), threads: WIDE_THREADS, shared: 0 };
        // SAFETY: the kernel takes this struct; the rest is the caller's word.
        unsafe { self.zero.launch(current, stream, grid, &args) }
    }

    /// Queues reading the sources: one `kv_digest` for each block is written to `digests`.
    ///
    /// # Safety
    /// As for [`Kernels::copy`].
    ///
    /// # Errors
    /// As for [`Kernels::copy`].
    pub unsafe fn digest(
        &self,
        current: &Current,
        stream: &Stream,
        walk: &Walk<'_>,
        digests: DevicePtr,
        ctas: u32,
    ) -> Result<(), CudaError> {
        let args = args::kv_digest_args {
            src: view(walk.nest, walk.from, |level| level.0),
            nest: nest(walk)?,
            blocks: walk.blocks.0,
            digests: digests.0,
            num_blocks: narrow(walk.num_blocks),
            reserved: 0,
        };
        let grid = Grid { ctas: ctas.max(1), threads: WIDE_THREADS, shared: 0 };
        // SAFETY: the kernel takes this struct; the rest is the caller's word.
        unsafe { self.digest.launch(current, stream, grid, &args) }
    }
}

fn view(nest: &Nest, side: Side, of: impl Fn((Stride, Stride)) -> Stride) -> args::kv_view {
    let strides = nest.levels().map(|level| of((level.from, level.to)));
    let buffers = match side {
        Side::Pool { table } => table.0,
        Side::Contiguous => 0,
    };
    args::kv_view {
        buffers,
        step: strides.map(|stride| stride.bytes as u64),
        buffer_step: strides.map(|stride| stride.buffers),
    }
}

/// Pieces are far below what kernels can count, and their runs are whole.
fn nest(walk: &Walk<'_>) -> Result<args::kv_nest, CudaError> {
    let loops = Loops {
        counts: walk.nest.levels().map(|level| level.count),
        run_bytes: walk.nest.run_bytes(),
        vector_bytes: narrow(walk.vector),
        runs: narrow(walk.runs.start)..narrow(walk.runs.end),
    };
    loops.nest().map_err(|error| refused("kv_nest", error))
}

/// Refused before the driver was asked, with its code for invalid arguments.
fn refused(call: &'static str, why: impl ToString) -> CudaError {
    CudaError { call, code: INVALID_VALUE, name: why.to_string() }
}

/// The module that has a kernel of that name.
fn module(kernel: &str) -> Option<&'static kernels::Module> {
    kernels::MODULES.iter().find(|module| module.kernels.iter().any(|found| found.name == kernel))
}

fn function(current: &Current, kernel: &'static str) -> Result<Function, CudaError> {
    let found = module(kernel).ok_or_else(|| refused("cuModuleGetFunction", kernel))?;
    Module::load(current, found.ptx)?.function(current, kernel)
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
