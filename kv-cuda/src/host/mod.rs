//! A device made of ordinary memory and one thread.

mod hbm;

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread::{self, JoinHandle, ThreadId};

use kv_core::Verified;
use kv_core::ids::SlotId;
use kv_core::job::{CompletionSink, TransferError, Urgency};
use kv_core::layout::{Fragments, Placement};
use parking_lot::{Condvar, Mutex};

use crate::device::{BlockCopy, BlockDigest, Checks, Device, DeviceError, Direction};
use crate::layers::LayerProgress;
use crate::memory::HostMemory;
use hbm::Hbm;

/// The stand-in for a GPU: its "HBM" is heap memory, its copy engine a thread that gathers and scatters
/// the same fragments as a GPU would. It tells nothing about speed.
///
/// Copies can be made to fail, see [`HostDevice::fail_after`].
///
/// ```
/// use std::{cell::UnsafeCell, ptr::NonNull, sync::Arc, sync::mpsc};
///
/// use kv_core::Verified;
/// use kv_core::ids::{JobId, SlotId};
/// use kv_core::job::{CompletionSink, TransferError, Urgency};
/// use kv_core::layout::{Arrangement, Attention, DType, KvLayout, Placement};
/// use kv_core::units::Tokens;
/// use kv_cuda::{BlockCopy, Device, Direction, HostDevice, HostMemory, HostSpan};
///
/// struct Arena(Box<[UnsafeCell<u8>]>);
/// // SAFETY: one allocation that never moves, and nothing here makes a reference into it.
/// unsafe impl Sync for Arena {}
/// unsafe impl HostMemory for Arena {
///     fn base(&self) -> NonNull<u8> {
///         NonNull::from(&*self.0).cast()
///     }
///     fn size(&self) -> usize {
///         self.0.len()
///     }
/// }
///
/// struct Print(mpsc::Sender<JobId>);
/// impl CompletionSink for Print {
///     fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
///         println!("{job:?}: {result:?}");
///         self.0.send(job).ok();
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layout = KvLayout::new(2, Attention::Latent { dim: 8 }, DType::Bf16, Tokens(4))?;
/// let block = layout.bytes_per_block();
/// let pool = Placement::packed(layout, 10, Arrangement::BlockOuter)?;
/// let arena = Arc::new(Arena((0..4 * block).map(|_| UnsafeCell::new(0)).collect()));
/// let (sender, done) = mpsc::channel();
/// let device = HostDevice::new(pool, arena, Arc::new(Print(sender)))?;
///
/// device.upload(SlotId(7), &vec![42; block])?; // the runtime computes a block
/// let span = HostSpan { offset: 3 * block, len: block };
/// let copy = |job, direction, slot| BlockCopy {
///     job: JobId(job),
///     direction,
///     device_block: SlotId(slot),
///     host: span,
/// };
/// // SAFETY: nobody else uses the arena; the second copy starts when the first is over.
/// unsafe { device.submit(&[copy(1, Direction::ToHost, 7)], Urgency::WriteBack)? };
/// assert_eq!(done.recv()?, JobId(1));
/// unsafe { device.submit(&[copy(2, Direction::ToDevice, 0)], Urgency::Demand)? };
/// assert_eq!(done.recv()?, JobId(2));
///
/// let mut loaded = vec![0; block];
/// device.download(SlotId(0), &mut loaded)?;
/// assert_eq!(loaded, vec![42; block]);
/// # Ok(())
/// # }
/// ```
pub struct HostDevice {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
    worker_id: ThreadId,
}

struct Shared {
    placement: Placement,
    hbm: Mutex<Hbm>,
    host: Arc<dyn HostMemory>,
    sink: Arc<dyn CompletionSink>,
    queue: Mutex<Queue>,
    /// The queue has something new to say.
    changed: Condvar,
}

