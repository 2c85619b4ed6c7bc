//! `kill -9` at any moment, again and again, over the same logs.
//!
//! A victim (`src/bin/crash-victim.rs`) stores blocks through the real engine, io_uring and all, and
//! says which ones a returned flush has made durable. It is killed at a random moment, which may be while it
//! recovers from the last kill. Then the log must open; serve all that was acknowledged; serve nothing that
//! is not, byte for byte, what was stored; and balance its books.
//!
//! A killed process loses nothing that the kernel has taken on, so this says nothing about power failures:
//! those are in the simulation, whose disk forgets what was not synced.
//!
//! `KVTIER_SOAK=1` kills ten times as often; `KVTIER_CRASH_SEED=n` chooses other moments.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kv_core::key::BlockKey;
use kv_core::tier::Tier;
use kv_tiers::engine::Engine;
use kvtier_benches::SplitMix64;
use kvtier_tests::chains;
use kvtier_tests::runtime::{LONG, Runtime};
use kvtier_tests::victim::{LONGEST, Series, acknowledged};
use tempfile::TempDir;

/// What a series has shown.
#[derive(Debug, Default)]
struct Shown {
    kills: u64,
    /// Kills before the victim had opened its log and written.
    early: u64,
    logs: u64,
    acknowledged: u64,
    verified: u64,
    records: u64,
    most_records: u64,
    torn: u64,
    reopened: Vec<Duration>,
}

impl Shown {
    fn print(&mut self, series: Series, seed: u64) {
        self.reopened.sort_unstable();
        let (median, max) = (self.reopened[self.reopened.len() / 2], self.reopened[self.reopened.len() - 1]);
        println!(
            "{} (seed {seed}): {} kills, {} of them before the first write, over {} logs; {} blocks acknowledged; {} \
             opened, {} records at the last, {} at most, {} damaged places; {} blocks verified; reopened in {median:.1?} \
             (median), {max:.1?} (longest)",
            series.name(),
            self.kills,
            self.early,
            self.logs,
            self.acknowledged,
            self.reopened.len(),
            self.records,
            self.most_records,
            self.torn,
            self.verified,
        );
    }
}

/// One log and what must be in it.
struct Log {
    dir: TempDir,
    promised: HashSet<BlockKey>,
    /// Segments that are free for certain.
    room: usize,
}

impl Log {
    fn new(series: Series) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let room = series.config(dir.path()).nvme.unwrap().log.segments as usize;
        Self { dir, promised: HashSet::new(), room }
    }
}

