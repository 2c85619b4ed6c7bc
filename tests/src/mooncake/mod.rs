//! Libraries with Mooncake Store's C API: a stub with faults, and one around the real client.

mod real;
mod stub;

pub use real::{Master, Node};
pub use stub::{Fault, Stub};

use std::path::{Path, PathBuf};

use kv_tiers::remote::{Limits, MooncakeConfig};

use crate::cxx;

/// A library of one of this folder's sources.
fn library(name: &str, source: &str, flags: Vec<String>) -> cxx::Library {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    cxx::Library {
        name: name.to_owned(),
        sources: vec![root.join("src/mooncake").join(source)],
        include: vec![root.join("../kv-tiers/src/remote/mooncake")],
        flags: [vec!["-Wall".to_owned(), "-Wextra".to_owned(), "-Werror".to_owned()], flags].concat(),
    }
}

/// A client of that master, by that library, for blocks up to `record_bytes`.
#[must_use]
pub fn config(library: PathBuf, master: String, record_bytes: usize) -> MooncakeConfig {
    MooncakeConfig {
        library: Some(library),
        master,
        metadata: "P2PHANDSHAKE".to_owned(),
        hostname: "127.0.0.1".to_owned(),
        protocol: "tcp".to_owned(),
        devices: String::new(),
        segment_bytes: 0,
        record_bytes,
        limits: Limits::default(),
    }
}
