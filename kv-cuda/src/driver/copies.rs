//! Asynchronous copies on the copy engines.

use std::ptr::NonNull;

use cudarc::driver::sys::{CUmemLocation, CUmemLocationType, CUmemcpyAttributes, CUmemcpySrcAccessOrder};

use super::{CudaError, Current, DeviceBuffer, DevicePtr, Stream, call};
use crate::device::Direction;

/// Most copies in one `cuMemcpyBatchAsync`. Driver 580.159 crashed on 51,828 (vLLM issue 49276).
pub(crate) const MAX_BATCH: usize = 4096;

/// Copies: `device` is memory of the GPU, `host` pinned memory of this process. In the three parallel
/// arrays that the driver wants.
#[derive(Default)]
pub struct CopyList {
    device: Vec<u64>,
    host: Vec<u64>,
    bytes: Vec<usize>,
}

impl CopyList {
    /// No copies.
    pub fn clear(&mut self) {
        self.device.clear();
        self.host.clear();
        self.bytes.clear();
    }

    /// Number of copies.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds a copy, or lengthens the last one if the new one continues it on both sides.
    pub fn push(&mut self, device: DevicePtr, host: u64, bytes: usize) {
        if let (Some(&last_device), Some(&last_host), Some(last)) =
            (self.device.last(), self.host.last(), self.bytes.last_mut())
        {
            let end = *last as u64;
            if last_device + end == device.0 && last_host + end == host {
                *last += bytes;
                return;
            }
        }
        self.push_apart(device, host, bytes);
    }

    /// Adds a copy of its own: the last one ends at a border that no copy may cross.
    pub fn push_apart(&mut self, device: DevicePtr, host: u64, bytes: usize) {
        self.device.push(device.0);
        self.host.push(host);
        self.bytes.push(bytes);
    }
}

/// How copies are handed to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submission {
    /// Many in one call.
    Batch,
    /// One call each.
    Loop,
}

impl Stream {
    /// Queues one copy within device memory.
    ///
    /// # Errors
    /// [`CudaError`].
    ///
    /// # Safety
    /// As for [`Stream::copy`].
    pub unsafe fn copy_on_device(
        &self,
        current: &Current,
        to: DevicePtr,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<(), CudaError> {
        // SAFETY: passed on to the caller.
        unsafe { call!(current.driver(), cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.raw())) }
    }

    /// Queues one copy from pinned host memory.
    ///
    /// # Errors
    /// [`CudaError`].
    ///
    /// # Safety
    /// As for [`Stream::copy`].
    pub unsafe fn upload(
        &self,
        current: &Current,
        to: DevicePtr,
        from: NonNull<u8>,
        bytes: usize,
    ) -> Result<(), CudaError> {
        // SAFETY: passed on to the caller.
        unsafe {
            call!(current.driver(), cuMemcpyHtoDAsync_v2(to.0, from.as_ptr().cast(), bytes, self.raw()))
        }
    }

    /// Queues writing zeros all over a buffer of ours, which nothing else uses yet.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn zero(&self, current: &Current, buffer: &DeviceBuffer) -> Result<(), CudaError> {
        // SAFETY: exactly its bytes; freeing it waits for this.
        unsafe { call!(current.driver(), cuMemsetD8Async(buffer.at().0, 0, buffer.bytes(), self.raw())) }
    }

    /// Queues copies.
    ///
    /// # Errors
    /// [`CudaError`]; some of the copies may have been queued all the same.
    ///
    /// # Safety
    /// Every address range is allocated, the host's are pinned, and both stay so, used by nobody in a way
    /// that conflicts, until the stream has passed this point.
    pub unsafe fn copy(
        &self,
        current: &Current,
        direction: Direction,
        copies: &mut CopyList,
        how: Submission,
    ) -> Result<(), CudaError> {
        match how {
            // SAFETY: passed on to the caller.
            Submission::Batch => unsafe { self.copy_batches(current, direction, copies) },
            Submission::Loop => (0..copies.len()).try_for_each(|at| {
                let (device, host, bytes) = (copies.device[at], copies.host[at], copies.bytes[at]);
                let host = std::ptr::with_exposed_provenance_mut(host as usize);
                let driver = current.driver();
                // SAFETY: passed on to the caller.
                unsafe {
                    match direction {
                        Direction::ToDevice => {
                            call!(driver, cuMemcpyHtoDAsync_v2(device, host, bytes, self.raw()))
                        }
                        Direction::ToHost => {
                            call!(driver, cuMemcpyDtoHAsync_v2(host, device, bytes, self.raw()))
                        }
                    }
                }
            }),
        }
    }

    /// # Safety
    /// As for [`Stream::copy`].
    unsafe fn copy_batches(
        &self,
        current: &Current,
        direction: Direction,
        copies: &mut CopyList,
    ) -> Result<(), CudaError> {
        let driver = current.driver();
        let Some(batch) = driver.table.cuMemcpyBatchAsync else {
            // SAFETY: passed on to the caller.
            return unsafe { self.copy(current, direction, copies, Submission::Loop) };
        };
        let nowhere = CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
        // The source is read in the order of the stream, not earlier: it may still be written by work
        // before this, and by others after it.
        let mut attributes = CUmemcpyAttributes {
            srcAccessOrder: CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
            srcLocHint: nowhere,
            dstLocHint: nowhere,
            flags: 0,
        };
        let (to, from) = match direction {
            Direction::ToDevice => (&mut copies.device, &mut copies.host),
            Direction::ToHost => (&mut copies.host, &mut copies.device),
        };
        let pieces =
            to.chunks_mut(MAX_BATCH).zip(from.chunks_mut(MAX_BATCH)).zip(copies.bytes.chunks_mut(MAX_BATCH));
        for ((to, from), bytes) in pieces {
            let (mut first, mut failed) = (0usize, 0usize);
            // SAFETY: three arrays of the same length, one attribute that begins with copy 0; the rest is
            // the caller's word.
            let status = unsafe {
                batch(
                    to.as_mut_ptr(),
                    from.as_mut_ptr(),
                    bytes.as_mut_ptr(),
                    bytes.len(),
                    &raw mut attributes,
                    &raw mut first,
                    1,
                    &raw mut failed,
                    self.raw(),
                )
            };
            driver.check("cuMemcpyBatchAsync", status)?;
        }
        Ok(())
    }
}
