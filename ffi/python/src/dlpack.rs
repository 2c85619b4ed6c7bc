//! Memory of a Python object through DLPack (`__dlpack__`), version 0: the one that every library gives when it is
//! called without arguments.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods};

use crate::errors::Invalid;

/// `DLTensor` of `dlpack.h`.
#[repr(C)]
struct RawTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

const NAME: &CStr = c"dltensor";
/// `kDLCPU`, `kDLCUDA`, `kDLCUDAHost` (pinned).
const CPU: i32 = 1;
const CUDA: i32 = 2;
const CUDA_HOST: i32 = 3;

/// Where a tensor's bytes are.
pub(crate) struct Tensor {
    pub(crate) start: *mut u8,
    pub(crate) len: usize,
    /// The GPU, unless it is ordinary memory.
    pub(crate) gpu: Option<u32>,
    /// Keeps the memory: it is not consumed, so its own destructor gives the tensor back.
    pub(crate) capsule: Py<PyAny>,
}

impl Tensor {
    /// `None` when the object has no `__dlpack__`.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let Some(export) = object.getattr_opt("__dlpack__")? else { return Ok(None) };
        let capsule = export.call0()?;
        let raw: NonNull<RawTensor> = match capsule.cast::<PyCapsule>() {
            Ok(capsule) => capsule.pointer_checked(Some(NAME))?.cast(),
            Err(_) => return Err(Invalid::new_err("__dlpack__ did not return a capsule")),
        };
        // SAFETY: a capsule of this name holds a `DLManagedTensor`, which begins with a `DLTensor`.
        let raw = unsafe { raw.as_ref() };
        let axes = usize::try_from(raw.ndim).unwrap_or(0);
        let extents = |first: *const i64| {
            if axes == 0 || first.is_null() {
                return None;
            }
            // SAFETY: both arrays have `ndim` entries, if they are there.
            Some(unsafe { std::slice::from_raw_parts(first, axes) })
        };
        let shape = extents(raw.shape).unwrap_or(&[]);
        let items = shape.iter().try_fold(1_i64, |all, extent| all.checked_mul(*extent));
        if let Some(strides) = extents(raw.strides) {
            let mut dense = 1;
            for (extent, stride) in shape.iter().zip(strides).rev() {
                if *extent > 1 && *stride != dense {
                    return Err(Invalid::new_err("the tensor is not contiguous"));
                }
                dense *= extent;
            }
        }
        let bits = u64::from(raw.bits) * u64::from(raw.lanes);
        let bytes = items.and_then(|items| (items as u64).checked_mul(bits)).map(|bits| bits.div_ceil(8));
        let len = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let len = len.ok_or_else(|| Invalid::new_err("the tensor is too large"))?;
        let gpu = match raw.device_type {
            CPU | CUDA_HOST => None,
            CUDA => Some(u32::try_from(raw.device_id).unwrap_or(0)),
            other => {
                return Err(Invalid::new_err(format!("memory of DLPack device type {other} cannot be used")));
            }
        };
        let start = raw.data.cast::<u8>().wrapping_add(usize::try_from(raw.byte_offset).unwrap_or(0));
        Ok(Some(Self { start, len, gpu, capsule: capsule.unbind() }))
    }
}
