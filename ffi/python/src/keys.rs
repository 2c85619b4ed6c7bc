//! Keys as Python gives them.

use kv_core::key::{BlockKey, NamespaceId};
use kvtier_ffi::{BatchError, KeyBatch, Store};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PySlice, PyString, PyTuple};

use crate::errors::{self, Invalid};
use crate::view::View;

/// Bytes of one key in a plain `bytes` object that holds several.
const PACKED: usize = 16;

/// Keys bound to the namespace of a store: hash once, use often.
///
/// Made by ``Store.keys`` from the runtime's own names and by ``Store.token_keys`` from token ids. Good for every store
/// of the same tenant, model, revision, layout, block size and secret.
///
/// >>> import kvtier
/// >>> with kvtier.Store(4096, 1 << 20, model="llama", revision="1") as store:
/// ...     keys = store.token_keys(range(100), tokens_per_block=16)
/// ...     len(keys), len(keys[2:]), len(keys[0])
/// (6, 4, 16)
#[pyclass(frozen, sequence, module = "kvtier", name = "Keys")]
pub(crate) struct Keys {
    pub(crate) batch: KeyBatch,
    pub(crate) namespace: NamespaceId,
}

#[pymethods]
impl Keys {
    fn __len__(&self) -> usize {
        self.batch.len()
    }

    fn __getitem__<'py>(&self, py: Python<'py>, at: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let keys = self.batch.as_slice();
        if let Ok(slice) = at.cast::<PySlice>() {
            let range = slice.indices(isize::try_from(keys.len())?)?;
            let picked = (0..range.slicelength).filter_map(|i| {
                let at = range.start + isize::try_from(i).ok()? * range.step;
                keys.get(usize::try_from(at).ok()?).copied()
            });
            return Self { batch: KeyBatch::of(picked.collect()), namespace: self.namespace }
                .into_bound_py_any(py);
        }
        let at: isize = at.extract()?;
        let from_end = if at < 0 { at.saturating_add(isize::try_from(keys.len())?) } else { at };
        let key = usize::try_from(from_end).ok().and_then(|at| keys.get(at));
        let key = key.ok_or_else(|| PyIndexError::new_err(format!("there are {} keys", keys.len())))?;
        Ok(PyBytes::new(py, &key.to_bytes()).into_any())
    }

    fn __repr__(&self) -> String {
        format!("<kvtier.Keys of {} blocks>", self.batch.len())
    }
}

/// Keys taken over from Python objects, so that nothing of them is needed once the interpreter is released.
pub(crate) enum TakenKeys {
    /// The bytes of all, and where each ends.
    Raw(Vec<u8>, Vec<usize>),
    Bound(KeyBatch, NamespaceId),
}

impl TakenKeys {
    /// # Errors
    /// `TypeError` and [`Invalid`].
    pub(crate) fn take(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(keys) = object.cast::<Keys>() {
            let keys = keys.get();
            return Ok(Self::Bound(keys.batch.clone(), keys.namespace));
        }
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        if let Ok(list) = object.cast::<PyList>() {
            for key in list.iter() {
                one(&key, &mut bytes, &mut ends)?;
            }
        } else if let Ok(tuple) = object.cast::<PyTuple>() {
            for key in tuple.iter() {
                one(&key, &mut bytes, &mut ends)?;
            }
        } else if object.is_instance_of::<PyString>() {
            return Err(Invalid::new_err("keys is one string; give a list of them"));
        } else if let Some(view) = View::of(object, false)? {
            let each = if view.row_bytes() > 1 { view.row_bytes() } else { PACKED };
            if !view.len().is_multiple_of(each) {
                let text = format!("{} bytes are not a whole number of keys of {each} bytes", view.len());
                return Err(Invalid::new_err(text));
            }
            bytes.extend_from_slice(view.bytes(object.py()));
            ends.extend((1..=view.len() / each).map(|key| key * each));
        } else {
            for key in object.try_iter()? {
                one(&key?, &mut bytes, &mut ends)?;
            }
        }
        Ok(Self::Raw(bytes, ends))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Raw(_, ends) => ends.len(),
            Self::Bound(keys, _) => keys.len(),
        }
    }

    /// The keys in the namespace of a store. Needs no interpreter.
    pub(crate) fn bind(self, store: &Store) -> Result<KeyBatch, WrongKeys> {
        match self {
            Self::Bound(keys, namespace) if namespace == store.namespace_id() => Ok(keys),
            Self::Bound(..) => Err(WrongKeys::Namespace),
            Self::Raw(bytes, ends) => {
                let mut start = 0;
                let key = |end: &usize| {
                    let key = &bytes[start..*end];
                    start = *end;
                    key
                };
                store.keys(ends.iter().map(key)).map_err(WrongKeys::Batch)
            }
        }
    }
}

fn one(key: &Bound<'_, PyAny>, bytes: &mut Vec<u8>, ends: &mut Vec<usize>) -> PyResult<()> {
    if let Ok(key) = key.cast::<PyBytes>() {
        bytes.extend_from_slice(key.as_bytes());
    } else if let Ok(key) = key.cast::<PyString>() {
        bytes.extend_from_slice(key.to_str()?.as_bytes());
    } else if let Some(view) = View::of(key, false)? {
        bytes.extend_from_slice(view.bytes(key.py()));
    } else {
        return Err(Invalid::new_err(format!("key {} is neither bytes nor str", ends.len())));
    }
    ends.push(bytes.len());
    Ok(())
}

/// Why keys cannot be used with a store.
pub(crate) enum WrongKeys {
    Namespace,
    Batch(BatchError),
}

impl From<WrongKeys> for PyErr {
    fn from(wrong: WrongKeys) -> Self {
        match wrong {
            WrongKeys::Namespace => Invalid::new_err("the keys were made by a store of another namespace"),
            WrongKeys::Batch(error) => errors::batch(error),
        }
    }
}

/// A key of [`Keys`] that Python gave back.
pub(crate) fn block_key(bytes: &[u8]) -> PyResult<BlockKey> {
    let wrong = |_| Invalid::new_err(format!("a key of Keys has 16 bytes, not {}", bytes.len()));
    bytes.try_into().map(BlockKey::from_bytes).map_err(wrong)
}
