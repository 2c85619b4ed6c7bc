//! Host memory of others, pinned and mapped for the GPU.

use std::sync::Arc;

use parking_lot::Mutex;

use super::context::log_failure;
use super::memory::PORTABLE_MAPPED;
use super::{ALREADY_REGISTERED, Context, CudaError, Current, DevicePtr, call};
use crate::memory::{HostMemory, HostSpan};

/// Most bytes of one registration. A call that pins hundreds of gigabytes holds locks of the kernel for
/// minutes and fails as a whole; pieces of 1 GiB do not.
const MAX_CHUNK: usize = 1 << 30;

/// A [`HostMemory`] that the driver knows. Given back when the last of its users drops it, which must come
/// after the last copy.
pub struct Registration {
    /// Taken out on drop.
    registered: Option<Arc<Registered>>,
}

struct Registered {
    context: Arc<Context>,
    memory: Arc<dyn HostMemory>,
    /// Bytes of every chunk but the last.
    chunk_bytes: usize,
    chunks: Vec<Chunk>,
}

struct Chunk {
    /// For the GPU.
    device_at: DevicePtr,
    /// False if somebody else registered it before, who will give it back.
    ours: bool,
}

/// What is registered. Several devices of a process share an arena, the driver takes it only once, and it
/// must stay registered until the last of them has closed. Held while registering and giving back, so that
/// neither meets the other half done.
static KNOWN: Mutex<Vec<Arc<Registered>>> = Mutex::new(Vec::new());

impl Registration {
    /// Registers all of `memory`, in chunks, unless it is registered already.
    ///
    /// # Errors
    /// [`CudaError`]; nothing stays registered.
    pub fn of(current: &Current, memory: &Arc<dyn HostMemory>) -> Result<Self, CudaError> {
        let mut known = KNOWN.lock();
        let same = |other: &&Arc<Registered>| {
            other.memory.base() == memory.base() && other.memory.size() == memory.size()
        };
        if let Some(registered) = known.iter().find(same) {
            return Ok(Self { registered: Some(Arc::clone(registered)) });
        }
        let granule = memory.granule().max(1);
        let chunk_bytes = (MAX_CHUNK / granule).max(1).saturating_mul(granule);
        let mut registered = Registered {
            context: Arc::clone(current.context()),
            memory: Arc::clone(memory),
            chunk_bytes,
            chunks: Vec::with_capacity(memory.size().div_ceil(chunk_bytes)),
        };
        // On failure, dropping it gives back the chunks that were registered.
        for start in (0..memory.size()).step_by(chunk_bytes) {
            registered.add(current, start)?;
        }
        let registered = Arc::new(registered);
        known.push(Arc::clone(&registered));
        Ok(Self { registered: Some(registered) })
    }

    /// Where the GPU sees `span`, if it lies in one chunk: kernels need that.
    #[must_use]
    pub fn device_address(&self, span: HostSpan) -> Option<DevicePtr> {
        let Registered { chunk_bytes, chunks, .. } = &**self.registered.as_ref()?;
        let last = span.offset.checked_add(span.len)?.checked_sub(1)?;
        let chunk = span.offset / chunk_bytes;
        (last / chunk_bytes == chunk)
            .then(|| Some(chunks.get(chunk)?.device_at.offset(span.offset % chunk_bytes)))
            .flatten()
    }

    /// Bytes from `offset` to the end of its chunk. One copy of the driver's must not cross it.
    #[must_use]
    pub fn bytes_to_border(&self, offset: usize) -> usize {
        let chunk_bytes = self.registered.as_ref().map_or(usize::MAX, |registered| registered.chunk_bytes);
        chunk_bytes - offset % chunk_bytes
    }

    /// Whether a chunk begins at `offset`: then a copy must not be joined to one that ends there.
    #[must_use]
    pub fn starts_at_border(&self, offset: usize) -> bool {
        self.registered.as_ref().is_some_and(|registered| offset.is_multiple_of(registered.chunk_bytes))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut known = KNOWN.lock();
        let registered = self.registered.take();
        known.retain(|other| {
            // Its own and that of the list: nobody else has it.
            let last = Arc::strong_count(other) == 2;
            !(last && registered.as_ref().is_some_and(|own| Arc::ptr_eq(own, other)))
        });
        drop(registered);
    }
}

impl Registered {
    fn add(&mut self, current: &Current, start: usize) -> Result<(), CudaError> {
        let bytes = self.chunk_bytes.min(self.memory.size() - start);
        // SAFETY: start < size, inside the allocation.
        let at = unsafe { self.memory.base().add(start) }.as_ptr();
        let driver = current.driver();
        // SAFETY: the memory is alive as long as `self`, and unregistered before that ends.
        let ours = match unsafe { call!(driver, cuMemHostRegister_v2(at.cast(), bytes, PORTABLE_MAPPED)) } {
            Ok(()) => true,
            Err(CudaError { code: ALREADY_REGISTERED, .. }) => false,
            Err(error) => return Err(error),
        };
        self.chunks.push(Chunk { device_at: DevicePtr(0), ours });
        let mut device_at = 0;
        // SAFETY: writes one address, of memory that is registered.
        unsafe { call!(driver, cuMemHostGetDevicePointer_v2(&raw mut device_at, at.cast(), 0)) }?;
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.device_at = DevicePtr(device_at);
        }
        Ok(())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Ok(current) = self.context.enter() else { return };
        for (at, _) in self.chunks.iter().enumerate().filter(|(_, chunk)| chunk.ours) {
            // SAFETY: a chunk's start, inside the allocation.
            let start = unsafe { self.memory.base().add(at * self.chunk_bytes) };
            // SAFETY: registered by us, unregistered once, after the last copy as its users warrant.
            log_failure(unsafe { call!(current.driver(), cuMemHostUnregister(start.as_ptr().cast())) });
        }
    }
}