fn kill_again_and_again(series: Series, kills: u64) -> Shown {
    let kills = if std::env::var_os("KVTIER_SOAK").is_some() { 10 * kills } else { kills };
    let seed = std::env::var("KVTIER_CRASH_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let mut rng = SplitMix64::new(seed);
    let mut shown = Shown { logs: 1, ..Shown::default() };
    let mut log = Log::new(series);
    for life in 0..kills {
        let heard = live_and_die(log.dir.path(), series, life, &mut rng);
        let (promised, wrote) = acknowledged(&heard);
        shown.kills += 1;
        shown.early += u64::from(!wrote);
        shown.acknowledged += promised.len() as u64;
        log.promised.extend(promised);
        log.room = log.room.saturating_sub(series.segments_per_life());
        // Now and then the next victim is the first to see what the last one left.
        if log.room < series.segments_per_life() || !rng.once_in(3) || life + 1 == kills {
            log.room = check(&log, series, life, &mut shown);
        }
        if series == Series::Growing && log.room < series.segments_per_life() {
            log = Log::new(series);
            shown.logs += 1;
        }
    }
    shown.print(series, seed);
    shown
}

/// Returns what the victim had said when it was killed: one time in four a while after it was started, which
/// it may have spent opening its log; else a while after its first word.
fn live_and_die(dir: &Path, series: Series, life: u64, rng: &mut SplitMix64) -> Vec<u8> {
    let mut victim = Command::new(env!("CARGO_BIN_EXE_crash-victim"))
        .arg(dir)
        .args([series.name(), &life.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut mouth = victim.stdout.take().unwrap();
    let (first_word, spoken) = mpsc::channel();
    let listener = std::thread::spawn(move || {
        let mut heard = vec![0];
        mouth.read_exact(&mut heard).ok()?;
        first_word.send(()).ok();
        mouth.read_to_end(&mut heard).ok().map(|_| heard)
    });
    if !rng.once_in(4) {
        // Fails at once if the victim dies without a word; its status, below, says why.
        spoken.recv_timeout(LONG).ok();
    }
    std::thread::sleep(Duration::from_micros(rng.between(1_000, 100_000)));
    let killed = victim.kill();
    let status = victim.wait().unwrap();
    assert!(killed.is_ok() && status.signal() == Some(9), "life {life} ended by itself: {status}");
    listener.join().unwrap().unwrap_or_default()
}

/// Opens the log after a kill and looks at everything in it. Returns the free segments.
fn check(log: &Log, series: Series, life: u64, shown: &mut Shown) -> usize {
    let start = Instant::now();
    let opened = Engine::open(&series.config(log.dir.path())).expect("the log opens after any crash");
    shown.reopened.push(start.elapsed());
    let recovery = opened.recovery.unwrap();
    let runtime = Runtime::new(opened.engine, None);

    let found: HashSet<BlockKey> = recovery.records.iter().map(|r| r.meta.identity.key).collect();
    for key in &found {
        let (chain, index) = chains::name(*key).expect("no key that nobody stored");
        assert!(chain >> 20 <= life && index < LONGEST, "block {index} of chain {chain:#x} was never stored");
    }
    if series == Series::Growing {
        for key in &log.promised {
            let name = chains::name(*key);
            assert!(
                runtime.engine.residency(*key)[Tier::Nvme],
                "{name:?} was durable and is gone after life {life}"
            );
        }
        assert_eq!(opened.served, found.len() as u64, "nothing was written twice");
    }
    // In chains, as far as they are there.
    let mut keys: Vec<BlockKey> = found.into_iter().collect();
    keys.sort_unstable_by_key(|key| chains::name(*key));
    for group in keys.chunks(LONGEST as usize) {
        let ready = runtime.read(group);
        // Reading makes a log without room reclaim a segment, which others may be read from.
        if series == Series::Growing {
            assert_eq!((ready.ready as usize, ready.lost), (group.len(), 0), "what is served can be loaded");
        }
    }
    runtime.engine.quiesce(LONG).unwrap();
    runtime.engine.audit().unwrap();
    let stats = runtime.engine.stats();
    assert_eq!((stats.refused_loads, stats.failed_loads), (0, 0), "recovery promised no torn record");
    if series == Series::Growing {
        assert_eq!((stats.evictions[Tier::Nvme], stats.nvme_writes), (0, 0));
    }
    shown.records = keys.len() as u64;
    shown.most_records = shown.most_records.max(shown.records);
    shown.torn += recovery.damaged.len() as u64;
    shown.verified += runtime.verified();
    runtime.engine.shutdown(LONG).unwrap();
    recovery.segments.iter().filter(|segment| !segment.occupied).count()
}

#[test]
fn what_was_durable_survives_a_kill_at_any_moment() {
    // A third of the kills is looked at only after the next one; 200 shall be looked at each on its own.
    let shown = kill_again_and_again(Series::Growing, 320);
    assert!(shown.reopened.len() >= 200, "{shown:?}");
    assert!(shown.early < shown.kills / 2 && shown.acknowledged > 20 * shown.kills, "{shown:?}");
    assert!(shown.verified > shown.acknowledged && shown.most_records > 5000, "{shown:?}");
}

#[test]
fn a_log_that_reclaims_all_the_time_never_serves_a_wrong_byte() {
    let shown = kill_again_and_again(Series::Reclaiming, 60);
    assert!(shown.early < shown.kills / 2 && shown.acknowledged > 20 * shown.kills, "{shown:?}");
    assert!(shown.verified > 30 * shown.reopened.len() as u64, "{shown:?}");
}
