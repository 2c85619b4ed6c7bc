//! Memory of a Python object through the buffer protocol.
//!
//! The protocol has been part of every CPython since 3.0 with one structure and two functions, but of the *limited* API
//! only since 3.11, so that PyO3 leaves it out for a wheel that runs on 3.10 as well. It is declared here.

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;

use pyo3::ffi::{Py_ssize_t, PyObject};
use pyo3::prelude::*;

/// `Py_buffer` of `Include/cpython/object.h` (3.10) and `Include/pybuffer.h` (3.11 on).
#[repr(C)]
struct RawView {
    buf: *mut c_void,
    obj: *mut PyObject,
    len: Py_ssize_t,
    itemsize: Py_ssize_t,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut Py_ssize_t,
    strides: *mut Py_ssize_t,
    suboffsets: *mut Py_ssize_t,
    internal: *mut c_void,
}

const WRITABLE: c_int = 0x1;
/// With a shape, and contiguous in C order as nothing else is asked for.
const ND: c_int = 0x8;

unsafe extern "C" {
    fn PyObject_GetBuffer(object: *mut PyObject, view: *mut RawView, flags: c_int) -> c_int;
    fn PyBuffer_Release(view: *mut RawView);
}

/// An exported buffer: while it lives, the object can neither move nor resize its memory. Must be dropped by a thread
/// that is attached to the interpreter; see [`Owners`](crate::owner::Owners).
pub(crate) struct View(Box<RawView>);

// SAFETY: CPython ties a view to no thread. The memory is touched only through the addresses taken from it.
unsafe impl Send for View {}
// SAFETY: as above; a shared reference gives numbers only.
unsafe impl Sync for View {}

impl View {
    /// `None` when the object does not have the protocol at all.
    ///
    /// # Errors
    /// `BufferError` or `ValueError` when the memory is not contiguous, or not writable.
    pub(crate) fn of(object: &Bound<'_, PyAny>, writable: bool) -> PyResult<Option<Self>> {
        let mut raw = Box::new(MaybeUninit::<RawView>::uninit());
        let flags = if writable { ND | WRITABLE } else { ND };
        // SAFETY: the object is alive and the interpreter attached; the box has room for the structure and stays where
        // it is, as some exporters require.
        let status = unsafe { PyObject_GetBuffer(object.as_ptr(), raw.as_mut_ptr(), flags) };
        if status == 0 {
            // SAFETY: filled in by the call that succeeded.
            return Ok(Some(Self(unsafe { raw.assume_init() })));
        }
        let error = PyErr::fetch(object.py());
        if error.is_instance_of::<pyo3::exceptions::PyTypeError>(object.py()) { Ok(None) } else { Err(error) }
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.0.buf.cast()
    }

    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.0.len).unwrap_or(0)
    }

    /// Bytes of one row of an array of two or more dimensions, or of one item of any other.
    pub(crate) fn row_bytes(&self) -> usize {
        let item = usize::try_from(self.0.itemsize).unwrap_or(0);
        if self.0.ndim < 2 || self.0.shape.is_null() {
            return item;
        }
        // SAFETY: the exporter gave `ndim` extents, which live as long as the view.
        let shape =
            unsafe { std::slice::from_raw_parts(self.0.shape, usize::try_from(self.0.ndim).unwrap_or(0)) };
        shape[1..].iter().fold(item, |bytes, extent| bytes * usize::try_from(*extent).unwrap_or(0))
    }

    /// The bytes. Other threads of Python may write them meanwhile unless the interpreter stays attached.
    pub(crate) fn bytes<'a>(&'a self, _attached: Python<'a>) -> &'a [u8] {
        if self.len() == 0 || self.0.buf.is_null() {
            return &[];
        }
        // SAFETY: the exporter warrants `len` contiguous bytes while the view lives, and nobody runs Python meanwhile.
        unsafe { std::slice::from_raw_parts(self.start(), self.len()) }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: got from `PyObject_GetBuffer` and released once; `Owners` sees to it that the thread is attached.
        unsafe { PyBuffer_Release(&raw mut *self.0) };
    }
}
