//! The header as a C compiler reads it, back in Rust: what the ABI test compares with the source.

use std::path::Path;

use crate::Error;

pub(crate) const PATH: &str = "tests/abi/header.rs";

pub(crate) fn generate(header: &Path, libclang: &Path) -> Result<String, Error> {
    // SAFETY: this program has one thread, and nobody else reads or writes its environment meanwhile.
    unsafe { std::env::set_var("LIBCLANG_PATH", libclang) };
    let bindings = bindgen::Builder::default()
        .header(header.to_string_lossy())
        .allowlist_item("kvtier_.*")
        .allowlist_item("KVTIER_.*")
        .generate_comments(false)
        .derive_default(false)
        .layout_tests(false)
        .use_core()
        .raw_line("// What bindgen reads in include/kvtier.h.")
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()?;
    Ok(bindings.to_string())
}
