//! A random launch, and the memory it works on.

use kv_cuda::kernels::Loops;
use kv_cuda::kernels::args::{kv_block, kv_view};
use kvtier_tests::host_kernels::Launch;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Vectors of a launch at most: a test is over in milliseconds.
const MOST_VECTORS: u64 = 20_000;
/// Bytes kept free on both sides of every buffer, and looked at afterwards. None if a sanitizer guards them: it also
/// sees what is only read.
fn guard_bytes() -> usize {
    if std::env::var_os("KV_HOST_SANITIZE").is_some() { 0 } else { 64 }
}

/// Splitmix64 (Steele, Lea, Flood, 2014).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// How one side lays its blocks out. Dimensions are the four levels and, as number 4, the blocks.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    /// Dimensions, innermost first.
    pub(crate) order: Vec<usize>,
    /// Vectors left free after each index of a dimension.
    pub(crate) padding: Vec<usize>,
    /// Levels whose indices lie in different buffers. If none does, `table` says if there is a table of buffers.
    pub(crate) by_buffer: Vec<bool>,
    pub(crate) table: bool,
    /// Blocks that there is room for, beyond those of the launch.
    pub(crate) spare_blocks: usize,
    /// Vectors by which buffers miss 16-byte alignment.
    pub(crate) shift: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) loops: Loops,
    pub(crate) blocks: usize,
    pub(crate) src: Side,
    pub(crate) dst: Side,
    pub(crate) launch: Launch,
    /// Of the bytes and of the slots that blocks take.
    pub(crate) data: u64,
}

fn side() -> impl Strategy<Value = Side> {
    let order = Just(vec![0, 1, 2, 3, 4]).prop_shuffle();
    let padding = vec(select(vec![0, 0, 1, 3]), 5);
    (order, padding, vec(any::<bool>(), 4), any::<bool>(), 0_usize..3, 0_usize..16).prop_map(
        |(order, padding, by_buffer, table, spare_blocks, shift)| {
            let by_buffer = by_buffer.into_iter().map(|by| by && table).collect();
            Side { order, padding, by_buffer, table, spare_blocks, shift }
        },
    )
}

fn loops(vectors: Vec<u32>) -> impl Strategy<Value = Loops> {
    let counts = prop_oneof![
        [1_u32..2, 1_u32..2, 1_u32..9, 1_u32..9],
        [1_u32..4, 1_u32..4, 1_u32..4, 1_u32..4],
        [1_u32..40, 1_u32..2, 1_u32..2, 1_u32..3],
    ];
    let run = prop_oneof![1_usize..6, 1_usize..70, 200_usize..300];
    (counts, run, select(vectors), any::<(u32, u32, bool)>()).prop_map(
        |(counts, run, vector_bytes, (a, b, all))| {
            let mut loops = Loops::whole(counts, run * vector_bytes as usize, vector_bytes).unwrap();
            if !all {
                let of = loops.runs.end;
                let (a, b) = (a % of, b % of);
                loops.runs = a.min(b)..a.max(b) + 1;
            }
            loops
        },
    )
}

/// What may be drawn. Kernels differ in the vectors and CTAs that they take.
pub(crate) fn cases(vectors: &[u32], threads: impl Strategy<Value = u32>) -> impl Strategy<Value = Case> {
    let blocks = prop_oneof![4 => 1_usize..40, 1 => 1_usize..3000];
    let shared = prop_oneof![192_u32..1000, 1000_u32..20_000, Just(48 << 10)];
    let seed = prop_oneof![1 => Just(0), 4 => any::<u64>()];
    let launch = (1_u32..12, threads, shared, seed).prop_map(|(grid, block, shared_bytes, seed)| Launch {
        grid,
        block,
        shared_bytes,
        seed,
    });
    (loops(vectors.to_vec()), blocks, side(), side(), launch, any::<u64>()).prop_map(
        |(loops, blocks, src, dst, launch, data)| {
            let vectors = loops.counts.iter().map(|&count| u64::from(count)).product::<u64>()
                * (loops.run_bytes as u64 / u64::from(loops.vector_bytes));
            let blocks = blocks.min((MOST_VECTORS / vectors).max(1) as usize);
            Case { loops, blocks, src, dst, launch, data }
        },
    )
}

