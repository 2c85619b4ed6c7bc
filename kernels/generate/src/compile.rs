//! From a `.cu` file to PTX that drivers from CUDA 12.4 on load, and what its kernels take on a GPU.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::output::Error;
use crate::tools::{PTXAS, Tools, run};

/// A `.cu` file and the virtual architecture it is compiled for.
pub(crate) struct Source {
    pub(crate) name: &'static str,
    pub(crate) arch: &'static str,
    /// GPUs that it is assembled for, as a proof.
    proofs: &'static [&'static str],
}

pub(crate) const MODULES: &[Source] = &[
    Source { name: "copy", arch: "compute_80", proofs: &["sm_80", "sm_90"] },
    Source { name: "bulk", arch: "compute_90", proofs: &["sm_90"] },
    Source { name: "zero", arch: "compute_80", proofs: &["sm_80", "sm_90"] },
    Source { name: "digest", arch: "compute_80", proofs: &["sm_80", "sm_90"] },
    Source { name: "gemm", arch: "compute_80", proofs: &["sm_80", "sm_90"] },
];

/// Given to nvcc beside the architecture. Paths are relative, so that none gets into the PTX.
const FLAGS: &[&str] = &["-ptx", "-O3", "-std=c++17", "-Werror=all-warnings"];

/// PTX versions that ptxas 12.4 knows from the first with sm_80 on, oldest first.
const PTX_VERSIONS: &[&str] =
    &["7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "7.7", "7.8", "8.0", "8.1", "8.2", "8.3", "8.4"];

/// What a kernel takes on one GPU architecture, as ptxas reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Resources {
    /// For each thread.
    pub(crate) registers: u32,
    /// Static shared memory for each CTA, in bytes.
    pub(crate) shared_bytes: u32,
    /// Local memory for each thread, in bytes.
    pub(crate) stack_bytes: u32,
}

/// A compiled `.cu` file.
pub(crate) struct Module {
    pub(crate) source: &'static Source,
    pub(crate) ptx: String,
    pub(crate) ptx_version: &'static str,
    /// By kernel, then by architecture.
    pub(crate) entries: BTreeMap<String, BTreeMap<&'static str, Resources>>,
}

impl Source {
    /// All arguments of nvcc but the files.
    pub(crate) fn flags(&self) -> Vec<String> {
        let arch = format!("-arch={}", self.arch);
        FLAGS.iter().map(|flag| (*flag).to_owned()).chain([arch]).collect()
    }
}

/// Compiles one file; fails on a warning, on what ptxas 12.4 refuses, and on spilled registers.
pub(crate) fn compile(tools: &Tools, root: &Path, source: &'static Source) -> Result<Module, Error> {
    let folder = tempfile::tempdir().map_err(Error::at(Path::new("a temporary folder")))?;
    let ptx_file = folder.path().join("module.ptx");
    run(Command::new(&tools.nvcc)
        .current_dir(root.join("kernels"))
        .args(source.flags())
        .arg(format!("{}.cu", source.name))
        .arg("-o")
        .arg(&ptx_file))?;
    let newest = fs::read_to_string(&ptx_file).map_err(Error::at(&ptx_file))?;

    let mut refused = String::new();
    for version in PTX_VERSIONS {
        let ptx = with_version(&newest, version);
        fs::write(&ptx_file, &ptx).map_err(Error::at(&ptx_file))?;
        let reports: Result<Vec<_>, Error> = source
            .proofs
            .iter()
            .map(|&arch| {
                let cubin = folder.path().join("module.cubin");
                run(Command::new(&tools.ptxas)
                    .args(["-v", "-arch", arch])
                    .arg(&ptx_file)
                    .arg("-o")
                    .arg(cubin))
                .map(|report| (arch, report))
            })
            .collect();
        match reports {
            Ok(reports) => {
                return Ok(Module {
                    source,
                    ptx,
                    ptx_version: version,
                    entries: resources(source.name, &reports)?,
                });
            }
            Err(Error::Tool { output, .. }) => refused = output,
            Err(error) => return Err(error),
        }
    }
    let highest = PTX_VERSIONS.last().copied().unwrap_or_default();
    Err(Error::NoPtxVersion { module: source.name, version: PTXAS, highest, output: refused })
}

fn with_version(ptx: &str, version: &str) -> String {
    ptx.lines()
        .map(|line| {
            if line.starts_with(".version ") { format!(".version {version}\n") } else { format!("{line}\n") }
        })
        .collect()
}

/// Reads the lines of `ptxas -v`:
/// `Compiling entry function 'K' for 'A'`, then `S bytes stack frame, W bytes spill stores, R bytes spill
/// loads`, then `Used N registers, [B bytes smem,] ...`.
fn resources(
    module: &'static str,
    reports: &[(&'static str, String)],
) -> Result<BTreeMap<String, BTreeMap<&'static str, Resources>>, Error> {
    let mut entries = BTreeMap::<_, BTreeMap<_, _>>::new();
    for (arch, report) in reports {
        let not_understood = || Error::Report { module, output: report.clone() };
        let mut entry = None;
        let mut stack_bytes = None;
        for line in report.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                entry = rest.split('\'').next();
            } else if line.contains("bytes stack frame") {
                stack_bytes = number_before(line, " bytes stack frame");
                let stores = number_before(line, " bytes spill stores").ok_or_else(not_understood)?;
                let loads = number_before(line, " bytes spill loads").ok_or_else(not_understood)?;
                let spilled = stores + loads;
                if spilled != 0 {
                    return Err(Error::Spills { entry: entry.unwrap_or(module).to_owned(), arch, spilled });
                }
            } else if line.contains("Used ") {
                let found = Resources {
                    registers: number_before(line, " registers").ok_or_else(not_understood)?,
                    shared_bytes: number_before(line, " bytes smem").unwrap_or(0),
                    stack_bytes: stack_bytes.take().ok_or_else(not_understood)?,
                };
                let entry = entry.take().ok_or_else(not_understood)?;
                entries.entry(entry.to_owned()).or_default().insert(*arch, found);
            }
        }
    }
    if entries.is_empty() {
        let output = reports.iter().map(|(_, report)| report.as_str()).collect();
        return Err(Error::Report { module, output });
    }
    Ok(entries)
}

fn number_before(line: &str, words: &str) -> Option<u32> {
    let (before, _) = line.split_once(words)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(spill: u32) -> [(&'static str, String); 1] {
        let text = format!(
            "ptxas info    : 0 bytes gmem\n\
             ptxas info    : Compiling entry function 'kv_copy' for 'sm_90'\n\
             ptxas info    : Function properties for kv_copy\n    \
             8 bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads\n\
             ptxas info    : Used 42 registers, 16384 bytes smem\n"
        );
        [("sm_90", text)]
    }

    #[test]
    fn reports_of_ptxas_are_read() {
        let found = resources("copy", &report(0)).unwrap();
        let expected = Resources { registers: 42, shared_bytes: 16384, stack_bytes: 8 };
        assert_eq!(found["kv_copy"]["sm_90"], expected);
    }

    #[test]
    fn spills_and_silence_are_refused() {
        assert!(matches!(resources("copy", &report(4)), Err(Error::Spills { spilled: 4, .. })));
        assert!(matches!(resources("copy", &[("sm_90", String::new())]), Err(Error::Report { .. })));
    }
}