/// What one turn of the copying thread does.
enum Work {
    Block(BlockCopy),
    /// Blocks that arrive layer by layer.
    Layers(Vec<BlockCopy>, Arc<LayerProgress>),
}

impl Work {
    /// Will not be done.
    fn refuse(self, sink: &dyn CompletionSink) {
        let copies = match self {
            Self::Block(copy) => vec![copy],
            Self::Layers(copies, progress) => {
                progress.fail(TransferError::Down);
                copies
            }
        };
        for copy in copies {
            sink.complete(copy.job, Err(TransferError::Down));
        }
    }
}

/// Copies that wait, in order of submission.
#[derive(Default)]
struct Queue {
    demand: VecDeque<Work>,
    write_back: VecDeque<Work>,
    closed: bool,
    /// Copies begun so far.
    begun: u64,
    /// Which of them fail, by the value of `begun` before them.
    faults: BTreeMap<u64, TransferError>,
}

impl Queue {
    fn push(&mut self, work: impl IntoIterator<Item = Work>, urgency: Urgency) {
        match urgency {
            Urgency::Demand => self.demand.extend(work),
            Urgency::WriteBack => self.write_back.extend(work),
        }
    }

    /// What is to be done next, and the fault that is to befall each of its copies.
    fn begin(&mut self) -> Option<(Work, Vec<Option<TransferError>>)> {
        let work = self.demand.pop_front().or_else(|| self.write_back.pop_front())?;
        let copies = match &work {
            Work::Block(_) => 1,
            Work::Layers(copies, _) => copies.len() as u64,
        };
        let faults = (self.begun..self.begun + copies).map(|begun| self.faults.remove(&begun)).collect();
        self.begun += copies;
        Some((work, faults))
    }
}

/// What a failed copy leaves at its destination: certainly not what was asked for.
const GARBAGE: u8 = 0xdb;

impl HostDevice {
    /// A pool of zeroed blocks, copied to and from `host`, that reports to `sink`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] or [`DeviceError::Thread`].
    pub fn new(
        placement: Placement,
        host: Arc<dyn HostMemory>,
        sink: Arc<dyn CompletionSink>,
    ) -> Result<Self, DeviceError> {
        Self::on(placement, Hbm::new(&placement)?, host, sink)
    }

    /// The same on tensors of a runtime: `buffers` has the first byte of each buffer, as the placement numbers them.
    /// `owner` is kept as long as the device is: what keeps the tensors allocated goes in there.
    ///
    /// # Safety
    /// Each buffer has [`Placement::buffer_bytes`] readable and writable bytes for as long as `owner` is kept. From the
    /// submission of a copy to its completion nobody else writes its device block, and if it copies to the device
    /// nobody else reads it.
    ///
    /// # Errors
    /// [`DeviceError::WrongBuffers`] or [`DeviceError::Thread`].
    pub unsafe fn borrow(
        placement: Placement,
        buffers: &[NonNull<u8>],
        owner: Arc<dyn Any + Send + Sync>,
        host: Arc<dyn HostMemory>,
        sink: Arc<dyn CompletionSink>,
    ) -> Result<Self, DeviceError> {
        if buffers.len() != placement.buffers() as usize {
            return Err(DeviceError::WrongBuffers { found: buffers.len(), expected: placement.buffers() });
        }
        // SAFETY: the caller's word; used by this device alone, under one lock.
        let hbm = unsafe { Hbm::borrow(&placement, buffers, &owner) };
        Self::on(placement, hbm, host, sink)
    }

    fn on(
        placement: Placement,
        hbm: Hbm,
        host: Arc<dyn HostMemory>,
        sink: Arc<dyn CompletionSink>,
    ) -> Result<Self, DeviceError> {
        let hbm = Mutex::new(hbm);
        let (queue, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { placement, hbm, host, sink, queue, changed });
        let worker = thread::Builder::new().name("kvtier-host-device".into());
        let worker = worker.spawn({
            let shared = Arc::clone(&shared);
            move || Worker(&shared).run()
        });
        let worker = worker.map_err(DeviceError::Thread)?;
        let worker_id = worker.thread().id();
        Ok(Self { shared, worker: Mutex::new(Some(worker)), worker_id })
    }

