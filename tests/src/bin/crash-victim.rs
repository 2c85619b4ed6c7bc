//! Stores fresh chains as fast as it can until it is killed. See `tests/crash.rs`.
//!
//! `crash-victim DIR SERIES LIFE`: the log's directory, its kind, and a number that no earlier life had.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a broken promise must stop a test

use std::io;
use std::path::Path;

use kv_core::tier::Tier;
use kv_tiers::engine::Engine;
use kvtier_benches::SplitMix64;
use kvtier_tests::chains::chain;
use kvtier_tests::runtime::Runtime;
use kvtier_tests::victim::{LONGEST, Series, acknowledge};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, series, life] = args.as_slice() else { panic!("usage: crash-victim DIR SERIES LIFE") };
    let series = Series::of(series).expect("a series");
    let life: u64 = life.parse().expect("LIFE is a number");
    let opened = Engine::open(&series.config(Path::new(dir))).expect("the log opens after any crash");
    let old: Vec<_> =
        opened.recovery.expect("there is a log").records.iter().map(|r| r.meta.identity.key).collect();
    let runtime = Runtime::new(opened.engine, None);

    let mut rng = SplitMix64::new(life);
    let mut fresh = (life << 20)..;
    let mut written = Vec::new();
    let mut killer = io::stdout().lock();
    loop {
        for _ in 0..rng.between(1, 12) {
            if runtime.engine.stats().nvme_writes < series.records_per_life() {
                let keys = chain(fresh.next().unwrap(), rng.between(1, LONGEST));
                runtime.serve(&keys);
                written.extend(keys);
            }
            if rng.once_in(4) && !old.is_empty() {
                runtime.read(&[old[rng.below(old.len() as u64) as usize]]);
            }
        }
        let mut durable = Vec::new();
        written.retain(|key| {
            let there = runtime.engine.residency(*key);
            if there[Tier::Nvme] {
                durable.push(*key);
            }
            // Evicted before it could be written: it is a cache.
            there[Tier::Host] && !there[Tier::Nvme]
        });
        runtime.engine.flush().expect("the disk works");
        if acknowledge(&durable, &mut killer).is_err() {
            return;
        }
    }
}
