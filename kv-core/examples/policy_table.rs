//! Hit rates of every eviction policy as a share of the offline optimum.
//!
//! ```text
//! cargo run --release -p kv-core --example policy_table -- trace.jsonl ...
//! ```
//!
//! Each line of a trace is `{"timestamp": <ms>, "hash_ids": [<block>, ...], ...}` (the format of the
//! Mooncake traces).

#[path = "../tests/policy/replay.rs"]
mod replay;

use kv_core::policy::{Optimum, PolicyKind, build};
use kv_core::units::Nanos;
use replay::Trace;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::time::Instant;

fn load(path: &str) -> Result<Trace, Box<dyn Error>> {
    let mut trace = Trace::default();
    for line in BufReader::new(std::fs::File::open(path)?).lines() {
        let row: serde_json::Value = serde_json::from_str(&line?)?;
        let now = row["timestamp"].as_u64().ok_or("a line has no timestamp")?;
        let names = row["hash_ids"].as_array().ok_or("a line has no hash_ids")?;
        trace.push(Nanos::from_millis(now), names.iter().filter_map(serde_json::Value::as_u64));
    }
    Ok(trace)
}

fn table(path: &str) -> Result<(), Box<dyn Error>> {
    let trace = load(path)?;
    let optimum = Optimum::new(trace.requests.iter().map(|r| &r.chain));
    let (unique, uses) = (optimum.unique_blocks(), optimum.block_uses());
    println!("{path}: {} requests, {uses} block uses, {unique} unique blocks", trace.requests.len());
    println!("{:>10} {:>12} {:>8} {:>10} {:>8}", "capacity", "policy", "hits %", "optimum %", "ns/use");
    let shares = [2, 10, 30].map(|percent| unique * percent / 100);
    for capacity in shares.into_iter().chain([1_000, 10_000, 30_000]).filter(|c| *c <= unique) {
        let started = Instant::now();
        let best = optimum.hits(capacity);
        let row = |name: &str, hits: u64, started: Instant| {
            println!(
                "{capacity:>10} {name:>12} {:>8.2} {:>10.2} {:>8.0}",
                100.0 * hits as f64 / uses as f64,
                100.0 * hits as f64 / best.max(1) as f64,
                started.elapsed().as_nanos() as f64 / uses as f64,
            );
        };
        row("optimum", best, started);
        for kind in PolicyKind::ALL {
            let mut policy = build(kind, capacity);
            let started = Instant::now();
            let hits = replay::replay(&trace, capacity, policy.as_mut());
            row(policy.name(), hits, started);
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    if paths.is_empty() {
        return Err("name at least one trace file".into());
    }
    paths.iter().try_for_each(|path| table(path))
}
