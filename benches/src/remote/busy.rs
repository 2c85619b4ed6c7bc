//! A store with a fixed number of calls under way, each about one block.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kv_core::ids::JobId;
use kv_core::job::RecordMeta;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::Epoch;
use kv_tiers::remote::{Limits, Pending, PendingGet, Put, RemoteError, RemoteKey, RemoteStore, Want};

use super::{Direction, HEADER};
use crate::{ByteSize, SplitMix64};

/// One store, its blocks, and the memory that they come to.
pub(super) struct Busy<'a> {
    store: &'a dyn RemoteStore,
    rng: SplitMix64,
    blocks: u64,
    calls: usize,
    /// What every put stores.
    payload: Vec<u8>,
    /// What every get fills: one destination is enough for one thread that waits.
    into: Vec<u8>,
}

/// Long enough for a disk that is busy with somebody else.
const PATIENCE: Duration = Duration::from_secs(60);

impl<'a> Busy<'a> {
    /// Values of `value` bytes, of which the payload is all but the header.
    pub(super) fn new(store: &'a dyn RemoteStore, value: ByteSize, blocks: u64, calls: u32) -> Self {
        let mut rng = SplitMix64::new(value.0);
        let len = value.0 as usize - HEADER;
        let mut payload: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
        payload.truncate(len);
        Self { store, rng, blocks, calls: calls as usize, into: vec![0; len], payload }
    }

    /// What the calls may have in flight.
    pub(super) fn limits(value: ByteSize, calls: u32) -> Limits {
        Limits { calls: calls + 1, bytes: (u64::from(calls) + 1) * value.0 }
    }

    fn key(n: u64) -> RemoteKey {
        let mut rng = SplitMix64::new(n);
        let key = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
        RemoteKey {
            namespace: NamespaceId([1; 16]),
            epoch: Epoch(0),
            fingerprint: Fingerprint([2; 16]),
            key: BlockKey::from_bytes(key.to_le_bytes()),
        }
    }

    fn put(&self, n: u64) -> Pending<()> {
        let identity = Self::key(n).identity();
        let meta = RecordMeta { identity, parent: BlockKey::ROOT, depth: 0 };
        self.store.put(&[Put { meta, payload: &self.payload, elements: None }], Instant::now() + PATIENCE)
    }

    fn get(&self, n: u64) -> PendingGet {
        let want = Want { key: Self::key(n), payload_bytes: self.payload.len() };
        self.store.get(&[want], Instant::now() + PATIENCE)
    }

    /// Writes every block once.
    pub(super) fn fill(&self) -> Result<(), RemoteError> {
        let mut pending = VecDeque::new();
        for n in 0..self.blocks {
            if pending.len() == self.calls {
                stored(pending.pop_front())?;
            }
            pending.push_back(self.put(n));
        }
        pending.into_iter().try_for_each(|put| stored(Some(put)))
    }

    /// Bytes of values per second.
    pub(super) fn run(
        &mut self,
        direction: Direction,
        time: Duration,
    ) -> Result<f64, super::RemoteBenchError> {
        let value = (self.payload.len() + HEADER) as f64;
        let start = Instant::now();
        let done = match direction {
            Direction::Get => {
                let mut pending = VecDeque::new();
                let mut done = 0;
                while start.elapsed() < time || !pending.is_empty() {
                    while pending.len() < self.calls && start.elapsed() < time {
                        let n = self.rng.below(self.blocks);
                        pending.push_back(self.get(n));
                    }
                    if let Some(get) = pending.pop_front() {
                        let into = &mut [(JobId(0), &mut self.into[..])];
                        drop(get.wait_into(into).pop().unwrap_or(Err(RemoteError::Closed))?);
                        done += 1;
                    }
                }
                done
            }
            Direction::Put => {
                let mut pending = VecDeque::new();
                let mut done = 0;
                while start.elapsed() < time || !pending.is_empty() {
                    while pending.len() < self.calls && start.elapsed() < time {
                        let n = self.rng.below(self.blocks);
                        pending.push_back(self.put(n));
                    }
                    stored(pending.pop_front())?;
                    done += 1;
                }
                done
            }
        };
        Ok(f64::from(done) * value / start.elapsed().as_secs_f64())
    }
}

fn stored(put: Option<Pending<()>>) -> Result<(), RemoteError> {
    put.map_or(Ok(()), |put| put.wait().pop().unwrap_or(Err(RemoteError::Closed)))
}
