//! Rust errors as the exceptions of `kvtier.errors`.

use kvtier_ffi::pool::PoolError;
use kvtier_ffi::store::{ClearError, CloseError};
use kvtier_ffi::task::LayerError;
use kvtier_ffi::{BatchError, SubmitError};
use pyo3::prelude::*;

macro_rules! exceptions {
    ($($name:ident)*) => { $(pyo3::import_exception!(kvtier.errors, $name);)* };
}
exceptions!(Busy Closed Forked Invalid LoadFailed OpenFailed Timeout Unclean);

/// `what: why: why that`.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some errors repeat their source in their own text.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

pub(crate) fn batch(error: BatchError) -> PyErr {
    Invalid::new_err(error.to_string())
}

pub(crate) fn submit(error: SubmitError) -> PyErr {
    let text = error.to_string();
    match error {
        SubmitError::Busy => Busy::new_err(text),
        SubmitError::Closed => Closed::new_err(text),
        SubmitError::Batch(_)
        | SubmitError::NoSuchBlock { .. }
        | SubmitError::NoLog
        | SubmitError::OtherPool => Invalid::new_err(text),
    }
}

pub(crate) fn open(error: &kvtier_ffi::OpenError) -> PyErr {
    match error {
        kvtier_ffi::OpenError::BlockBytes(_) | kvtier_ffi::OpenError::HostBytes { .. } => {
            Invalid::new_err(error.to_string())
        }
        kvtier_ffi::OpenError::Remote(kvtier_ffi::slow::RemoteError::Scheme(_)) => {
            Invalid::new_err(error.to_string())
        }
        other => OpenFailed::new_err(chain(other)),
    }
}

pub(crate) fn clear(error: &ClearError) -> PyErr {
    match error {
        ClearError::Closed => Closed::new_err(error.to_string()),
        ClearError::Io(_) | ClearError::Engine(_) => Unclean::new_err(chain(error)),
    }
}

pub(crate) fn close(error: &CloseError) -> PyErr {
    match error {
        CloseError::Closed => Closed::new_err(error.to_string()),
        CloseError::Engine(_) => Unclean::new_err(chain(error)),
    }
}

pub(crate) fn pool(error: &PoolError) -> PyErr {
    match error {
        PoolError::Closed => Closed::new_err(error.to_string()),
        PoolError::BlockBytes { .. } => Invalid::new_err(error.to_string()),
        PoolError::Taken | PoolError::Host(_) | PoolError::Cuda(_) => OpenFailed::new_err(chain(error)),
    }
}

pub(crate) fn layer(error: LayerError) -> PyErr {
    match error {
        LayerError::TimedOut => Timeout::new_err(error.to_string()),
        LayerError::Failed(_) => LoadFailed::new_err(error.to_string()),
        LayerError::NotALoad => Invalid::new_err(error.to_string()),
    }
}
