//! What cannot be is refused with the right error, and harms nothing that comes after it.

use std::sync::Arc;

use kv_core::ids::{JobId, SlotId};
use kv_core::job::Urgency;
use kv_core::layout::{Arrangement, Attention, DType, KvLayout, Placement};
use kv_core::units::Tokens;
use kv_cuda::cuda::{CudaDevice, OpenError, PoolMemory};
use kv_cuda::driver::{Context, DevicePtr, DriverError, Module};
use kv_cuda::{BlockCopy, Device, DeviceError, Direction, HostSpan};

use super::{Case, Check, Done};
use crate::SplitMix64;
use crate::completions::Completions;
use crate::gpu::GpuError;
use crate::gpu::host::HostBlocks;
use crate::gpu::mirror::Mirror;
use crate::gpu::rig::{Rig, wait_for};

pub(super) fn cases<'a>(check: &Check) -> Vec<Case<'a>> {
    vec![Case {
        part: "refusals",
        name: "wrong calls and a copy after each".to_owned(),
        seed: check.seed,
        run: Box::new(all),
    }]
}

/// Fails unless `found` is what was to be expected.
fn expect<T, E: std::fmt::Debug>(
    what: &str,
    found: Result<T, E>,
    right: impl FnOnce(&E) -> bool,
) -> Result<(), GpuError> {
    match found {
        Ok(_) => Err(GpuError::wrong(format!("{what}: not refused"))),
        Err(error) if right(&error) => Ok(()),
        Err(error) => Err(GpuError::wrong(format!("{what}: refused with {error:?}"))),
    }
}

struct Scene<'a> {
    rig: &'a Rig,
    pool: Mirror,
    host: HostBlocks,
    refused: u64,
}

impl Scene<'_> {
    fn load(&self) -> BlockCopy {
        BlockCopy {
            job: JobId(7),
            direction: Direction::ToDevice,
            device_block: SlotId(1),
            host: self.host.span(0),
        }
    }

    fn open(&self, pool: PoolMemory) -> Result<(CudaDevice, Completions), GpuError> {
        let (sink, completions) = Completions::channel();
        let placement = *self.pool.placement();
        Ok((self.rig.device(placement, pool, self.host.memory(), sink, None)?, completions))
    }

    /// The context still works: a copy goes through.
    fn still_works(&mut self) -> Result<(), GpuError> {
        self.refused += 1;
        let (device, completions) = self.open(self.pool.borrowed())?;
        // SAFETY: the span and the block are this copy's alone until it is completed.
        unsafe { device.submit(&[self.load()], Urgency::Demand) }?;
        wait_for(&completions, 1)?;
        drop(device);
        let block = self.host.block(0).to_vec();
        self.pool.set_block(SlotId(1), &block);
        self.pool.check(self.rig)
    }
}

fn all(rig: &Rig, rng: &mut SplitMix64) -> Result<Done, GpuError> {
    let layout = KvLayout::new(2, Attention::Latent { dim: 2048 }, DType::Fp8E4M3, Tokens(1))?;
    let placement = Placement::packed(layout, 3, Arrangement::BlockOuter)?;
    let pool = Mirror::new(rig, placement, 0, rng)?;
    let host = HostBlocks::new(2, layout.bytes_per_block(), 0, 64, rng)?;
    let mut scene = Scene { rig, pool, host, refused: 0 };
    calls(&mut scene)?;
    opening(&mut scene)?;

    let ptx = Module::load(&rig.enter()?, "this is no PTX");
    expect("a module of nonsense", ptx.map(drop), |error| !error.is_sticky())?;
    scene.still_works()?;
    let ordinal = u32::MAX;
    let context = Context::new(rig.context.driver(), ordinal);
    expect("a GPU that is not there", context.map(drop), |error| {
        matches!(error, DriverError::NoSuchDevice { ordinal: u32::MAX, .. })
    })?;
    scene.still_works()?;
    // SAFETY: the devices of all calls are closed.
    unsafe { scene.host.check() }?;
    Ok(Done { what: format!("{} wrong calls, a copy after each", scene.refused), bytes: 0 })
}

