//! What a kernel must do, against loops that anyone can read.

use kv_cuda::kernels::Loops;
use kv_cuda::kernels::args::{kv_copy_args, kv_digest, kv_digest_args, kv_gemm_args, kv_zero_args};
use kvtier_tests::host_kernels::{HostKernels, Launch};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::case::{Case, Memory, Rng, Side, block_table, cases, visited};

/// What was found wrong.
pub(crate) type Checked = Result<(), String>;

/// The two kernels that copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Register,
    Bulk,
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

/// All bytes of all buffers, guards included, against what they must be.
fn same(found: &[Vec<u8>], expected: &[Vec<u8>], what: &str) -> Checked {
    for (buffer, (found, expected)) in found.iter().zip(expected).enumerate() {
        if let Some(at) = (0..expected.len()).find(|&at| found[at] != expected[at]) {
            return Err(format!(
                "{what}: byte {at} of buffer {buffer} is {}, not {}",
                found[at], expected[at]
            ));
        }
    }
    Ok(())
}

pub(crate) fn copy(kernels: &HostKernels, path: Path, case: &Case) -> Checked {
    let mut rng = Rng(case.data);
    let src = Memory::new(case, &case.src, &mut rng);
    let dst = Memory::new(case, &case.dst, &mut rng);
    let mut expected = dst.buffers.clone();
    for block in 0..case.blocks {
        for index in visited(case) {
            let (buffer, at) = dst.place(block, index);
            expected[buffer][at..][..case.loops.run_bytes].copy_from_slice(src.run(case, block, index));
        }
    }
    let before = src.buffers.clone();

    let blocks = block_table(case, Some(&src), Some(&dst));
    let args = kv_copy_args {
        src: src.view(),
        dst: dst.view(),
        nest: case.loops.nest().map_err(|error| error.to_string())?,
        blocks: blocks.as_ptr() as u64,
        num_blocks: blocks.len() as u32,
        reserved: 0,
    };
    match path {
        // SAFETY: the views and the blocks are of memory that lives in `src` and `dst`.
        Path::Register => unsafe { kernels.copy(&args, case.launch) },
        // SAFETY: as above.
        Path::Bulk => unsafe { kernels.copy_bulk(&args, case.launch) },
    }
    same(&dst.buffers, &expected, "destination")?;
    same(&src.buffers, &before, "source")
}

pub(crate) fn zero(kernels: &HostKernels, case: &Case) -> Checked {
    let dst = Memory::new(case, &case.dst, &mut Rng(case.data));
    let mut expected = dst.buffers.clone();
    for block in 0..case.blocks {
        for index in visited(case) {
            let (buffer, at) = dst.place(block, index);
            expected[buffer][at..][..case.loops.run_bytes].fill(0);
        }
    }
    let blocks = block_table(case, None, Some(&dst));
    let args = kv_zero_args {
        dst: dst.view(),
        nest: case.loops.nest().map_err(|error| error.to_string())?,
        blocks: blocks.as_ptr() as u64,
        num_blocks: blocks.len() as u32,
        reserved: 0,
    };
    // SAFETY: the view and the blocks are of memory that lives in `dst`.
    unsafe { kernels.zero(&args, case.launch) };
    same(&dst.buffers, &expected, "destination")
}

pub(crate) fn digest(kernels: &HostKernels, case: &Case) -> Checked {
    let src = Memory::new(case, &case.src, &mut Rng(case.data));
    let poison = kv_digest { crc64: 0x5A5A_5A5A_5A5A_5A5A, nonzero: u64::MAX };
    let mut digests = vec![poison; case.blocks + 1];
    let blocks = block_table(case, Some(&src), None);
    let args = kv_digest_args {
        src: src.view(),
        nest: case.loops.nest().map_err(|error| error.to_string())?,
        blocks: blocks.as_ptr() as u64,
        digests: digests.as_mut_ptr() as u64,
        num_blocks: blocks.len() as u32,
        reserved: 0,
    };
    // SAFETY: the view and the blocks are of memory that lives in `src`; there is a digest for each block.
    unsafe { kernels.digest(&args, case.launch) };
    for (block, found) in digests[..case.blocks].iter().enumerate() {
        let bytes: Vec<u8> =
            visited(case).iter().flat_map(|&index| src.run(case, block, index)).copied().collect();
        let nonzero = bytes.iter().filter(|&&byte| byte != 0).count() as u64;
        let expected = kv_digest { crc64: kv_core::payload_checksum(&bytes), nonzero };
        ensure(*found == expected, || {
            format!("block {block} of {} bytes: {found:x?}, not {expected:x?}", bytes.len())
        })?;
    }
    ensure(digests[case.blocks] == poison, || "a digest too many".to_owned())
}

