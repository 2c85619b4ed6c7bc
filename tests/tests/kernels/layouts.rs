//! The permutations that runtimes' layouts ask for, against element-wise index arithmetic.

use kv_cuda::kernels::Loops;
use kv_cuda::kernels::args::{kv_block, kv_copy_args, kv_view};
use kvtier_tests::host_kernels::{HostKernels, Launch};

use super::case::Rng;
use super::checks::Path;

/// Axes of a cache: layer, key or value, head, token. Beside them the block, and the elements of a head.
const AXES: [char; 4] = ['L', 'C', 'H', 'N'];

/// Indices of each of [`AXES`], and bytes of a head of a token.
#[derive(Clone, Copy)]
struct Shape {
    counts: [usize; 4],
    head_bytes: usize,
    blocks: usize,
}

const GQA: Shape = Shape { counts: [3, 2, 4, 8], head_bytes: 32, blocks: 6 };
/// DeepSeek's latent of 512 + 64 bf16 elements: no heads, no K and V.
const MLA: Shape = Shape { counts: [5, 1, 1, 16], head_bytes: 1152, blocks: 4 };

/// One side: a tensor for every index of the axes in `buffers`, each with its axes from the outermost to the
/// innermost. 'B' is the block.
#[derive(Clone, Copy)]
struct Tensors {
    buffers: &'static str,
    axes: &'static str,
}

/// vLLM: a tensor for each layer, K and V outermost, tokens before heads.
const NHD: Tensors = Tensors { buffers: "L", axes: "CBNH" };
const HND: Tensors = Tensors { buffers: "L", axes: "CBHN" };
/// SGLang: K and V of a layer are tensors of their own.
const SPLIT: Tensors = Tensors { buffers: "LC", axes: "BNH" };
/// K and V of a head side by side.
const FUSED: Tensors = Tensors { buffers: "L", axes: "BNHC" };
/// A host slot.
const PAGE_NHD: Tensors = Tensors { buffers: "", axes: "BLCNH" };
const PAGE_HND: Tensors = Tensors { buffers: "", axes: "BLCHN" };

struct Placed {
    shape: Shape,
    view_steps: [usize; 4],
    buffer_steps: [usize; 4],
    block_step: usize,
    buffers: Vec<Vec<u8>>,
}

fn place(tensors: Tensors, shape: Shape) -> Placed {
    let count =
        |axis: char| AXES.iter().position(|&name| name == axis).map_or(shape.blocks, |at| shape.counts[at]);
    let (mut view_steps, mut buffer_steps, mut block_step) = ([0; 4], [0; 4], 0);
    let mut step = shape.head_bytes;
    for axis in tensors.axes.chars().rev() {
        match AXES.iter().position(|&name| name == axis) {
            Some(at) => view_steps[at] = step,
            None => block_step = step,
        }
        step *= count(axis);
    }
    let mut num_buffers = 1;
    for axis in tensors.buffers.chars().rev() {
        buffer_steps[AXES.iter().position(|&name| name == axis).expect("an axis")] = num_buffers;
        num_buffers *= count(axis);
    }
    let buffers = vec![vec![0; step]; num_buffers];
    Placed { shape, view_steps, buffer_steps, block_step, buffers }
}

impl Placed {
    /// Buffer and first byte of a head of a token.
    fn at(&self, block: usize, index: [usize; 4]) -> (usize, usize) {
        let sum =
            |steps: [usize; 4]| steps.iter().zip(index).map(|(step, index)| step * index).sum::<usize>();
        (sum(self.buffer_steps), block * self.block_step + sum(self.view_steps))
    }

    fn head(&self, block: usize, index: [usize; 4]) -> &[u8] {
        let (buffer, at) = self.at(block, index);
        &self.buffers[buffer][at..][..self.shape.head_bytes]
    }
}

