//! Paged tensors of a runtime, registered so that blocks go straight between them and the host arena.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kv_core::ids::{JobId, SlotId};
use kv_core::job::Urgency;
use kv_core::layout::Placement;
use kv_cuda::cuda::{CudaConfig, CudaDevice, PoolMemory};
use kv_cuda::driver::{DevicePtr, RuntimeStream};
use kv_cuda::{BlockCopy, Device, DeviceError, Direction, HostDevice, HostMemory, LayerProgress};

use crate::copies::{Copies, Ledger};

/// Where the runtime's tensors are.
#[derive(Clone, Debug)]
pub enum PoolDevice {
    /// In ordinary memory of this process.
    Host,
    /// On a GPU.
    Cuda {
        /// Its number in this process.
        ordinal: u32,
        /// The streams on which the runtime reads and writes the pool. Every copy waits for what is queued in them
        /// when it starts.
        streams: Vec<RuntimeStream>,
    },
}

/// A runtime's tensors.
pub struct PoolConfig {
    /// How blocks lie in them.
    pub placement: Placement,
    /// First byte of each buffer, as the placement numbers them.
    pub buffers: Vec<NonNull<u8>>,
    /// Where they are.
    pub device: PoolDevice,
    /// Kept until the pool is closed and its last copy is over. What keeps the tensors allocated goes in here.
    pub owner: Arc<dyn Any + Send + Sync>,
}

/// Why a pool was not registered.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Blocks of two sizes.
    #[error("a block of the pool has {pool} bytes, one of the store {store}")]
    BlockBytes {
        /// As the placement says.
        pool: usize,
        /// As the store was opened.
        store: usize,
    },
    /// The store has one already: an arena is registered with one device.
    #[error("the store has a pool already; close it first")]
    Taken,
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
    /// The stand-in for a device.
    #[error(transparent)]
    Host(#[from] DeviceError),
    /// The GPU.
    #[error(transparent)]
    Cuda(#[from] kv_cuda::cuda::OpenError),
}

/// A registered pool. Made by [`Store::register`](crate::Store::register).
pub struct Pool {
    device: Arc<dyn Device>,
    ledger: Arc<Ledger>,
    closed: AtomicBool,
    /// Tells the store that it may have another.
    taken: Arc<AtomicBool>,
}

impl Pool {
    /// # Safety
    /// See [`Store::register`](crate::Store::register).
    pub(crate) unsafe fn open(
        config: PoolConfig,
        host: Arc<dyn HostMemory>,
        taken: &Arc<AtomicBool>,
    ) -> Result<Arc<Self>, PoolError> {
        if taken.swap(true, Ordering::AcqRel) {
            return Err(PoolError::Taken);
        }
        let ledger = Arc::new(Ledger::default());
        // SAFETY: the caller's word.
        match unsafe { open_device(config, host, ledger.clone()) } {
            Ok(device) => {
                Ok(Arc::new(Self { device, ledger, closed: AtomicBool::new(false), taken: taken.clone() }))
            }
            Err(error) => {
                taken.store(false, Ordering::Release);
                Err(error)
            }
        }
    }

    /// Blocks in the pool.
    #[must_use]
    pub fn num_blocks(&self) -> u32 {
        self.device.placement().num_blocks()
    }

    /// True once it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes no more copies and returns when the last one is over: from then on the tensors are not touched. Copies
    /// that had not begun are failures of their operations.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.device.close();
        self.taken.store(false, Ordering::Release);
    }

    /// Starts copies. Those to the device arrive by layers if that is asked for.
    ///
    /// # Safety
    /// The spans are slots of the arena that are pinned (to the device) or given to the caller to fill (to the host),
    /// until the group has been waited for.
    pub(crate) unsafe fn copy(
        &self,
        direction: Direction,
        blocks: &[(u32, kv_cuda::HostSpan)],
        by_layer: bool,
    ) -> Result<(Copies, Option<Arc<LayerProgress>>), DeviceError> {
        let (group, first) = self.ledger.begin(blocks.len());
        let copies: Vec<_> = (first..)
            .zip(blocks)
            .map(|(job, &(block, host))| BlockCopy {
                job: JobId(job),
                direction,
                device_block: SlotId(block),
                host,
            })
            .collect();
        let urgency = match direction {
            Direction::ToDevice => Urgency::Demand,
            Direction::ToHost => Urgency::WriteBack,
        };
        let taken = if by_layer {
            // SAFETY: the caller's word.
            unsafe { self.device.submit_by_layer(&copies, urgency) }.map(Some)
        } else {
            // SAFETY: the caller's word.
            unsafe { self.device.submit(&copies, urgency) }.map(|()| None)
        };
        match taken {
            Ok(layers) => Ok((group, layers)),
            Err(error) => {
                self.ledger.refused(&group, first, blocks.len());
                Err(error)
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !self.is_closed() {
            self.close();
        }
    }
}

unsafe fn open_device(
    config: PoolConfig,
    host: Arc<dyn HostMemory>,
    sink: Arc<Ledger>,
) -> Result<Arc<dyn Device>, PoolError> {
    let PoolConfig { placement, buffers, device, owner } = config;
    match device {
        PoolDevice::Host => {
            // SAFETY: the caller warrants the buffers and that nobody else uses the blocks of an operation.
            let device = unsafe { HostDevice::borrow(placement, &buffers, owner, host, sink) }?;
            Ok(Arc::new(device))
        }
        PoolDevice::Cuda { ordinal, streams } => {
            let mut cuda = CudaConfig::new(ordinal).map_err(kv_cuda::cuda::OpenError::from)?;
            cuda.runtime_streams = streams;
            let buffers =
                buffers.iter().map(|start| DevicePtr(start.as_ptr().expose_provenance() as u64)).collect();
            cuda.pool = PoolMemory::Borrow { buffers, owner };
            Ok(Arc::new(CudaDevice::open(placement, cuda, host, sink)?))
        }
    }
}
