//! A user of a shared directory in a process of its own, with limits of its own. See `tests/remote_fs.rs`.
//!
//! `remote-victim DIR write SEED` stores blocks until it is killed; `remote-victim DIR once BYTES` stores one,
//! asks for it, and says how both went.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a broken promise must stop a test

use std::path::Path;

use kv_tiers::remote::{FsStore, Limits};
use kvtier_benches::SplitMix64;
use kvtier_tests::remote::{get, key, put, soon};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, what, number] = args.as_slice() else {
        panic!("usage: remote-victim DIR write|once NUMBER")
    };
    let number: u64 = number.parse().expect("a number");
    // SAFETY: nothing runs yet. A file that may grow no more is then an error and not a signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let store = match FsStore::open(Path::new(dir), Limits::default()) {
        Ok(store) => store,
        Err(error) => return println!("{error}"),
    };
    match what.as_str() {
        "write" => {
            let mut rng = SplitMix64::new(number);
            loop {
                let keys: Vec<_> = (0..8).map(|_| key(1, 0, rng.below(64))).collect();
                put(&store, &keys, 256 << 10, soon());
            }
        }
        "once" => {
            let block = [key(2, 0, 0)];
            let stored = put(&store, &block, number as usize, soon());
            let found = get(&store, &block, number as usize, soon());
            println!("{:?} {:?}", stored[0], found[0]);
        }
        _ => panic!("write or once"),
    }
}
