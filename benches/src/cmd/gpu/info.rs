//! `kvtier gpu info`.

use kvtier_benches::gpu::info::Info;

use super::super::{Output, Result};

/// The driver and its GPUs, or what is missing
#[derive(clap::Args)]
pub(super) struct Args {}

pub(super) fn run(output: &Output) -> Result<()> {
    output.result(&Info::here()?)
}
