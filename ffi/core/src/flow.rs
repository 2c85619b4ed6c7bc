//! What a worker does with one operation: group by group, the next group loading while this one is copied.
//!
//! ```text
//!   keys ─► found? ─► leases (pinned, loading, or empty slots) ─► answers ─► bytes move ─► leases end
//! ```
//!
//! Leases end in reverse order, so that the first keys of a batch are the most recently used. Runtimes list blocks
//! from the head of a prompt on, and a tail without its head is worth nothing.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kv_core::index::NamespaceIndex;
use kv_core::key::BlockKey;
use kv_core::planner::Ready;
use kv_core::tier::Tier;
use kv_cuda::{Direction, HostSpan};
use kv_tiers::engine::{Acquire, Engine, Lease};

use crate::batch::{Buffers, gather, gather_summed, scatter};
use crate::pool::Pool;
use crate::task::{KeyStatus, Operation, Permit, Task};
use crate::work::{WORKERS, groups, left};

/// How soon a cancel is noticed by a worker that waits for the disk.
const LOOK_UP: Duration = Duration::from_millis(5);

/// How soon a put goes on after the disk has caught up: some writes of a fast drive.
const CATCH_UP: Duration = Duration::from_micros(200);

/// Bytes that are copied out in one go: what was just verified is in the last-level cache still.
const CACHED: usize = 4 << 20;

pub(crate) struct Flow<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) namespace: NamespaceIndex,
    pub(crate) task: &'a Task,
    /// Whether blocks go on to NVMe, with a checksum.
    pub(crate) has_log: bool,
    /// Blocks that one group may hold in host memory.
    pub(crate) most: usize,
    /// Blocks pinned by tickets, and how many may be.
    pub(crate) pinned: &'a Arc<AtomicUsize>,
    pub(crate) most_pinned: usize,
}

/// A block that stays in host memory while its ticket lives.
pub(crate) type Pinned = (Lease, Permit);

/// Some consecutive keys of the batch, held by one lease.
struct Part {
    lease: Lease,
    keys: Range<usize>,
}

/// A block that has its slot: which key, whose lease, and where in it.
#[derive(Clone, Copy)]
struct Block {
    key: usize,
    part: usize,
    index: u32,
}

