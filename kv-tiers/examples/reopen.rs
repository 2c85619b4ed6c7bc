//! How long it takes to reopen a log of a million small records.
//!
//! `cargo run --release -p kv-tiers --example reopen -- DIR` makes a log of about 8.6 GB below DIR, reopens it a few
//! times, with a cold page cache for what is not read with `O_DIRECT`, and removes it.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use kv_core::ids::{JobId, SlotId};
use kv_core::job::{Job, Op, Place, RecordMeta, TransferError, Urgency};
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::{Epoch, Generation};
use kv_core::{RecordIdentity, Verified};
use kv_tiers::arena::{Arena, ArenaConfig};
use kv_tiers::nvme::{CompletionSink, LogConfig, NvmeConfig, NvmeLog, OpenMode};

const PAYLOAD: usize = 4096;
const RECORDS_PER_SEGMENT: u32 = 32_258;
const SEGMENTS: u32 = 31; // 31 x 32,258 = 999,998 records, and one more segment that stays open with two
const OPENINGS: usize = 5;

struct Channel(Sender<Result<(), TransferError>>);
impl CompletionSink for Channel {
    fn complete(&self, _: JobId, result: Result<Verified, TransferError>) {
        if self.0.send(result.map(drop)).is_err() {
            eprintln!("a completion after the end");
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: reopen DIR")?;
    let dir = tempfile::tempdir_in(dir)?;
    let arena = Arena::new(ArenaConfig::new(128, PAYLOAD))?;
    let log = LogConfig {
        segments: SEGMENTS + 1,
        records_per_segment: RECORDS_PER_SEGMENT,
        mode: OpenMode::Recover,
    };
    let config = NvmeConfig { queue_depth: Some(64), ..NvmeConfig::new(dir.path(), log) };

    let started = Instant::now();
    fill(&config, &arena)?;
    eprintln!("made in {:.1} s", started.elapsed().as_secs_f64());
    for _ in 0..OPENINGS {
        let (sender, _completions) = channel();
        let started = Instant::now();
        let (log, recovery) = NvmeLog::open(&config, Arc::clone(&arena), Arc::new(Channel(sender)))?;
        println!(
            "{} records in {:.3} s: recovery {:.3} s, {} MB read, {} damaged",
            recovery.records.len(),
            started.elapsed().as_secs_f64(),
            recovery.elapsed.as_secs_f64(),
            recovery.scanned_bytes >> 20,
            recovery.damaged.len(),
        );
        log.close();
    }
    inspect(dir.path())
}

fn inspect(dir: &Path) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let seen = kv_tiers::nvme::inspect(dir)?;
    println!("inspected {} records in {:.3} s", seen.records, started.elapsed().as_secs_f64());
    Ok(())
}

/// Fills all segments but the last and seals them; the last one gets two records and stays open.
fn fill(config: &NvmeConfig, arena: &Arc<Arena>) -> Result<(), Box<dyn Error>> {
    let (sender, completions) = channel();
    let (log, _) = NvmeLog::open(config, Arc::clone(arena), Arc::new(Channel(sender)))?;
    let generation = Generation(1);
    let submit = |ops: Vec<Op>| -> Result<(), Box<dyn Error>> {
        let jobs: Vec<Job> =
            (0..).zip(ops).map(|(id, op)| Job { id: JobId(id), op, urgency: Urgency::WriteBack }).collect();
        log.submit(&jobs);
        jobs.iter().try_for_each(|_| Ok(completions.recv()??))
    };
    for (segment, left) in (0..=SEGMENTS).map(kv_core::ids::SegmentId).zip((0..=SEGMENTS).rev()) {
        submit(vec![Op::OpenSegment { segment, generation }])?;
        let records = if left == 0 { 2 } else { RECORDS_PER_SEGMENT };
        let indices: Vec<u32> = (0..records).collect();
        for batch in indices.chunks(arena.slots() as usize) {
            let write = |(slot, &index): (u32, &u32)| {
                let place = Place { segment, generation, index };
                Op::Write { host: SlotId(slot), place, record: meta(place) }
            };
            submit((0..).zip(batch).map(write).collect())?;
        }
        if left > 0 {
            submit(vec![Op::SealSegment { segment, generation }])?;
        }
    }
    log.close();
    Ok(())
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
        depth: place.index,
    }
}