    /// Makes one copy fail: that which is begun after `skip` others from now. It overwrites its destination
    /// with garbage and completes with `error`. Several may be set.
    pub fn fail_after(&self, skip: u64, error: TransferError) {
        let mut queue = self.shared.queue.lock();
        let begun = queue.begun;
        queue.faults.insert(begun.saturating_add(skip), error);
    }
}

impl Device for HostDevice {
    fn placement(&self) -> &Placement {
        &self.shared.placement
    }

    unsafe fn submit(&self, copies: &[BlockCopy], urgency: Urgency) -> Result<(), DeviceError> {
        self.shared.checks().copies(copies)?;
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            return Err(DeviceError::Closed);
        }
        queue.push(copies.iter().copied().map(Work::Block), urgency);
        self.shared.changed.notify_one();
        Ok(())
    }

    unsafe fn submit_by_layer(
        &self,
        copies: &[BlockCopy],
        urgency: Urgency,
    ) -> Result<Arc<LayerProgress>, DeviceError> {
        self.shared.checks().loads(copies)?;
        let layers = self.shared.placement.layout().layers();
        let progress = LayerProgress::new((0..layers).map(|layer| layer..layer + 1).collect());
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            return Err(DeviceError::Closed);
        }
        queue.push([Work::Layers(copies.to_vec(), Arc::clone(&progress))], urgency);
        self.shared.changed.notify_one();
        Ok(progress)
    }

    fn zero(&self, blocks: &[SlotId]) -> Result<(), DeviceError> {
        let zeros = vec![0; self.shared.placement.layout().bytes_per_block()];
        blocks.iter().try_for_each(|&block| self.shared.open_block(block, zeros.len()).map(drop))?;
        blocks.iter().try_for_each(|&block| self.upload(block, &zeros))
    }

    fn digest(&self, blocks: &[SlotId]) -> Result<Vec<BlockDigest>, DeviceError> {
        let mut bytes = vec![0; self.shared.placement.layout().bytes_per_block()];
        let digest = |&block: &SlotId| {
            self.download(block, &mut bytes)?;
            let nonzero = bytes.iter().filter(|&&byte| byte != 0).count() as u64;
            Ok(BlockDigest { checksum: kv_core::payload_checksum(&bytes), nonzero })
        };
        blocks.iter().map(digest).collect()
    }

    fn upload(&self, block: SlotId, bytes: &[u8]) -> Result<(), DeviceError> {
        let fragments = self.shared.open_block(block, bytes.len())?;
        self.shared.hbm.lock().scatter(bytes, fragments);
        Ok(())
    }

    fn download(&self, block: SlotId, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let fragments = self.shared.open_block(block, bytes.len())?;
        self.shared.hbm.lock().gather(fragments, bytes);
        Ok(())
    }

    fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_one();
        if thread::current().id() == self.worker_id {
            return;
        }
        // Held while joining, so that a second caller also returns only when all is completed.
        let mut worker = self.worker.lock();
        if let Some(worker) = worker.take() {
            // An error is a sink that panicked, and the worker has completed the rest while unwinding.
            drop(worker.join());
        }
    }
}

