//! The Rust mirrors of C headers: the kernels' arguments, and the API of a library that is loaded at run time.

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

/// `kernels/kv_kernels.h`.
pub(crate) fn kernel_args(tools: &Tools, root: &Path) -> Result<String, Error> {
    let builder = builder(tools, root, "kernels/kv_kernels.h")
        .allowlist_type("kv_.*")
        .allowlist_var("KV_.*")
        .derive_default(false)
        .parse_callbacks(Box::new(PlainData));
    Ok(builder.generate()?.to_string())
}

/// The C API of Mooncake Store.
pub(crate) const STORE_C: &str = "kv-tiers/src/remote/mooncake/store_c.h";

/// [`STORE_C`] as a table of functions that are all found in a loaded library, or none is used.
pub(crate) fn mooncake_store(tools: &Tools, root: &Path) -> Result<String, Error> {
    let builder = builder(tools, root, STORE_C)
        .allowlist_function("mooncake_store_.*")
        .dynamic_library_name("MooncakeApi")
        .dynamic_link_require_all(true)
        .wrap_unsafe_ops(true);
    Ok(builder.generate()?.to_string())
}

fn builder(tools: &Tools, root: &Path, header: &str) -> bindgen::Builder {
    // SAFETY: this program has one thread, and nobody else reads or writes its environment meanwhile.
    unsafe { std::env::set_var("LIBCLANG_PATH", &tools.libclang) };
    bindgen::Builder::default()
        .header(root.join(header).to_string_lossy())
        // Comments of the header are the documentation of the mirror.
        .clang_arg("-fparse-all-comments")
        .use_core()
        .formatter(bindgen::Formatter::Prettyplease)
}