/// Buffers of one side, their strides, and where its blocks lie.
pub(crate) struct Memory {
    /// Buffers with their guards; `first` is where the bytes of each begin.
    pub(crate) buffers: Vec<Vec<u8>>,
    first: Vec<usize>,
    addresses: Vec<u64>,
    table: bool,
    steps: [usize; 4],
    buffer_steps: [usize; 4],
    block_step: usize,
    /// Slot of each block.
    slots: Vec<usize>,
}

impl Memory {
    /// Memory for one side, filled with random bytes, or with mostly zeros.
    pub(crate) fn new(case: &Case, side: &Side, rng: &mut Rng) -> Self {
        let vector = case.loops.vector_bytes as usize;
        let num_slots = case.blocks + side.spare_blocks;
        let mut extent = case.loops.run_bytes;
        let mut num_buffers = 1;
        let (mut steps, mut buffer_steps, mut block_step) = ([0; 4], [0; 4], 0);
        for &dimension in &side.order {
            let step = extent + side.padding[dimension] * vector;
            if dimension == 4 {
                block_step = step;
                extent = step * num_slots;
            } else if side.by_buffer[dimension] {
                buffer_steps[dimension] = num_buffers;
                num_buffers *= case.loops.counts[dimension] as usize;
            } else {
                steps[dimension] = step;
                extent = step * case.loops.counts[dimension] as usize;
            }
        }
        let sparse = rng.next().is_multiple_of(3);
        let guard = guard_bytes();
        let mut buffers = Vec::new();
        let mut first = Vec::new();
        for _ in 0..num_buffers {
            let shift = side.shift * vector % 16;
            let mut bytes = vec![0; guard + shift + extent + guard];
            bytes.fill_with(|| if sparse && !rng.next().is_multiple_of(16) { 0 } else { rng.next() as u8 });
            assert!(bytes.as_ptr().cast::<u128>().is_aligned(), "malloc aligns to 16 bytes");
            first.push(guard + shift);
            buffers.push(bytes);
        }
        let addresses =
            buffers.iter_mut().zip(&first).map(|(buffer, &first)| buffer[first..].as_mut_ptr() as u64);
        let addresses = addresses.collect();
        let mut slots: Vec<usize> = (0..num_slots).collect();
        for i in (1..num_slots).rev() {
            slots.swap(i, rng.below(i + 1));
        }
        Self { buffers, first, addresses, table: side.table, steps, buffer_steps, block_step, slots }
    }

    pub(crate) fn view(&self) -> kv_view {
        kv_view {
            buffers: if self.table { self.addresses.as_ptr() as u64 } else { 0 },
            step: self.steps.map(|step| step as u64),
            buffer_step: self.buffer_steps.map(|step| step as u32),
        }
    }

    /// What kv_block says of a block on this side.
    pub(crate) fn block_offset(&self, block: usize) -> u64 {
        let base = if self.table { 0 } else { self.addresses[0] };
        base + (self.slots[block] * self.block_step) as u64
    }

    /// Buffer and first byte of a run.
    pub(crate) fn place(&self, block: usize, index: [usize; 4]) -> (usize, usize) {
        let sum =
            |steps: [usize; 4]| steps.iter().zip(index).map(|(step, index)| step * index).sum::<usize>();
        let buffer = sum(self.buffer_steps);
        (buffer, self.first[buffer] + self.slots[block] * self.block_step + sum(self.steps))
    }

    pub(crate) fn run(&self, case: &Case, block: usize, index: [usize; 4]) -> &[u8] {
        let (buffer, at) = self.place(block, index);
        &self.buffers[buffer][at..][..case.loops.run_bytes]
    }
}

/// The table of a launch's blocks.
pub(crate) fn block_table(case: &Case, src: Option<&Memory>, dst: Option<&Memory>) -> Vec<kv_block> {
    let offset = |side: Option<&Memory>, block| side.map_or(0, |side| side.block_offset(block));
    (0..case.blocks).map(|block| kv_block { src: offset(src, block), dst: offset(dst, block) }).collect()
}

/// Indices of the runs that are visited in each block, in order.
pub(crate) fn visited(case: &Case) -> Vec<[usize; 4]> {
    let [outer, second, third, inner] = case.loops.counts.map(|count| count as usize);
    let mut runs = Vec::new();
    for i0 in 0..outer {
        for i1 in 0..second {
            for i2 in 0..third {
                for i3 in 0..inner {
                    runs.push([i0, i1, i2, i3]);
                }
            }
        }
    }
    let range = case.loops.runs.start as usize..case.loops.runs.end as usize;
    runs[range].to_vec()
}
