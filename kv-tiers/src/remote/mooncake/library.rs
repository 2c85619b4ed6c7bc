//! The library, found at run time.

use std::error::Error;
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::bindings::MooncakeApi;
use crate::remote::OpenError;

/// Names the file if the configuration does not.
const VARIABLE: &str = "MOONCAKE_STORE_LIBRARY";
const DEFAULT: &str = "libmooncake_store.so";

/// Loads it for the rest of the process's life: it has threads of its own, which would lose their code.
///
/// # Errors
/// [`OpenError::Library`]: it is not there, or lacks a function.
pub(super) fn load(file: Option<&Path>) -> Result<&'static MooncakeApi, OpenError> {
    let name = match file {
        Some(file) => file.as_os_str().to_owned(),
        None => std::env::var_os(VARIABLE).unwrap_or_else(|| DEFAULT.into()),
    };
    let error = |error: libloading::Error| {
        // The loader's own words come as the source.
        let why = error.source().map_or_else(|| error.to_string(), |why| why.to_string());
        OpenError::Library { name: name.to_string_lossy().into_owned(), why }
    };
    // SAFETY: runs the initialisers of a library that the user named, as linking against it would.
    let library = unsafe { Library::open(Some(&name), RTLD_NOW | RTLD_LOCAL) }.map_err(error)?;
    // SAFETY: each symbol has the signature that Mooncake's header gives it under this name.
    let api = unsafe { MooncakeApi::from_library(library) }.map_err(error)?;
    Ok(Box::leak(Box::new(api)))
}
