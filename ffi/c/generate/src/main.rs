//! Makes what is generated from the C ABI and checked in, or checks that it is current.
//!
//! ```text
//! ffi/c/src/*.rs ── cbindgen ──► ffi/c/include/kvtier.h ── bindgen ──► ffi/c/tests/abi/header.rs
//! ```
//!
//! `make header` and `make lint` run it. Nobody who only builds kvtier needs it.

mod header;
mod mirror;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: kvtier-header (write | check) TOOLS
  write   make the generated files
  check   fail if those checked in differ
  TOOLS   folder that holds the pinned libclang, see the Makefile";

/// Why nothing was generated, or what differs.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("cbindgen: {0}")]
    Cbindgen(#[from] cbindgen::Error),
    #[error("bindgen: {0}")]
    Bindgen(#[from] bindgen::BindgenError),
    #[error("cbindgen wrote something that is not UTF-8")]
    Text,
    #[error("not current, run `make header` and commit the result: {0}")]
    Stale(String),
}

impl Error {
    fn at(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

/// `ffi/c` of the repository that this was built in.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", tools] => run(Path::new(tools), true),
        ["check", tools] => run(Path::new(tools), false),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("header: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(tools: &Path, write: bool) -> Result<(), Error> {
    let root = root();
    let path = root.join(header::PATH);
    settle(&path, &header::generate(&root)?, write)?;
    // From the file that is checked in, which is the one above.
    let mirror = mirror::generate(&path, &tools.join("clang/native"))?;
    settle(&root.join(mirror::PATH), &mirror, write)?;
    println!("header: 2 files {}", if write { "written" } else { "are current" });
    Ok(())
}

fn settle(path: &Path, text: &str, write: bool) -> Result<(), Error> {
    if write {
        return std::fs::write(path, text).map_err(Error::at(path));
    }
    match std::fs::read_to_string(path) {
        Ok(found) if found == text => Ok(()),
        _ => Err(Error::Stale(path.display().to_string())),
    }
}
