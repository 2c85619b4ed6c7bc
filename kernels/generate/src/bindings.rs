//! The Rust mirror of `kv_kernels.h`.

use std::path::Path;

use bindgen::callbacks::{DeriveInfo, ParseCallbacks};

use crate::output::Error;
use crate::tools::Tools;

/// The arguments are passed to the driver as bytes: no padding, and every bit pattern is a value.
#[derive(Debug)]
struct PlainData;

impl ParseCallbacks for PlainData {
    fn add_derives(&self, _: &DeriveInfo<'_>) -> Vec<String> {
        ["PartialEq", "Eq", "bytemuck::Pod", "bytemuck::Zeroable"].map(String::from).to_vec()
    }
}

pub(crate) fn bindings(tools: &Tools, root: &Path) -> Result<String, Error> {
    // SAFETY: this program has one thread, and nobody else reads or writes its environment meanwhile.
    unsafe { std::env::set_var("LIBCLANG_PATH", &tools.libclang) };
    let header = root.join("kernels/kv_kernels.h");
    let bindings = bindgen::Builder::default()
        .header(header.to_string_lossy())
        // Comments of the header are the documentation of the mirror.
        .clang_arg("-fparse-all-comments")
        .allowlist_type("kv_.*")
        .allowlist_var("KV_.*")
        .derive_default(false)
        .use_core()
        .parse_callbacks(Box::new(PlainData))
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()?;
    Ok(bindings.to_string())
}
