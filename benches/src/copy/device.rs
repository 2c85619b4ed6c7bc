//! The stand-in for GPU memory as a contender: the same copies by way of a device's queue and completions.

use kv_core::ids::{JobId, SlotId};
use kv_core::job::{TransferError, Urgency};
use kv_core::layout::{Arrangement, Attention, DType, KvLayout, LayoutError, Placement};
use kv_core::units::Tokens;
use kv_cuda::{BlockCopy, Device, DeviceError, Direction, HostDevice};
use kv_tiers::arena::{Arena, ArenaConfig, ArenaError};

use super::Geometry;
use crate::SplitMix64;
use crate::completions::Completions;

/// Why the stand-in does not take part.
#[derive(Debug, thiserror::Error)]
pub enum StandInError {
    /// Host memory.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// Sizes that make no pool.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A copy failed.
    #[error("a copy of the stand-in failed")]
    Copy(#[from] TransferError),
}

/// A device with a pool of blocks, host slots for as many, and the order in which they are copied.
pub(super) struct StandIn {
    device: HostDevice,
    completions: Completions,
    to_device: Vec<BlockCopy>,
    to_host: Vec<BlockCopy>,
    /// The first failure. A contender has no way to report one; a run with one has no figures.
    failed: Option<StandInError>,
}

impl StandIn {
    /// Blocks with one fragment per layer, each layer in a buffer of its own, as a latent cache (MLA) has them.
    pub(super) fn new(geometry: Geometry) -> Result<Self, StandInError> {
        let Geometry { block, fragment, blocks } = geometry;
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (layers, dim, blocks) = (narrow(block / fragment), narrow(fragment), narrow(blocks));
        let layout = KvLayout::new(layers, Attention::Latent { dim }, DType::Fp8E4M3, Tokens(1))?;
        let pool = Placement::packed(layout, blocks, Arrangement::BlockOuter)?;
        let arena = Arena::new(ArenaConfig::new(blocks, block))?;
        let mut rng = SplitMix64::new(u64::from(dim));
        let mut slots: Vec<SlotId> = (0..blocks).map(SlotId).collect();
        rng.shuffle(&mut slots);
        let copies = |direction| {
            let copy = |(at, &slot): (u32, &SlotId)| {
                Some(BlockCopy {
                    job: JobId(u64::from(at)),
                    direction,
                    device_block: SlotId(at),
                    host: arena.payload_range(slot)?,
                })
            };
            (0..).zip(&slots).filter_map(copy).collect()
        };
        let (to_device, to_host) = (copies(Direction::ToDevice), copies(Direction::ToHost));
        let (sink, completions) = Completions::channel();
        let device = HostDevice::new(pool, arena.clone(), sink)?;
        let mut bytes = vec![0; block];
        for at in (0..blocks).map(SlotId) {
            for chunk in bytes.chunks_mut(8) {
                chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]);
            }
            device.upload(at, &bytes)?;
        }
        Ok(Self { device, completions, to_device, to_host, failed: None })
    }

    /// Host slots to device blocks.
    pub(super) fn load(&mut self) {
        self.run(Direction::ToDevice);
    }

    /// Device blocks to host slots.
    pub(super) fn store(&mut self) {
        self.run(Direction::ToHost);
    }

    /// Whether every copy so far was made; the first failure if not.
    pub(super) fn finish(self) -> Result<(), StandInError> {
        self.failed.map_or(Ok(()), Err)
    }

    fn run(&mut self, direction: Direction) {
        if self.failed.is_none() {
            self.failed = self.copy_all(direction).err();
        }
    }

    fn copy_all(&self, direction: Direction) -> Result<(), StandInError> {
        let copies = match direction {
            Direction::ToDevice => &self.to_device,
            Direction::ToHost => &self.to_host,
        };
        // SAFETY: nothing else uses the arena, which only the device keeps; no two copies of a set share a slot
        // or a block, and the set before was waited for, or failed and nothing is submitted after it.
        unsafe { self.device.submit(copies, Urgency::Demand)? };
        copies.iter().try_for_each(|_| self.completions.wait().map(drop))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_and_a_load_move_every_block() {
        for (block, fragment, blocks) in [(64, 8, 5), (4096, 4096, 3), (21, 7, 4)] {
            let mut stand_in = StandIn::new(Geometry::new(block, fragment, blocks).unwrap()).unwrap();
            let read = |stand_in: &StandIn, at: usize| {
                let mut bytes = vec![0; block];
                stand_in.device.download(SlotId(at as u32), &mut bytes).unwrap();
                bytes
            };
            let before: Vec<_> = (0..blocks).map(|at| read(&stand_in, at)).collect();
            stand_in.store();
            for at in 0..blocks {
                stand_in.device.upload(SlotId(at as u32), &vec![0; block]).unwrap();
            }
            stand_in.load();
            for (at, bytes) in before.iter().enumerate() {
                assert_eq!(&read(&stand_in, at), bytes, "block {at} of {block} bytes");
            }
            stand_in.finish().unwrap();
        }
    }

    #[test]
    fn a_failed_copy_is_told_at_the_end() {
        let mut stand_in = StandIn::new(Geometry::new(64, 8, 2).unwrap()).unwrap();
        stand_in.device.fail_after(1, TransferError::Down);
        stand_in.store();
        stand_in.load();
        assert!(matches!(stand_in.finish(), Err(StandInError::Copy(TransferError::Down))));
    }
}