/// Whole numbers, so that no order of additions matters.
pub(crate) fn gemm(kernels: &HostKernels, tiles: [usize; 2], k: usize, grid: u32, data: u64) -> Checked {
    let [m, n] = tiles.map(|tiles| tiles * 128);
    let mut rng = Rng(data);
    let mut matrix = |len| -> Vec<f32> { (0..len).map(|_| rng.below(9) as f32 - 4.0).collect() };
    let (a, b, mut c) = (matrix(m * k), matrix(k * n), vec![f32::NAN; m * n]);
    let args = kv_gemm_args {
        a: a.as_ptr() as u64,
        b: b.as_ptr() as u64,
        c: c.as_mut_ptr() as u64,
        m: m as u32,
        n: n as u32,
        k: k as u32,
        reserved: 0,
    };
    // SAFETY: the three matrices have these sizes.
    unsafe { kernels.gemm(&args, Launch { grid, block: 256, shared_bytes: 0, seed: data }) };
    for row in 0..m {
        for column in 0..n {
            let expected: f32 = (0..k).map(|i| a[row * k + i] * b[i * n + column]).sum();
            let found = c[row * n + column];
            ensure(found == expected, || format!("c[{row}][{column}] is {found}, not {expected}"))?;
        }
    }
    Ok(())
}

/// Launches in which a CTA goes through several tiles of kv_block.
fn many_blocks(threads: u32, grid: u32, seed: u64) -> Case {
    let side = |order: [usize; 5]| Side {
        order: order.to_vec(),
        padding: vec![0, 1, 0, 0, 2],
        by_buffer: vec![false; 4],
        table: false,
        spare_blocks: 5,
        shift: 0,
    };
    Case {
        loops: Loops::whole([1, 1, 1, 2], 32, 16).expect("a nest"),
        blocks: 2500,
        src: side([0, 1, 2, 3, 4]),
        dst: side([4, 3, 2, 1, 0]),
        launch: Launch { grid, block: threads, shared_bytes: 4096, seed },
        data: seed,
    }
}

/// Runs a check on so many random cases; the same ones each time if `deterministic`.
pub(crate) fn random(
    count: u32,
    deterministic: bool,
    cases: impl Strategy<Value = Case>,
    check: impl Fn(&Case) -> Checked,
) -> Checked {
    // Failing cases are printed; a file of them would be written into a checkout.
    let config = Config { cases: count, failure_persistence: None, ..Config::default() };
    let mut runner = if deterministic {
        // Whoever looks at a planted defect needs no smallest case.
        let config = Config { max_shrink_iters: 0, ..config };
        TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
    } else {
        TestRunner::new(config)
    };
    runner.run(&cases, |case| check(&case).map_err(TestCaseError::fail)).map_err(|error| error.to_string())
}

pub(crate) const WIDTHS: &[u32] = &[1, 2, 4, 8, 16];

pub(crate) fn any_threads() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 1_u32..300, 1 => Just(1024)]
}

pub(crate) fn whole_warps() -> impl Strategy<Value = u32> {
    select(vec![32, 64, 96, 128, 256, 512])
}

/// Checks of every kernel, the same each time and quick: what planted defects are shown to.
pub(crate) fn all(kernels: &HostKernels) -> Checked {
    let named = |name: &str, result: Checked| result.map_err(|error| format!("{name}: {error}"));
    for (grid, seed) in [(1, 0), (1, 1), (2, 2), (7, 3)] {
        named("kv_copy", copy(kernels, Path::Register, &many_blocks(96, grid, seed)))?;
        named("kv_copy_bulk", copy(kernels, Path::Bulk, &many_blocks(32, grid, seed)))?;
        named("kv_zero", zero(kernels, &many_blocks(96, grid, seed)))?;
        named("kv_digest_blocks", digest(kernels, &many_blocks(64, grid, seed)))?;
    }
    for bytes in 1..18 {
        let loops = Loops::whole([1; 4], bytes, 1).expect("a nest");
        let launch = Launch { grid: 2, block: 32, shared_bytes: 0, seed: 0 };
        named(
            "kv_digest_blocks",
            digest(kernels, &Case { loops, blocks: 3, launch, ..many_blocks(32, 2, 4) }),
        )?;
    }
    const COUNT: u32 = 30;
    named(
        "kv_copy",
        random(COUNT, true, cases(WIDTHS, any_threads()), |case| copy(kernels, Path::Register, case)),
    )?;
    named(
        "kv_copy_bulk",
        random(COUNT, true, cases(&[16], Just(32)), |case| copy(kernels, Path::Bulk, case)),
    )?;
    named("kv_zero", random(COUNT, true, cases(WIDTHS, any_threads()), |case| zero(kernels, case)))?;
    named(
        "kv_digest_blocks",
        random(COUNT, true, cases(WIDTHS, whole_warps()), |case| digest(kernels, case)),
    )?;
    named("kv_gemm", gemm(kernels, [2, 1], 32, 1, 5))
}