/// Copies block `i` of `src` to block `last - i` of `dst`, heads from `first_head` of `src` on, and looks at every head of
/// every token.
fn check(from: (Tensors, Shape), to: (Tensors, Shape), first_head: usize) {
    for path in [Path::Register, Path::Bulk] {
        let mut src = place(from.0, from.1);
        let dst = place(to.0, to.1);
        let mut rng = Rng(7);
        src.buffers.iter_mut().flatten().for_each(|byte| *byte = rng.next() as u8);

        // Levels are L, C, H, N; what is contiguous on both sides makes the run longer.
        let mut counts = to.1.counts;
        let mut run = to.1.head_bytes;
        for level in [3, 2] {
            if src.view_steps[level] == run && dst.view_steps[level] == run {
                run *= counts[level];
                counts[level] = 1;
            }
        }
        let tables =
            [&src, &dst].map(|side| side.buffers.iter().map(|b| b.as_ptr() as u64).collect::<Vec<_>>());
        let view = |side: &Placed, table: &Vec<u64>| kv_view {
            buffers: table.as_ptr() as u64,
            step: side.view_steps.map(|step| step as u64),
            buffer_step: side.buffer_steps.map(|step| step as u32),
        };
        let head_offset = first_head * src.view_steps[2];
        let last = to.1.blocks - 1;
        let blocks: Vec<kv_block> = (0..=last)
            .map(|block| kv_block {
                src: (block * src.block_step + head_offset) as u64,
                dst: ((last - block) * dst.block_step) as u64,
            })
            .collect();
        let args = kv_copy_args {
            src: view(&src, &tables[0]),
            dst: view(&dst, &tables[1]),
            nest: Loops::whole(counts.map(|count| count as u32), run, 16).unwrap().nest().unwrap(),
            blocks: blocks.as_ptr() as u64,
            num_blocks: blocks.len() as u32,
            reserved: 0,
        };
        let kernels = HostKernels::shared();
        match path {
            // SAFETY: views and blocks are of memory that lives in `src` and `dst`.
            Path::Register => unsafe {
                kernels.copy(&args, Launch { grid: 3, block: 128, shared_bytes: 0, seed: 1 });
            },
            // SAFETY: as above.
            Path::Bulk => unsafe {
                kernels.copy_bulk(&args, Launch { grid: 2, block: 32, shared_bytes: 8192, seed: 1 });
            },
        }
        let [layers, planes, heads, tokens] = to.1.counts;
        for block in 0..=last {
            for (l, c, h, n) in (0..layers * planes * heads * tokens).map(|i| {
                (i / (planes * heads * tokens), i / (heads * tokens) % planes, i / tokens % heads, i % tokens)
            }) {
                assert_eq!(
                    dst.head(last - block, [l, c, h, n]),
                    src.head(block, [l, c, first_head + h, n]),
                    "{path:?}: block {block}, layer {l}, plane {c}, head {h}, token {n}"
                );
            }
        }
    }
}

#[test]
fn token_major_and_head_major_change_places() {
    check((NHD, GQA), (HND, GQA), 0);
    check((HND, GQA), (NHD, GQA), 0);
}

#[test]
fn pools_go_to_page_first_and_back() {
    for pool in [NHD, HND, SPLIT, FUSED] {
        for page in [PAGE_NHD, PAGE_HND] {
            check((pool, GQA), (page, GQA), 0);
            check((page, GQA), (pool, GQA), 0);
        }
    }
}

#[test]
fn keys_and_values_split_and_fuse() {
    check((SPLIT, GQA), (FUSED, GQA), 0);
    check((FUSED, GQA), (SPLIT, GQA), 0);
}

#[test]
fn a_latent_has_no_heads() {
    check((NHD, MLA), (PAGE_NHD, MLA), 0);
    check((PAGE_NHD, MLA), (NHD, MLA), 0);
}

#[test]
fn a_rank_takes_its_share_of_the_heads() {
    let mut rank = GQA;
    rank.counts[2] = 2;
    for first_head in [0, 2] {
        check((PAGE_NHD, GQA), (NHD, rank), first_head);
        check((PAGE_HND, GQA), (HND, rank), first_head);
        check((HND, GQA), (PAGE_NHD, rank), first_head);
    }
}
