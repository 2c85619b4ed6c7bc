//! A shared directory and processes that are killed, limited, or not allowed to write.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kv_tiers::remote::{FsStore, Limits, RemoteError, RemoteStore};
use kvtier_benches::SplitMix64;
use kvtier_tests::remote::{get, key, put, soon};

fn victim(dir: &Path, what: &str, number: u64) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remote-victim"));
    command.arg(dir).arg(what).arg(number.to_string());
    command
}

/// What a victim that ends by itself said.
fn says(mut victim: Command) -> String {
    let output = victim.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// tmpfs where there is one: what is tested is not the disk.
fn directory() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

/// Two writers of the same blocks at a time, killed wherever they are. Every block stays whole or absent for the
/// reader beside them and for all later ones.
#[test]
fn killed_writers_leave_whole_blocks_or_none() {
    let dir = directory();
    let store = FsStore::open(dir.path(), Limits::default()).unwrap();
    let keys: Vec<_> = (0..64).map(|n| key(1, 0, n)).collect();
    let mut rng = SplitMix64::new(1);
    let mut reads = 0;
    for life in 0..20 {
        let mut victims =
            [0, 1].map(|i| victim(dir.path(), "write", life * 2 + i).stdin(Stdio::null()).spawn().unwrap());
        let start = reads;
        let enough = rng.between(1, 8);
        // The first life is not killed before it has written, so that there is something to read.
        while reads - start < enough * 64 || life == 0 && store.counters().hits == 0 {
            for result in get(&store, &keys, 256 << 10, soon()) {
                assert!(matches!(result, Ok(()) | Err(RemoteError::Absent)), "{result:?}");
                reads += 1;
            }
            std::thread::sleep(Duration::from_millis(rng.below(4)));
        }
        for victim in &mut victims {
            victim.kill().unwrap();
            victim.wait().unwrap();
        }
    }
    let counters = store.counters();
    let left_over = files(&dir.path().join("kvtier-1/tmp"));
    println!("40 kills: {reads} reads, {} verified, {left_over} files left over", counters.hits);
    assert_eq!(counters.hits + counters.absent, reads);
    assert!(left_over > 0, "no writer was killed in the middle");
    // A purge takes what the dead had begun as well.
    let there = get(&store, &keys, 256 << 10, soon()).iter().filter(|r| r.is_ok()).count();
    let swept = store.sweep(keys[0].namespace, keys[0].epoch, soon()).wait().unwrap();
    assert_eq!((swept.removed, swept.writers), ((there + left_over) as u64, 0));
    assert_eq!(files(&dir.path().join("kvtier-1/tmp")), 0);
}

#[test]
fn a_file_that_cannot_grow_is_a_counted_miss_and_leaves_nothing() {
    let dir = directory();
    let limited = |bytes| {
        let mut victim = victim(dir.path(), "once", bytes);
        // SAFETY: only a system call between fork and exec.
        unsafe {
            victim.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: 100_000, rlim_max: 100_000 };
                match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            })
        };
        says(victim)
    };
    assert_eq!(limited(200_000), "Err(NoSpace) Err(Absent)");
    assert_eq!(files(&dir.path().join("kvtier-1/tmp")), 0);
    assert_eq!(limited(99_000), "Ok(()) Ok(())");
}

/// A file system of 1 MiB, in a namespace of its own, which needs no root.
#[test]
fn a_full_file_system_is_a_counted_miss_and_leaves_nothing() {
    let dir = directory();
    let mount = dir.path().to_str().unwrap();
    let in_full = |bytes: u64| {
        let script = "mount -t tmpfs -o size=1m full \"$1\" && \"$0\" \"$1\" once \"$2\" && find \"$1\" -type f | wc -l";
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        command.args([env!("CARGO_BIN_EXE_remote-victim"), mount, &bytes.to_string()]);
        says(command)
    };
    // The largest that fits beside its directories, and one that does not.
    assert_eq!(in_full(900_000), "Ok(()) Ok(())\n1");
    assert_eq!(in_full(1_100_000), "Err(NoSpace) Err(Absent)\n0");
    assert_eq!(in_full(50_000_000), "Err(NoSpace) Err(Absent)\n0");
}

#[test]
fn a_directory_that_may_not_be_written_is_an_error_at_open_and_a_miss_later() {
    let dir = directory();
    let root = dir.path().join("share");
    fs::create_dir(&root).unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let nobody = || {
        let mut victim = victim(&root, "once", 100);
        // SAFETY: only a system call.
        if unsafe { libc::geteuid() } == 0 {
            // Permissions do not bind root.
            victim.uid(65_534).gid(65_534);
        }
        says(victim)
    };
    mode(dir.path(), 0o755);
    mode(&root, 0o555);
    let said = nobody();
    assert!(said.contains("Permission denied") && said.contains("let this user write it"), "{said}");

    mode(&root, 0o777);
    assert_eq!(nobody(), "Ok(()) Ok(())");
    // Everything may be read, nothing new made.
    let store = FsStore::open(&root, Limits::default()).unwrap();
    assert_eq!(store.sweep(key(2, 0, 0).namespace, key(2, 0, 0).epoch, soon()).wait().unwrap().removed, 1);
    mode(&root.join("kvtier-1"), 0o555);
    assert_eq!(fs::remove_dir(root.join("kvtier-1").join("02".repeat(16))).map_err(|e| e.kind()), Ok(()));
    assert_eq!(nobody(), "Err(Denied) Err(Absent)");
    assert_eq!(files(&root.join("kvtier-1/tmp")), 0);
    mode(&root.join("kvtier-1"), 0o755);
}

/// A store that is closed while calls are under way gives every permit back and blocks nobody.
#[test]
fn closing_a_store_waits_for_nothing() {
    let dir = directory();
    for _ in 0..50 {
        let store = FsStore::open(dir.path(), Limits::default()).unwrap();
        let keys: Vec<_> = (0..64).map(|n| key(3, 0, n)).collect();
        put(&store, &keys[..1], 1000, soon());
        let pending: Vec<_> = (0..20).map(|_| store.exists(&keys, soon())).collect();
        drop(store);
        for call in pending {
            let answers = call.wait();
            assert!(answers.iter().all(|a| matches!(a, Ok(_) | Err(RemoteError::Closed))), "{answers:?}");
        }
    }
}
