//! Makes what is generated from `kernels/`, and from a C API elsewhere, and checked in, or checks that it is current.
//!
//! ```text
//! kernels/*.cu ── nvcc ──► PTX ── lower .version ──► kernels/generated/*.ptx ── ptxas ──► resources
//! kernels/kv_kernels.h ── bindgen ──► kv-cuda/src/kernels/args.rs                            │
//! kv-tiers/src/remote/mooncake/store_c.h ── bindgen ──► bindings.rs beside it                │
//! all of them ── hashes ──► kernels/generated/manifest.json ◄────────────────────────────────┘
//! ```
//!
//! `make kernels` and `make kernels-check` run it with the pinned tools. Nobody who only builds kvtier needs it.

mod bindings;
mod compile;
mod manifest;
mod output;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use output::{Error, Generated};
use tools::Tools;

const USAGE: &str = "usage: kvtier-kernels (write | check) TOOLS
  write   make the generated files
  check   make them in a temporary folder and fail if those checked in differ
  TOOLS   folder that holds the pinned tools, see the Makefile";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [verb, tools] = &args[..] else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let result = match verb.as_str() {
        "write" => write(Path::new(tools)),
        "check" => check(Path::new(tools)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kernels: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The repository that this was built in.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn write(tools: &Path) -> Result<(), Error> {
    let generated = generate(tools)?;
    generated.write_to(&root())?;
    println!("kernels: {} files written", generated.files.len());
    Ok(())
}

fn check(tools: &Path) -> Result<(), Error> {
    let generated = generate(tools)?;
    generated.compare_with(&root())?;
    println!("kernels: {} generated files are current", generated.files.len());
    Ok(())
}

fn generate(tools: &Path) -> Result<Generated, Error> {
    let root = root();
    let tools = Tools::at(tools)?;
    let modules = compile::MODULES
        .iter()
        .map(|source| compile::compile(&tools, &root, source))
        .collect::<Result<Vec<_>, _>>()?;
    let mut generated = Generated::default();
    generated.add("kv-cuda/src/kernels/args.rs", bindings::kernel_args(&tools, &root)?);
    generated.add("kv-tiers/src/remote/mooncake/bindings.rs", bindings::mooncake_store(&tools, &root)?);
    for module in &modules {
        generated.add(&format!("{}/{}.ptx", output::FOLDER, module.source.name), module.ptx.clone());
    }
    let manifest = manifest::Manifest::new(&tools, &root, &modules, &generated)?;
    generated.add(manifest::PATH, manifest.to_json()?);
    Ok(generated)
}
