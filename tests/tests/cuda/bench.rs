//! A device on the fake driver, the memory it copies to and from, and what it reported.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use kv_core::Verified;
use kv_core::ids::{JobId, SlotId};
use kv_core::job::{CompletionSink, TransferError, Urgency};
use kv_core::layout::{Arrangement, Attention, DType, HeadOrder, KvLayout, KvOrder, Placement};
use kv_core::units::Tokens;
use kv_cuda::cuda::{Calibration, CopyTuning, CudaConfig, CudaDevice, Method, OpenError};
use kv_cuda::{BlockCopy, Device, Direction, HostMemory, HostSpan};
use kvtier_tests::fake_cuda::{Alone, FakeCuda};

/// Page-aligned memory of the test's, as an arena would be.
pub(crate) struct Arena {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory; tests touch it only while no copy of those bytes is outstanding.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        let layout = Layout::from_size_align(bytes.max(1), 4096).unwrap();
        // SAFETY: not of size 0.
        let at = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        Arc::new(Self { at, bytes })
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.bytes);
        // SAFETY: inside; no copy of these bytes is outstanding.
        unsafe { self.at.add(offset).as_ptr().copy_from(bytes.as_ptr(), bytes.len()) };
    }

    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= self.bytes);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.at.add(offset).as_ptr(), len) }.to_vec()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let layout = Layout::from_size_align(self.bytes.max(1), 4096).unwrap();
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.at.as_ptr(), layout) };
    }
}

// SAFETY: one allocation that never moves; safe code gets copies only.
unsafe impl HostMemory for Arena {
    fn base(&self) -> NonNull<u8> {
        self.at
    }
    fn size(&self) -> usize {
        self.bytes
    }
}

pub(crate) type Completion = (JobId, Result<(), TransferError>);

struct Channel(mpsc::Sender<Completion>);

impl CompletionSink for Channel {
    fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
        if let Ok(verified) = &result {
            assert_eq!(verified.job(), job);
        }
        self.0.send((job, result.map(drop))).ok();
    }
}

/// One device and everything around it. Fields in the order in which they must go.
pub(crate) struct Bench {
    pub(crate) device: CudaDevice,
    pub(crate) arena: Arc<Arena>,
    pub(crate) completions: mpsc::Receiver<Completion>,
    pub(crate) fake: Alone,
    pub(crate) block: usize,
    /// Bytes between host blocks.
    pub(crate) pitch: usize,
}

/// Bytes that differ from block to block and from seed to seed.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Llama-like: `layers` layers of K and V, 8 heads of 64, bf16, 16 tokens: 16 KiB for K of one layer.
pub(crate) fn llama(layers: u32) -> KvLayout {
    let heads = Attention::Heads { kv_heads: 8, head_dim: 64, order: HeadOrder::Nhd, kv: KvOrder::Split };
    KvLayout::new(layers, heads, DType::Bf16, Tokens(16)).unwrap()
}

pub(crate) fn pool(layers: u32, blocks: u32, arrangement: Arrangement) -> Placement {
    Placement::packed(llama(layers), blocks, arrangement).unwrap()
}

/// A configuration that always copies in one way.
pub(crate) fn forced(method: Method) -> CudaConfig {
    let mut config = CudaConfig::new(0).unwrap();
    config.tuning = CopyTuning { method: Some(method), ..CopyTuning::default() };
    config.patience = Duration::from_secs(20);
    config
}

pub(crate) const METHODS: [Method; 5] = [
    Method::EngineLoop,
    Method::EngineBatch,
    Method::Kernel { ctas: 2 },
    Method::Bulk { ctas: 2 },
    Method::Staged { ctas: 2 },
];

/// A device that did not open, and the driver still for this test alone.
pub(crate) struct Refused {
    pub(crate) error: OpenError,
    pub(crate) fake: Alone,
}

impl std::fmt::Debug for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl Bench {
    pub(crate) fn new(placement: Placement, config: CudaConfig, host_blocks: usize) -> Self {
        Self::try_new(placement, config, host_blocks, FakeCuda::load().alone()).unwrap()
    }

    pub(crate) fn try_new(
        placement: Placement,
        config: CudaConfig,
        host_blocks: usize,
        fake: Alone,
    ) -> Result<Self, Refused> {
        let block = placement.layout().bytes_per_block();
        let pitch = block + 4096;
        let arena = Arena::new(host_blocks * pitch);
        let (sender, completions) = mpsc::channel();
        match CudaDevice::open(placement, config, arena.clone(), Arc::new(Channel(sender))) {
            Ok(device) => Ok(Self { device, arena, completions, fake, block, pitch }),
            Err(error) => Err(Refused { error, fake }),
        }
    }

    /// Where a host block lies; a guard band follows each.
    pub(crate) fn span(&self, host: usize) -> HostSpan {
        HostSpan { offset: host * self.pitch + 64, len: self.block }
    }

    pub(crate) fn copy(&self, job: u64, direction: Direction, device: u32, host: usize) -> BlockCopy {
        BlockCopy { job: JobId(job), direction, device_block: SlotId(device), host: self.span(host) }
    }

    pub(crate) fn submit(&self, copies: &[BlockCopy], urgency: Urgency) {
        // SAFETY: tests use disjoint blocks, and touch them only after the completion.
        unsafe { self.device.submit(copies, urgency) }.unwrap();
    }

    /// The next completion; a test that waits longer than this has found a hang.
    pub(crate) fn next(&self) -> Completion {
        self.completions.recv_timeout(Duration::from_secs(60)).expect("a completion")
    }

    /// Waits for so many completions, all of which must be successes.
    pub(crate) fn finish(&self, count: usize) {
        for _ in 0..count {
            let (job, result) = self.next();
            assert_eq!(result, Ok(()), "{job:?}");
        }
    }

    pub(crate) fn fill_host(&self, host: usize, seed: u64) -> Vec<u8> {
        let bytes = pattern(self.block, seed);
        self.arena.write(self.span(host).offset, &bytes);
        bytes
    }

    pub(crate) fn host(&self, host: usize) -> Vec<u8> {
        let span = self.span(host);
        self.arena.read(span.offset, span.len)
    }

    pub(crate) fn hbm(&self, block: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.block];
        self.device.download(SlotId(block), &mut bytes).unwrap();
        bytes
    }

    /// Closes the device; nothing may be left in the driver, and nothing may have been done wrong.
    pub(crate) fn close(self) {
        let Self { device, arena, completions, fake, .. } = self;
        device.close();
        drop(device);
        assert!(completions.try_recv().is_err(), "a completion nobody asked for");
        assert_eq!(fake.violations(), Vec::<String>::new());
        assert_eq!(fake.live(), Default::default(), "left in the driver");
        drop(arena);
    }
}

/// A calibration of a device where everything costs the same, for tests that do not want to measure.
pub(crate) fn flat() -> Calibration {
    use kv_cuda::cuda::{Cost, Curve, DirectionCosts};
    let cost = Cost { fixed: 1e-5, run: Curve::new([(4096, 1e-7), (1 << 20, 2e-5)]) };
    let with = |cost: &Cost| vec![(2, cost.clone())];
    let costs = DirectionCosts {
        engine_loop: cost.clone(),
        engine_batch: Some(cost.clone()),
        kernel: with(&cost),
        bulk: with(&cost),
        stage: with(&cost),
    };
    Calibration { multiprocessors: 132, to_device: costs.clone(), to_host: costs }
}
