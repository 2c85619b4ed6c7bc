//! One file per subcommand. Each makes something that is both printable and serialisable and hands it to
//! [`Output`]; none writes to standard output itself.

mod bench_codec;
mod bench_copy;
mod bench_cost;
mod bench_index;
mod bench_nvme;
mod bench_remote;
mod bench_reopen;
mod demo;
mod explain;
mod gpu;
mod inspect;
mod replay;

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use kvtier_benches::ByteSize;
use kvtier_benches::gpu::GpuError;
use kvtier_benches::nvme::Scratch;
use serde::Serialize;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Subcommand)]
pub(crate) enum Command {
    Demo(demo::Args),
    Replay(replay::Args),
    Explain(explain::Args),
    Inspect(inspect::Args),
    Gpu(gpu::Args),
    /// Measure against the hardware's limit and the peers, in one run on this machine
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
pub(crate) enum Bench {
    Index(bench_index::Args),
    Codec(bench_codec::Args),
    Copy(bench_copy::Args),
    Cost(bench_cost::Args),
    Nvme(bench_nvme::Args),
    Remote(bench_remote::Args),
    Reopen(bench_reopen::Args),
}

impl Command {
    pub(crate) fn run(&self, output: &Output) -> Result<()> {
        match self {
            Self::Demo(args) => demo::run(args, output),
            Self::Replay(args) => replay::run(args, output),
            Self::Explain(args) => explain::run(args, output),
            Self::Inspect(args) => inspect::run(args, output),
            Self::Gpu(args) => gpu::run(args, output),
            Self::Bench(Bench::Index(args)) => bench_index::run(args, output),
            Self::Bench(Bench::Codec(args)) => bench_codec::run(args, output),
            Self::Bench(Bench::Copy(args)) => bench_copy::run(args, output),
            Self::Bench(Bench::Cost(args)) => bench_cost::run(args, output),
            Self::Bench(Bench::Nvme(args)) => bench_nvme::run(args, output),
            Self::Bench(Bench::Remote(args)) => bench_remote::run(args, output),
            Self::Bench(Bench::Reopen(args)) => bench_reopen::run(args, output),
        }
    }
}

/// Where results go.
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Prints the one result of a command.
    pub(crate) fn result(&self, result: &(impl Serialize + Display)) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(result)?)?;
        } else {
            write!(out, "{result}")?;
        }
        Ok(out.flush()?)
    }

    /// Runs something that has `total` steps and reports how many are done. The bar shows on a terminal only.
    pub(crate) fn with_progress<R>(
        &self,
        total: usize,
        what: &'static str,
        run: impl FnOnce(&mut dyn FnMut(usize)) -> R,
    ) -> R {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}, {eta} left");
        let bar = ProgressBar::new(total as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_message(what);
        let result = run(&mut |done| bar.set_position(done as u64));
        bar.finish_and_clear();
        result
    }

    /// Says that something long goes on. Nobody may be listening.
    pub(crate) fn progress(&self, text: impl Display) {
        writeln!(io::stderr(), "{text}").ok();
    }
}

/// A file of a result cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}; does its folder exist?", path.display())]
struct CannotSave {
    path: PathBuf,
    source: io::Error,
}

/// Keeps a result as `STEM.json` and `STEM.md`.
fn save(stem: &Path, title: &str, result: &(impl Serialize + Display)) -> Result<()> {
    let write = |extension: &str, text: String| {
        let mut name = stem.as_os_str().to_owned();
        name.push(extension);
        let path = PathBuf::from(name);
        std::fs::write(&path, text).map_err(|source| CannotSave { path, source })
    };
    write(".json", format!("{}\n", serde_json::to_string_pretty(result)?))?;
    write(".md", format!("# {title}\n\n{result}"))?;
    Ok(())
}

/// The length of a measurement: fio counts in milliseconds.
fn seconds(text: &str) -> std::result::Result<f64, String> {
    let seconds = text.parse().ok().filter(|s| (0.01..=3600.0).contains(s));
    seconds.ok_or_else(|| "a number from 0.01 to 3600, please".to_owned())
}

/// A directory of the benchmark's own, removed at the end, after an error, and as well as it can be when the user
/// ends the command.
fn scratch(parent: Option<&Path>, needed: ByteSize) -> Result<Scratch> {
    let scratch = Scratch::new(parent.unwrap_or(Path::new(".")), needed)?;
    let path = scratch.path().to_path_buf();
    ctrlc::set_handler(move || {
        // What still runs may be making a file at this moment: once more.
        if std::fs::remove_dir_all(&path).is_err() {
            std::fs::remove_dir_all(&path).ok();
        }
        // As shells report an interrupt.
        std::process::exit(130);
    })?;
    Ok(scratch)
}

/// Whether a command did nothing for want of a GPU or a driver.
pub(crate) fn needs_a_gpu(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(GpuError::Missing(_)))
}
