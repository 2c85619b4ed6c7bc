//! Memory of Python objects as runs of bytes, and what keeps it where it is.

use std::ptr;

use kvtier_ffi::{Buffers, Run};
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList, PyTuple};

use crate::dlpack::Tensor;
use crate::errors::{self, Invalid};
use crate::owner::{Owner, Owners};
use crate::view::View;

/// Memory by address, for runtimes that know theirs: the cheapest form of `buffers`.
///
/// `pointers` are the first bytes of the runs, the same number for each key, in the order of the block's bytes;
/// `sizes` is the length of every run, or a list with that of each. Both may be arrays of 8-byte integers. `keep` is
/// anything that owns the memory: it is kept until the operation is over. Nothing can check an address; a wrong one is
/// undefined behaviour.
///
/// >>> import ctypes, kvtier
/// >>> page = ctypes.create_string_buffer(b"k" * 2048 + b"v" * 2048, 4096)
/// >>> start = ctypes.addressof(page)
/// >>> with kvtier.Store(4096, 1 << 20) as store:
/// ...     runs = kvtier.Runs([start, start + 2048], 2048, keep=page)
/// ...     store.put([b"hash"], runs).wait().done
/// 1
#[pyclass(frozen, module = "kvtier", name = "Runs")]
pub(crate) struct Runs {
    runs: Vec<Run>,
    keep: Option<Py<PyAny>>,
}

#[pymethods]
impl Runs {
    #[new]
    #[pyo3(signature = (pointers, sizes, *, keep = None))]
    fn new(pointers: &Bound<'_, PyAny>, sizes: &Bound<'_, PyAny>, keep: Option<Py<PyAny>>) -> PyResult<Self> {
        let pointers = numbers(pointers)?;
        let sizes = if sizes.is_instance_of::<PyInt>() {
            vec![sizes.extract()?; pointers.len()]
        } else {
            numbers(sizes)?
        };
        if pointers.len() != sizes.len() {
            let text = format!("{} pointers and {} sizes", pointers.len(), sizes.len());
            return Err(Invalid::new_err(text));
        }
        let run = |(start, len): (&u64, &u64)| run(*start, *len);
        Ok(Self { runs: pointers.iter().zip(&sizes).map(run).collect(), keep })
    }

    fn __len__(&self) -> usize {
        self.runs.len()
    }

    fn __repr__(&self) -> String {
        format!("<kvtier.Runs, {} of them>", self.runs.len())
    }
}

fn run(start: u64, len: u64) -> Run {
    Run { start: ptr::with_exposed_provenance_mut(start as usize), len: len as usize }
}

/// A list of integers, or an array of 8-byte ones.
fn numbers(object: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    if !object.is_instance_of::<PyList>()
        && let Some(view) = View::of(object, false)?
        && view.row_bytes() == size_of::<u64>()
    {
        let (items, _) = view.bytes(object.py()).as_chunks();
        return Ok(items.iter().map(|item| u64::from_ne_bytes(*item)).collect());
    }
    object.extract()
}

/// A contiguous piece of memory and what keeps it.
pub(crate) struct Memory {
    pub(crate) run: Run,
    /// The GPU, unless it is ordinary memory.
    pub(crate) gpu: Option<u32>,
    pub(crate) owner: Option<Owner>,
}

impl Memory {
    /// Of an object with the buffer protocol, a torch tensor, anything with `__dlpack__`, or `(address, length)`.
    ///
    /// # Errors
    /// [`Invalid`] and what the object raises.
    pub(crate) fn of(object: &Bound<'_, PyAny>, writable: bool) -> PyResult<Self> {
        if let Ok(pair) = object.cast::<PyTuple>() {
            let (start, len) = pair.extract()?;
            return Ok(Self { run: run(start, len), gpu: None, owner: None });
        }
        if let Some(view) = View::of(object, writable)? {
            let run = Run { start: view.start(), len: view.len() };
            return Ok(Self { run, gpu: None, owner: Some(Owner::View(view)) });
        }
        if let Some(data_ptr) = object.getattr_opt("data_ptr")? {
            return Self::of_torch(object, &data_ptr);
        }
        if let Some(tensor) = Tensor::of(object)? {
            let run = Run { start: tensor.start, len: tensor.len };
            return Ok(Self { run, gpu: tensor.gpu, owner: Some(Owner::Object(tensor.capsule)) });
        }
        let kind = object.get_type().name()?;
        Err(Invalid::new_err(format!(
            "{kind} has no memory that can be used: give an object with the buffer protocol, a tensor, or \
             (address, length)"
        )))
    }

