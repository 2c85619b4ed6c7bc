//! A shared file system that hangs in the kernel, for real: ext4 on a loop device, frozen. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kv_tiers::remote::{FsStore, InFlight, Limits, RemoteError, RemoteStore};
use kvtier_tests::remote::{get, key, put, soon, within};

const LEN: usize = 100_000;
const RECORD: u64 = LEN as u64 + 128;

/// Threads of a store.
const THREADS: usize = 16;

fn run(program: &str, arguments: &[&str]) {
    let out = Command::new(program).args(arguments).output();
    let out = out.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A small file system, unmounted when dropped.
struct Mount {
    dir: tempfile::TempDir,
    frozen: bool,
}

impl Mount {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let image = dir.path().join("image");
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run("mkfs.ext4", &["-q", image.to_str().unwrap()]);
        let mount = Self { dir, frozen: false };
        fs::create_dir(mount.path()).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), mount.path().to_str().unwrap()]);
        mount
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// Whoever writes from now on hangs.
    fn freeze(&mut self) {
        run("fsfreeze", &["--freeze", self.path().to_str().unwrap()]);
        self.frozen = true;
    }

    fn thaw(&mut self) {
        self.frozen = false;
        run("fsfreeze", &["--unfreeze", self.path().to_str().unwrap()]);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.frozen {
            self.thaw();
        }
        run("umount", &["--lazy", self.path().to_str().unwrap()]);
    }
}

/// Threads of stores in this process.
fn threads() -> usize {
    let names = fs::read_dir("/proc/self/task").unwrap().map(|task| {
        // It may have ended just now.
        fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
    });
    names.filter(|name| name.starts_with("kvtier-remote")).count()
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
#[ignore = "needs root, a loop device, mkfs.ext4 and fsfreeze: make test runs it for root"]
fn a_file_system_that_hangs_costs_its_threads_and_no_caller() {
    let mut mount = Mount::new();
    let limits = Limits { calls: 20, bytes: 100 * RECORD };
    let store = FsStore::open(&mount.path(), limits).unwrap();
    let blocks: Vec<_> = (0..8).map(|n| key(1, 0, n)).collect();
    let (present, lost) = (&blocks[..4], &blocks[4..]);
    assert_eq!(put(&store, present, LEN, soon()), [Ok(()); 4]);
    assert_eq!(get(&store, present, LEN, soon()), [Ok(()); 4]);
    assert_eq!(threads(), THREADS);

    mount.freeze();
    // Reads need no writes, and go on as long as there are threads.
    assert_eq!(get(&store, present, LEN, soon()), [Ok(()); 4]);
    let mut late = 0;
    for n in 0..100 {
        match put(&store, &lost[n % 4..=n % 4], LEN, within(10))[0] {
            Err(RemoteError::Late) => late += 1,
            other => panic!("{other:?}"),
        }
    }
    // The last of the threads may have been on its way.
    while store.in_flight().calls > THREADS as u32 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(store.in_flight(), InFlight { calls: THREADS as u32, bytes: THREADS as u64 * RECORD });
    assert_eq!(threads(), THREADS);
    // Now nothing gets through, and callers leave all the same.
    assert_eq!(get(&store, present, LEN, within(10)), [Err(RemoteError::Late); 4]);
    assert_eq!(store.exists(present, within(10)).wait(), [Err(RemoteError::Late); 4]);
    let sweep = store.sweep(lost[0].namespace, lost[0].epoch, within(10));
    assert_eq!(sweep.wait(), Err(RemoteError::Late));
    // Calls that nobody has left yet are bounded by the limits.
    let waiting: Vec<_> = (0..10).map(|_| store.exists(present, soon())).collect();
    assert_eq!(waiting.iter().filter(|call| call.is_done()).count(), 10 - (20 - THREADS));
    drop(waiting);
    assert_eq!(store.in_flight().calls, THREADS as u32);

    mount.thaw();
    while store.in_flight() != InFlight::default() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((late, store.counters().late), (100, 100 + 4 + 4 + 1));
    // What hung had no caller any more: it was undone, not stored late.
    assert_eq!(files(&mount.path().join("kvtier-1/tmp")), 0);
    assert_eq!(get(&store, lost, LEN, soon()), [Err(RemoteError::Absent); 4]);
    assert_eq!(get(&store, present, LEN, soon()), [Ok(()); 4]);
    assert_eq!(put(&store, lost, LEN, soon()), [Ok(()); 4]);

    // A store that is closed meanwhile waits for nobody; its threads end when the kernel lets them go.
    mount.freeze();
    assert_eq!(put(&store, lost, LEN, within(50)), [Err(RemoteError::Late); 4]);
    drop(store);
    mount.thaw();
    while threads() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}
