//! The CUDA kernels, run on the host: random launches against naive loops, the permutations that runtimes need,
//! and planted defects that the same checks must find.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a broken promise must stop a test

mod case;
mod checks;
mod layouts;
mod mutants;

use kvtier_tests::host_kernels::HostKernels;
use proptest::prelude::*;

use case::cases;
use checks::{Checked, Path, WIDTHS, any_threads, whole_warps};

/// Random cases for each kernel.
const CASES: u32 = 200;

fn holds(found: Checked) {
    if let Err(error) = found {
        panic!("{error}");
    }
}

#[test]
fn copies_are_exact() {
    let kernels = HostKernels::shared();
    holds(checks::random(CASES, false, cases(WIDTHS, any_threads()), |case| {
        checks::copy(kernels, Path::Register, case)
    }));
}

#[test]
fn bulk_copies_are_exact() {
    let kernels = HostKernels::shared();
    holds(checks::random(CASES, false, cases(&[16], Just(32)), |case| {
        checks::copy(kernels, Path::Bulk, case)
    }));
}

#[test]
fn zeros_are_written_where_they_should_be() {
    let kernels = HostKernels::shared();
    holds(checks::random(CASES, false, cases(WIDTHS, any_threads()), |case| checks::zero(kernels, case)));
}

#[test]
fn digests_are_those_of_the_host() {
    let kernels = HostKernels::shared();
    holds(checks::random(CASES, false, cases(WIDTHS, whole_warps()), |case| checks::digest(kernels, case)));
}

#[test]
fn products_are_right() {
    let kernels = HostKernels::shared();
    holds(checks::gemm(kernels, [1, 2], 16, 1, 1));
    holds(checks::gemm(kernels, [2, 2], 48, 3, 2));
}