/// Calls of an open device.
fn calls(scene: &mut Scene<'_>) -> Result<(), GpuError> {
    let good = scene.load();
    type Wrong = (&'static str, BlockCopy, fn(&DeviceError) -> bool);
    let wrong: [Wrong; 3] = [
        ("a block that the pool does not have", BlockCopy { device_block: SlotId(3), ..good }, |error| {
            matches!(error, DeviceError::NoSuchBlock { block: 3, num_blocks: 3 })
        }),
        (
            "half a block",
            BlockCopy { host: HostSpan { len: good.host.len / 2, ..good.host }, ..good },
            |error| matches!(error, DeviceError::WrongLength { .. }),
        ),
        (
            "memory that is not registered",
            BlockCopy { host: HostSpan { offset: usize::MAX - 8, ..good.host }, ..good },
            |error| matches!(error, DeviceError::NotRegistered { .. }),
        ),
    ];
    for (what, copy, right) in wrong {
        let (device, completions) = scene.open(scene.pool.borrowed())?;
        // SAFETY: refused calls start nothing.
        expect(what, unsafe { device.submit(&[good, copy], Urgency::Demand) }, right)?;
        if completions.wait_at_most(std::time::Duration::from_millis(1))?.is_some() {
            return Err(GpuError::wrong(format!("{what}: refused, and started all the same")));
        }
        drop(device);
        scene.still_works()?;
    }
    let (device, _completions) = scene.open(scene.pool.borrowed())?;
    let store = BlockCopy { direction: Direction::ToHost, ..good };
    // SAFETY: refused calls start nothing.
    let layered = unsafe { device.submit_by_layer(&[store], Urgency::Demand) };
    expect("a store by layers", layered.map(drop), |error| matches!(error, DeviceError::NotALoad))?;
    device.close();
    // SAFETY: as above.
    let closed = unsafe { device.submit(&[good], Urgency::Demand) };
    expect("a copy after closing", closed, |error| matches!(error, DeviceError::Closed))?;
    drop(device);
    scene.still_works()
}

/// Pools that cannot be opened.
fn opening(scene: &mut Scene<'_>) -> Result<(), GpuError> {
    let refused = |scene: &Scene<'_>, what: &str, pool, right: fn(&GpuError) -> bool| {
        expect(what, scene.open(pool).map(drop), right)
    };
    let borrow = |buffers| PoolMemory::Borrow { buffers, owner: Arc::new(()) };
    let one = scene.pool.addresses().into_iter().take(1).collect();
    refused(scene, "a buffer too few", borrow(one), |error| {
        matches!(error, GpuError::Open(OpenError::WrongBuffers { found: 1, expected: 2 }))
    })?;
    scene.still_works()?;
    let nowhere = borrow(vec![DevicePtr(16), DevicePtr(4096)]);
    refused(scene, "addresses that are nowhere", nowhere, |error| {
        matches!(error, GpuError::Open(OpenError::NotDeviceMemory { buffer: 0, .. }))
    })?;
    scene.still_works()?;

    // Four times the device's memory, in two buffers.
    let dim = 1 << 20;
    let layout = KvLayout::new(2, Attention::Latent { dim }, DType::Fp8E4M3, Tokens(1))?;
    let blocks = (2 * scene.rig.gpu().memory / u64::from(dim) + 1) as u32;
    let placement = Placement::packed(layout, blocks, Arrangement::BlockOuter)?;
    let rig = scene.rig;
    let (sink, _completions) = Completions::channel();
    let huge = rig.device(placement, PoolMemory::Allocate, scene.host.memory(), sink, None);
    expect("a pool larger than the GPU", huge.map(drop), |error| {
        matches!(error, GpuError::Open(OpenError::PoolTooLarge { .. }))
    })?;
    scene.still_works()
}
