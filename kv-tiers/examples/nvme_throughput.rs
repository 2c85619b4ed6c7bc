//! How fast the NVMe log moves records, from submission to verified completion.
//!
//! `cargo run --release -p kv-tiers --example nvme_throughput -- DIR read|write PAYLOAD_BYTES DEPTH SECONDS [uring|pool]`
//!
//! Writes rewrite segments whose space was written before, with their opening and sealing; reads are random
//! and verified. Prints MB/s of whole records. The log (2 GiB) stays in DIR for the next run; remove it afterwards.
//!
//! The same from fio, on the same files, with the huge pages that the arena has too (without them fio writes large
//! blocks at half the rate); for writes, `--rw=write` without `--readonly`:
//!
//! ```text
//! GLIBC_TUNABLES=glibc.malloc.hugetlb=1 fio --name=x --filename=$(ls DIR/seg-* | paste -sd:) --readonly --rw=randread \
//!   --bs=$((PAYLOAD_BYTES + 4096)) --ba=4096 --iodepth=DEPTH --ioengine=io_uring --fixedbufs --registerfiles \
//!   --direct=1 --norandommap --runtime=SECONDS --time_based
//! ```

use std::collections::VecDeque;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use kv_core::ids::{JobId, SegmentId, SlotId};
use kv_core::job::{Job, Op, Place, RecordMeta, TransferError, Urgency};
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::{Epoch, Generation};
use kv_core::{RecordIdentity, Verified};
use kv_tiers::arena::{Arena, ArenaConfig};
use kv_tiers::nvme::{Backend, CompletionSink, LogConfig, NvmeConfig, NvmeLog, OpenMode};

const LOG_BYTES: u64 = 2 << 30;

struct Channel(Sender<(JobId, Result<(), TransferError>)>);
impl CompletionSink for Channel {
    fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
        if self.0.send((job, result.map(drop))).is_err() {
            eprintln!("a completion after the end");
        }
    }
}

struct Bench {
    log: NvmeLog,
    completions: Receiver<(JobId, Result<(), TransferError>)>,
    generations: Vec<u64>,
    records: u32,
    slots: u32,
}

fn meta(place: Place) -> RecordMeta {
    let mut key = [1; 16];
    key[..4].copy_from_slice(&place.index.to_le_bytes());
    key[4..8].copy_from_slice(&place.segment.0.to_le_bytes());
    RecordMeta {
        identity: RecordIdentity {
            namespace: NamespaceId([1; 16]),
            epoch: Epoch(0),
            fingerprint: Fingerprint([2; 16]),
            key: BlockKey::from_bytes(key),
            generation: place.generation,
        },
        parent: BlockKey::ROOT,
        depth: 0,
    }
}

impl Bench {
    /// Keeps a slot's worth of jobs submitted until the time is over; records per second.
    fn run(
        &mut self,
        time: Duration,
        mut next: impl FnMut(&mut Self, SlotId) -> Vec<Op>,
    ) -> Result<f64, Box<dyn Error>> {
        let mut free: VecDeque<SlotId> = (0..self.slots).map(SlotId).collect();
        let (mut submitted, mut completed, mut records) = (0u64, 0u64, 0u64);
        let mut slot_of = Vec::new();
        let started = Instant::now();
        loop {
            let running = started.elapsed() < time;
            while running && let Some(slot) = free.pop_front() {
                let mut jobs = Vec::new();
                for op in next(self, slot) {
                    let uses_slot = matches!(op, Op::Read { .. } | Op::Write { .. });
                    slot_of.push(uses_slot.then_some(slot));
                    let urgency =
                        if matches!(op, Op::Read { .. }) { Urgency::Demand } else { Urgency::WriteBack };
                    jobs.push(Job { id: JobId(submitted), op, urgency });
                    submitted += 1;
                }
                self.log.submit(&jobs);
            }
            if completed == submitted {
                return Ok(records as f64 / started.elapsed().as_secs_f64());
            }
            let (job, result) = self.completions.recv()?;
            result?;
            completed += 1;
            if let Some(slot) = slot_of[job.0 as usize] {
                records += 1;
                free.push_back(slot);
            }
        }
    }