impl Drop for HostDevice {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn checks(&self) -> Checks<'_> {
        Checks { placement: &self.placement, host: &*self.host }
    }

    /// Fragments of a block, if the device is open, has that block, and it has `len` bytes.
    fn open_block(&self, block: SlotId, len: usize) -> Result<Fragments, DeviceError> {
        if self.queue.lock().closed {
            return Err(DeviceError::Closed);
        }
        self.checks().length(len)?;
        let num_blocks = self.placement.num_blocks();
        self.placement.fragments(block).ok_or(DeviceError::NoSuchBlock { block: block.0, num_blocks })
    }

    /// Makes a copy that was submitted.
    fn copy(&self, copy: &BlockCopy, fault: Option<TransferError>) -> Result<Verified, TransferError> {
        // Both were checked when the copy was submitted.
        let (Some(fragments), Some(mut host)) =
            (self.placement.fragments(copy.device_block), self.host.slice(copy.host))
        else {
            return Err(TransferError::Down);
        };
        let mut hbm = self.hbm.lock();
        let done = match copy.direction {
            Direction::ToHost => {
                // SAFETY: the region is alive and holds the span (`slice`). Whoever submitted the copy
                // warrants that nobody else reads or writes these bytes until it is completed.
                let host = unsafe { host.as_mut() };
                match fault {
                    None => hbm.gather(fragments, host),
                    Some(error) => {
                        host.fill(GARBAGE);
                        return Err(error);
                    }
                }
            }
            Direction::ToDevice => {
                // SAFETY: as above; nobody writes these bytes until the copy is completed.
                let host = unsafe { host.as_ref() };
                match fault {
                    None => hbm.scatter(host, fragments),
                    Some(error) => {
                        hbm.scatter(&vec![GARBAGE; host.len()], fragments);
                        return Err(error);
                    }
                }
            }
        };
        Ok(Verified::by_status(copy.job, copy.host.len, done)?)
    }

    /// Copies layer after layer, each of all blocks. A fault leaves garbage in its block.
    fn copy_layers(&self, copies: &[BlockCopy], faults: &[Option<TransferError>], progress: &LayerProgress) {
        let layout = self.placement.layout();
        for layer in 0..layout.layers() {
            let start = layer as usize * layout.bytes_per_layer();
            let part = start..start + layout.bytes_per_layer();
            for (copy, fault) in copies.iter().zip(faults) {
                // Both were checked when the copy was submitted.
                let fragments = self.placement.fragments(copy.device_block);
                let (Some(fragments), Some(host)) = (fragments, self.host.slice(copy.host)) else { continue };
                // SAFETY: as in `copy`; nobody writes these bytes until the copy is completed.
                let host = unsafe { host.as_ref() };
                let mut hbm = self.hbm.lock();
                match fault {
                    None => hbm.scatter_part(host, part.clone(), fragments),
                    Some(error) => {
                        progress.fail(*error);
                        hbm.scatter_part(&vec![GARBAGE; host.len()], part.clone(), fragments)
                    }
                };
            }
            progress.arrived(layer + 1);
        }
    }
}

/// The copying thread. However it ends, all that still waits is completed.
struct Worker<'a>(&'a Shared);

impl Worker<'_> {
    fn run(self) {
        while let Some((work, faults)) = self.next() {
            match work {
                Work::Block(copy) => {
                    let result = self.0.copy(&copy, faults.into_iter().next().flatten());
                    self.0.sink.complete(copy.job, result);
                }
                Work::Layers(copies, progress) => {
                    self.0.copy_layers(&copies, &faults, &progress);
                    for (copy, fault) in copies.iter().zip(faults) {
                        let whole = copy.host.len;
                        let copied = Verified::by_status(copy.job, whole, whole).map_err(TransferError::from);
                        self.0.sink.complete(copy.job, fault.map_or(copied, Err));
                    }
                }
            }
        }
    }

    /// Waits for work; `None` when the device is closed.
    fn next(&self) -> Option<(Work, Vec<Option<TransferError>>)> {
        let mut queue = self.0.queue.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(begun) = queue.begin() {
                return Some(begun);
            }
            self.0.changed.wait(&mut queue);
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.closed = true;
        let waiting =
            std::mem::take(&mut queue.demand).into_iter().chain(std::mem::take(&mut queue.write_back));
        drop(queue);
        for work in waiting {
            work.refuse(&*self.0.sink);
        }
    }
}

#[cfg(test)]
mod tests;