impl Flow<'_> {
    pub(crate) fn run(&self) -> (Vec<KeyStatus>, Vec<Pinned>) {
        let mut statuses = vec![KeyStatus::Missing; self.task.width()];
        let mut pins = Vec::new();
        match &self.task.operation {
            Operation::Get(_) | Operation::Onboard(..) | Operation::Pin => {
                self.load(&mut statuses, &mut pins)
            }
            Operation::Put(_) | Operation::Offload(..) => self.store(&mut statuses),
            Operation::Flush => statuses.fill(self.flush()),
        }
        (statuses, pins)
    }

    fn load(&self, statuses: &mut [KeyStatus], pins: &mut Vec<Pinned>) {
        let keys = self.task.keys.as_slice();
        if self.task.chained && matches!(self.task.operation, Operation::Pin) {
            self.pin_chain(keys, statuses, pins);
            return;
        }
        if self.task.chained {
            // One lease, as the slow sources are asked about the chain as a whole.
            let lease = if keys.is_empty() { None } else { self.engine.acquire(&self.request(keys)).ok() };
            let parts = lease.map(|lease| Part { lease, keys: 0..keys.len() }).into_iter().collect();
            self.take(parts, keys.len() <= self.most, statuses, pins);
            return;
        }
        let mut groups = groups(keys, self.most);
        let single = keys.len() <= self.most;
        let mut next = |statuses: &mut [KeyStatus]| {
            let (first, group) = groups.next()?;
            if let Some(why) = self.task.stopped() {
                statuses[first..].fill(why);
                return None;
            }
            Some(self.find(first, group))
        };
        let mut ahead = next(statuses);
        while let Some(parts) = ahead {
            // The disk works on the next group while this one is copied.
            ahead = next(statuses);
            self.take(parts, single, statuses, pins);
        }
    }

    /// One lease asks for the chain, slow sources included. It also has room for what did not come, so each block that
    /// did then gets a lease of its own.
    fn pin_chain(&self, keys: &[BlockKey], statuses: &mut [KeyStatus], pins: &mut Vec<Pinned>) {
        let room = self.most_pinned.saturating_sub(self.pinned.load(Ordering::Relaxed));
        let asked = &keys[..keys.len().min(room)];
        let lease = if asked.is_empty() { None } else { self.engine.acquire(&self.request(asked)).ok() };
        let Some(lease) = lease else {
            statuses.fill(KeyStatus::NoRoom);
            return;
        };
        let answer = self.answer(&lease);
        if let Some(why) = lease.why() {
            self.task.decided(why);
        }
        match answer {
            Err(why) => statuses[..asked.len()].fill(why),
            Ok(answer) => {
                let there = answer.ready as usize;
                let lost = self.task.stopped().unwrap_or(KeyStatus::Failed);
                statuses.iter_mut().skip(there).take(answer.lost as usize).for_each(|status| *status = lost);
                if there == asked.len() {
                    statuses[there..].fill(KeyStatus::NoRoom);
                }
                let parts = self.acquire(asked[..there].iter().enumerate());
                end(lease, answer.ready);
                self.take(parts, false, statuses, pins);
            }
        }
    }

    /// Waits for leases, copies what they found, and ends them.
    fn take(&self, parts: Vec<Part>, single: bool, statuses: &mut [KeyStatus], pins: &mut Vec<Pinned>) {
        let mut blocks = Vec::new();
        let mut ready = Vec::new();
        let mut copied = 0;
        let turn = match self.task.operation {
            Operation::Get(_) => (CACHED / self.engine.arena().payload_bytes()).max(1),
            _ => parts.len(),
        };
        for (at, part) in parts.iter().enumerate() {
            if at % turn == 0 {
                if let Operation::Get(buffers) = &self.task.operation {
                    copy_out(&parts, &blocks[copied..], buffers, statuses);
                    copied = blocks.len();
                }
                // Loads end about in the order in which they began: who waits for the last one first is woken once.
                let _waited = self.answer(&parts[(at + turn).min(parts.len()) - 1].lease);
            }
            let answer = self.answer(&part.lease);
            if let Some(why) = part.lease.why() {
                self.task.decided(why);
            }
            for key in part.keys.clone() {
                let index = (key - part.keys.start) as u32;
                match answer {
                    Ok(answer) if index < answer.ready => blocks.push(Block { key, part: at, index }),
                    // A chain is asked for as a whole: behind what was found there may be nothing.
                    Ok(answer) if self.task.chained && index >= answer.ready + answer.lost => {}
                    // It was found, and then it could not be loaded, or not in time.
                    Ok(_) => statuses[key] = self.task.stopped().unwrap_or(KeyStatus::Failed),
                    Err(why) => statuses[key] = why,
                }
            }
            ready.push(answer.map_or(0, |answer| answer.ready));
        }
        match &self.task.operation {
            Operation::Get(buffers) => copy_out(&parts, &blocks[copied..], buffers, statuses),
            Operation::Onboard(pool, to) => self.onboard(&parts, &blocks, pool, to, single, statuses),
            _ => {}
        }
        for (part, ready) in parts.into_iter().zip(ready).rev() {
            if !matches!(self.task.operation, Operation::Pin) {
                end(part.lease, ready);
            } else if ready > 0 {
                match Permit::take(self.pinned, self.most_pinned) {
                    Some(permit) => {
                        statuses[part.keys.start] = KeyStatus::Done;
                        pins.push((part.lease, permit));
                    }
                    None => statuses[part.keys.start] = KeyStatus::NoRoom,
                }
            }
        }
    }

    /// Leases of the blocks of a group that are there, one each. Nothing is set aside for those that are not.
    fn find(&self, first: usize, group: &[BlockKey]) -> Vec<Part> {
        let found = self.engine.lookup_each(self.namespace, group);
        let there = (first..).zip(group).zip(found).filter(|(_, tier)| tier.is_some()).map(|(key, _)| key);
        self.acquire(there)
    }

    fn acquire<'k>(&self, keys: impl Iterator<Item = (usize, &'k BlockKey)>) -> Vec<Part> {
        let (positions, requests): (Vec<_>, Vec<_>) =
            keys.map(|(at, key)| (at..at + 1, self.request(std::slice::from_ref(key)))).unzip();
        let leases = self.engine.acquire_all(&requests);
        positions
            .into_iter()
            .zip(leases)
            .filter_map(|(keys, lease)| Some(Part { lease: lease.ok()?, keys }))
            .collect()
    }

    fn request<'k>(&self, keys: &'k [BlockKey]) -> Acquire<'k> {
        Acquire { namespace: self.namespace, keys, patience: Some(left(self.task.deadline)), notify: None }
    }

    /// Waits for a lease's answer, or for a reason not to.
    fn answer(&self, lease: &Lease) -> Result<Ready, KeyStatus> {
        loop {
            if let Some(answer) = lease.poll() {
                return Ok(answer);
            }
            if let Some(why) = self.task.stopped() {
                return Err(why);
            }
            let _answered = lease.wait_for(LOOK_UP.min(left(self.task.deadline)));
        }
    }

    fn onboard(
        &self,
        parts: &[Part],
        blocks: &[Block],
        pool: &Pool,
        to: &[u32],
        by_layer: bool,
        statuses: &mut [KeyStatus],
    ) {
        if let Some(why) = self.task.stopped() {
            blocks.iter().for_each(|block| statuses[block.key] = why);
            return;
        }
        self.copy(Direction::ToDevice, parts, blocks, pool, to, by_layer, statuses);
    }

    /// Copies between slots of the arena and blocks of a pool, and waits for it.
    #[allow(clippy::too_many_arguments)] // the two sides of a copy, each in several parts
    fn copy(
        &self,
        direction: Direction,
        parts: &[Part],
        blocks: &[Block],
        pool: &Pool,
        device: &[u32],
        by_layer: bool,
        statuses: &mut [KeyStatus],
    ) {
        let copies: Vec<_> =
            blocks.iter().filter_map(|block| Some((device[block.key], self.span(parts, *block)?))).collect();
        blocks.iter().for_each(|block| statuses[block.key] = KeyStatus::Failed);
        if copies.len() != blocks.len() || copies.is_empty() {
            return;
        }
        // SAFETY: the leases in `parts` pin what is read and own what is written, and outlive the wait below: a group
        // that is dropped early, by a panic, waits too.
        match unsafe { pool.copy(direction, &copies, by_layer) } {
            Ok((group, layers)) => {
                if let Some(layers) = layers {
                    self.task.layers_started(layers);
                }
                let failed = group.wait();
                for (position, block) in blocks.iter().enumerate() {
                    if !failed.contains_key(&position) {
                        statuses[block.key] = KeyStatus::Done;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, copies = copies.len(), "the device refused copies"),
        }
    }

    fn span(&self, parts: &[Part], block: Block) -> Option<HostSpan> {
        let slot = parts[block.part].lease.slots().get(block.index as usize)?;
        self.engine.arena().payload_range(*slot)
    }

    fn store(&self, statuses: &mut [KeyStatus]) {
        let keys = self.task.keys.as_slice();
        if self.task.chained {
            self.let_the_disk_catch_up();
            let lease = if keys.is_empty() { None } else { self.engine.acquire(&self.request(keys)).ok() };
            let parts: Vec<_> = lease.map(|lease| Part { lease, keys: 0..keys.len() }).into_iter().collect();
            self.fill(parts, statuses);
            return;
        }
        for (first, group) in groups(keys, self.most) {
            if let Some(why) = self.task.stopped() {
                statuses[first..].fill(why);
                return;
            }
            self.let_the_disk_catch_up();
            let found = self.engine.lookup_each(self.namespace, group);
            // What only NVMe has stays there: to read it in order not to write it would be a waste.
            let skip = |tier: &Option<Tier>| *tier == Some(Tier::Nvme);
            for (status, tier) in statuses[first..].iter_mut().zip(&found) {
                *status = if skip(tier) { KeyStatus::Present } else { KeyStatus::NoRoom };
            }
            let wanted = (first..).zip(group).zip(&found).filter(|(_, tier)| !skip(tier)).map(|(key, _)| key);
            let parts = self.acquire(wanted);
            self.fill(parts, statuses);
        }
    }

    /// Memory is faster than any disk. Once it is full, a put that did not wait would push out blocks that have not been
    /// written yet, and lose them; so it waits while much is unwritten. An offload does not: the runtime needs its blocks
    /// of HBM more.
    fn let_the_disk_catch_up(&self) {
        let put = matches!(self.task.operation, Operation::Put(_));
        while put
            && self.engine.unwritten() > self.most
            && self.free_slots() < WORKERS * self.most
            && !self.engine.nvme_writes_paused()
            && self.task.stopped().is_none()
        {
            std::thread::sleep(CATCH_UP.min(left(self.task.deadline)));
        }
    }

    /// Slots of host memory that can be filled without pushing a block out.
    fn free_slots(&self) -> usize {
        let occupied = self.engine.occupied()[Tier::Host];
        u64::from(self.engine.arena().slots()).saturating_sub(occupied) as usize
    }

    /// Copies in what the leases have room for, and commits it.
    fn fill(&self, mut parts: Vec<Part>, statuses: &mut [KeyStatus]) {
        let mut blocks = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let answer = self.answer(&part.lease);
            let mut broken = false;
            for key in part.keys.clone() {
                let index = (key - part.keys.start) as u32;
                statuses[key] = match answer {
                    Err(why) => why,
                    Ok(answer) if index < answer.ready => KeyStatus::Present,
                    // Behind a block that has neither bytes nor room, none can be found.
                    Ok(_) if broken => KeyStatus::Missing,
                    Ok(answer) if index >= answer.granted => {
                        broken = true;
                        KeyStatus::NoRoom
                    }
                    Ok(_) if self.lacks_bytes(key) => {
                        broken = true;
                        KeyStatus::Missing
                    }
                    Ok(_) => {
                        blocks.push(Block { key, part: at, index });
                        KeyStatus::Failed
                    }
                };
            }
        }
        match &self.task.operation {
            Operation::Put(buffers) => {
                for block in &blocks {
                    statuses[block.key] = self.task.stopped().unwrap_or(KeyStatus::Failed);
                    if statuses[block.key] == KeyStatus::Failed
                        && let Ok(slot) = parts[block.part].lease.host_block_mut(block.index)
                    {
                        let runs = buffers.of(block.key);
                        if self.has_log {
                            // SAFETY: the submitter warrants the buffers until the ticket is done, and their length was
                            // checked at submission.
                            let checksum = unsafe { gather_summed(slot, runs) };
                            let noted = parts[block.part].lease.note_checksum(block.index, checksum);
                            debug_assert!(noted.is_ok(), "the block was given to be written");
                        } else {
                            // SAFETY: as above.
                            unsafe { gather(slot, runs) };
                        }
                        statuses[block.key] = KeyStatus::Done;
                    }
                }
            }
            Operation::Offload(pool, from) => {
                self.copy(Direction::ToHost, &parts, &blocks, pool, from, false, statuses);
            }
            _ => {}
        }
        for part in parts.into_iter().rev() {
            let whole = part.keys.clone().take_while(|key| statuses[*key].is_done()).count();
            // A chain ends at its first gap; what was copied behind it is not kept.
            for key in part.keys.clone().skip(whole) {
                if statuses[key] == KeyStatus::Done {
                    statuses[key] = KeyStatus::Missing;
                }
            }
            end(part.lease, whole as u32);
        }
    }

    fn lacks_bytes(&self, key: usize) -> bool {
        match &self.task.operation {
            Operation::Put(buffers) => buffers.of(key).is_empty(),
            _ => false,
        }
    }

    fn flush(&self) -> KeyStatus {
        self.engine.write_back_all();
        let mut status = KeyStatus::Done;
        while !self.engine.wait_written(LOOK_UP.min(left(self.task.deadline))) {
            if let Some(why) = self.task.stopped() {
                status = why;
                break;
            }
        }
        match self.engine.flush() {
            Ok(()) => status,
            Err(error) => {
                tracing::warn!(%error, "a flush failed");
                KeyStatus::Failed
            }
        }
    }
}

fn copy_out(parts: &[Part], blocks: &[Block], buffers: &Buffers, statuses: &mut [KeyStatus]) {
    for block in blocks {
        statuses[block.key] = KeyStatus::Failed;
        if let Ok(bytes) = parts[block.part].lease.host_block(block.index) {
            // SAFETY: the submitter warrants the buffers until the ticket is done, and their length was checked at
            // submission.
            unsafe { scatter(bytes, buffers.of(block.key)) };
            statuses[block.key] = KeyStatus::Done;
        }
    }
}

/// Blocks `0..kept` were used or stored.
fn end(lease: Lease, kept: u32) {
    if let Err(refused) = lease.commit(kept) {
        // Not answered yet: dropping the lease cancels the request.
        tracing::debug!(reason = %refused.reason, "a lease was cancelled");
    }
}