    /// Without importing torch, and for tensors that DLPack refuses (those of dtypes that it does not know).
    fn of_torch(tensor: &Bound<'_, PyAny>, data_ptr: &Bound<'_, PyAny>) -> PyResult<Self> {
        if !tensor.call_method0("is_contiguous")?.extract::<bool>()? {
            return Err(Invalid::new_err("the tensor is not contiguous"));
        }
        let device = tensor.getattr("device")?;
        let kind: String = device.getattr("type")?.extract()?;
        let gpu = match kind.as_str() {
            "cpu" => None,
            "cuda" => Some(device.getattr("index")?.extract::<Option<u32>>()?.unwrap_or(0)),
            other => return Err(Invalid::new_err(format!("memory of device type {other} cannot be used"))),
        };
        let run = run(data_ptr.call0()?.extract()?, tensor.getattr("nbytes")?.extract()?);
        Ok(Self { run, gpu, owner: Some(Owner::Object(tensor.clone().unbind())) })
    }

    /// In ordinary memory.
    fn on_host(self) -> PyResult<Self> {
        match self.gpu {
            None => Ok(self),
            Some(_) => Err(Invalid::new_err(
                "the tensor is in GPU memory: register a Pool, or copy it to host memory first",
            )),
        }
    }
}

/// What the argument `buffers` says.
pub(crate) struct Blocks {
    pub(crate) buffers: Buffers,
    pub(crate) owners: Owners,
}

impl Blocks {
    /// For `keys` keys of `block_bytes` each, to be written by kvtier if `writable`.
    ///
    /// # Errors
    /// [`Invalid`] and what the objects raise.
    pub(crate) fn of(
        object: &Bound<'_, PyAny>,
        keys: usize,
        block_bytes: usize,
        writable: bool,
    ) -> PyResult<Self> {
        if let Ok(runs) = object.cast::<Runs>() {
            let Runs { runs, keep } = runs.get();
            let owners = keep.iter().map(|keep| Owner::Object(keep.clone_ref(object.py()))).collect();
            return Ok(Self { buffers: Buffers::even(runs.clone(), keys).map_err(errors::batch)?, owners });
        }
        if let Ok(list) = object.cast::<PyList>() {
            return Self::of_each(list, writable);
        }
        let Memory { run: all, owner, .. } = Memory::of(object, writable)?.on_host()?;
        if Some(all.len) != keys.checked_mul(block_bytes) {
            return Err(Invalid::new_err(format!(
                "one buffer of {} bytes for {keys} keys; {keys} blocks of {block_bytes} bytes are needed, or a list \
                 with the buffers of each key",
                all.len
            )));
        }
        let block = |key| Run { start: all.start.wrapping_add(key * block_bytes), len: block_bytes };
        let buffers = Buffers::even((0..keys).map(block).collect(), keys).map_err(errors::batch)?;
        Ok(Self { buffers, owners: owner.into_iter().collect() })
    }

    /// One item for each key: memory, a list of memories, or `None`.
    fn of_each(items: &Bound<'_, PyList>, writable: bool) -> PyResult<Self> {
        let (mut runs, mut counts, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for item in items.iter() {
            let before = runs.len();
            let mut add = |object: &Bound<'_, PyAny>| {
                let Memory { run, owner, .. } = Memory::of(object, writable)?.on_host()?;
                runs.push(run);
                owners.extend(owner);
                PyResult::Ok(())
            };
            if let Ok(several) = item.cast::<PyList>() {
                several.iter().try_for_each(|object| add(&object))?;
            } else if !item.is_none() {
                add(&item)?;
            }
            counts.push(u32::try_from(runs.len() - before)?);
        }
        Ok(Self { buffers: Buffers::counted(runs, &counts).map_err(errors::batch)?, owners })
    }
}
