//! The pinned tools, as `pip install --target` of the Makefile lays them out.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::output::Error;

/// The compiler. Its PTX is the same bytes on every machine.
const NVCC: &str = "13.0.88";
/// The oldest assembler whose drivers must load the PTX: it decides which `.version` is enough.
pub(crate) const PTXAS: &str = "12.4.131";

/// Where the tools are.
pub(crate) struct Tools {
    pub(crate) nvcc: PathBuf,
    pub(crate) ptxas: PathBuf,
    /// Folder of libclang.so.
    pub(crate) libclang: PathBuf,
}

impl Tools {
    /// Finds the tools below `folder` and checks their versions.
    pub(crate) fn at(folder: &Path) -> Result<Self, Error> {
        let folder = folder.canonicalize().map_err(Error::at(folder))?;
        let tools = Self {
            nvcc: folder.join("nvidia/cu13/bin/nvcc"),
            ptxas: folder.join("nvidia/cuda_nvcc/bin/ptxas"),
            libclang: folder.join("clang/native"),
        };
        expect_version("nvcc", &tools.nvcc, NVCC)?;
        expect_version("ptxas", &tools.ptxas, PTXAS)?;
        Ok(tools)
    }

    /// Names and versions for the manifest.
    pub(crate) fn versions(&self) -> [(&'static str, String); 3] {
        // Read from libclang, which `bindings` has loaded.
        let clang = bindgen::clang_version().full;
        [("nvcc", NVCC.to_owned()), ("ptxas", PTXAS.to_owned()), ("libclang", clang)]
    }
}

/// Both print a line that ends in `V13.0.88`.
fn expect_version(tool: &'static str, path: &Path, expected: &'static str) -> Result<(), Error> {
    let output = run(Command::new(path).arg("--version"))?;
    let found =
        output.split_whitespace().find_map(|word| word.strip_prefix('V')).unwrap_or("unknown").to_owned();
    if found == expected { Ok(()) } else { Err(Error::Version { tool, found, expected }) }
}

/// Runs a command and returns all that it printed.
pub(crate) fn run(command: &mut Command) -> Result<String, Error> {
    let output = command.output().map_err(Error::at(Path::new(command.get_program())))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(text)
    } else {
        let what =
            Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        Err(Error::Tool { what, output: text })
    }
}