    /// The next write, with the openings and sealings around it. A segment is opened while the one before it is
    /// filled: an opening is two small writes and two syncs, which wait behind everything that the device has to do.
    fn write(&mut self, at: u64, until: u64, slot: SlotId) -> Vec<Op> {
        let records = u64::from(self.records);
        let index = (at % records) as u32;
        let mut ops = Vec::new();
        if at == 0 {
            ops.push(self.open(0));
        }
        if index == 0 && at + records < until {
            ops.push(self.open(at / records + 1));
        }
        let segment = self.segment(at / records);
        let generation = Generation(self.generations[segment.0 as usize]);
        let place = Place { segment, generation, index };
        ops.push(Op::Write { host: slot, place, record: meta(place) });
        if index + 1 == self.records {
            ops.push(Op::SealSegment { segment, generation });
        }
        ops
    }

    fn segment(&self, turn: u64) -> SegmentId {
        SegmentId((turn % self.generations.len() as u64) as u32)
    }

    fn open(&mut self, turn: u64) -> Op {
        let segment = self.segment(turn);
        let generation = &mut self.generations[segment.0 as usize];
        *generation += 1;
        Op::OpenSegment { segment, generation: Generation(*generation) }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (dir, kind, payload, depth, seconds, backend) =
        match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [dir, kind, payload, depth, seconds] => (dir, kind, payload, depth, seconds, "uring"),
            [dir, kind, payload, depth, seconds, backend] => (dir, kind, payload, depth, seconds, backend),
            _ => return Err("usage: DIR read|write PAYLOAD_BYTES DEPTH SECONDS [uring|pool]".into()),
        };
    let (payload, depth, seconds): (usize, u32, f64) = (payload.parse()?, depth.parse()?, seconds.parse()?);
    let backend = if backend == "pool" { Backend::Pool } else { Backend::Uring };
    let dir = PathBuf::from(dir);
    std::fs::create_dir_all(&dir)?;

    let slots = 2 * depth;
    let arena = Arena::new(ArenaConfig::new(slots, payload))?;
    eprintln!("{:?}", arena.report());
    for slot in 0..slots {
        // SAFETY: no job is in flight.
        let bytes = unsafe { arena.payload_mut(SlotId(slot)) };
        bytes
            .iter_mut()
            .enumerate()
            .for_each(|(i, b)| *b = (i as u32).wrapping_mul(0x9E37_79B9 + slot) as u8);
    }
    let stride = arena.slot_bytes();
    // The space of an earlier run was written before, whoever wrote it last.
    let seasoned = dir.join("seg-00000.kvt").exists();
    let mode = if kind == "write" { OpenMode::Fresh } else { OpenMode::Recover };
    let log = LogConfig { mode, ..LogConfig::sized(LOG_BYTES, payload) };
    let (sender, completions) = channel();
    let config = NvmeConfig { dir, log, backend, queue_depth: Some(depth) };
    let (log, recovery) = NvmeLog::open(&config, arena, Arc::new(Channel(sender)))?;
    eprintln!("{}", log.why());
    let records = config.log.records_per_segment;
    let total = u64::from(records) * recovery.segments.len() as u64;
    let generations = recovery.segments.iter().map(|s| s.generation.0).collect();
    let mut bench = Bench { log, completions, generations, records, slots };

    let enough = if kind == "write" { seasoned } else { recovery.records.len() as u64 == total };
    if !enough {
        // Space that was never written is slower to write, and reads as zeros without asking the disk.
        let mut at = 0;
        bench
            .run(Duration::from_secs(600), |bench, slot| {
                let ops = if at < total { bench.write(at, total, slot) } else { Vec::new() };
                at += 1;
                ops
            })
            .map_err(|e| format!("filling the log: {e}"))?;
    }
    let time = Duration::from_secs_f64(seconds);
    let rate = if kind == "write" {
        let mut at = 0;
        bench.run(time, |bench, slot| {
            at += 1;
            bench.write(at - 1, u64::MAX, slot)
        })?
    } else {
        let mut random = 1u64;
        bench.run(time, |bench, slot| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (random >> 33) % total;
            let segment = (at / u64::from(bench.records)) as u32;
            let generation = Generation(bench.generations[segment as usize]);
            let place = Place {
                segment: SegmentId(segment),
                generation,
                index: (at % u64::from(bench.records)) as u32,
            };
            vec![Op::Read { place, host: slot, expect: meta(place).identity }]
        })?
    };
    println!("{:.0}", rate * stride as f64 / 1e6);
    bench.log.close();
    Ok(())
}
