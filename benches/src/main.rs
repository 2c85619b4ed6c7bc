//! The `kvtier` command.

mod cmd;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static HEAP: kvtier_benches::heap::CountingHeap = kvtier_benches::heap::CountingHeap;

/// Exit codes: 0 done; 1 it failed, standard error says why and what to do; 2 wrong usage; 3 there is no GPU
/// that could be used.
#[derive(Parser)]
#[command(
    name = "kvtier",
    version,
    about = "kvtier keeps KV-cache blocks in GPU memory, host RAM and local NVMe, and loads one only when that \
             beats recomputing it. This command measures and inspects it.",
    after_help = "Examples:\n  \
        kvtier bench index                        look-ups at 16 k, 131 k and 1 M blocks, against plain maps\n  \
        kvtier bench index --blocks 4096 --json   one small run, one JSON object on standard output\n  \
        kvtier bench copy                         block copies as a share of memcpy\n  \
        kvtier bench nvme --dir /mnt/nvme         the NVMe log as a share of fio, on that disk\n  \
        kvtier gpu check                          whether every kernel and copy path is right on this GPU\n  \
        kvtier help bench index                   everything about one command\n\n\
        Results go to standard output, progress and errors to standard error.\n\
        Exit codes: 0 done, 1 failed (standard error says why), 2 wrong usage, 3 no GPU that can be used."
)]
struct Cli {
    #[command(subcommand)]
    command: cmd::Command,

    /// Print exactly one JSON object on standard output instead of prose and tables
    #[arg(long, global = true)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.run(&cmd::Output { json: cli.json }) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads us has seen enough (`kvtier ... | head`).
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone as well; the exit code still tells.
            writeln!(io::stderr(), "kvtier: {}", chain(error.as_ref())).ok();
            if cmd::needs_a_gpu(error.as_ref()) { ExitCode::from(NO_GPU) } else { ExitCode::FAILURE }
        }
    }
}

/// Nothing was tried, because there is no driver or no GPU here: not the same as a check that fails.
const NO_GPU: u8 = 3;

/// `what: why: why that`.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
