//! A runtime that owns its pages: stores 16 of them, and gets them back. `cargo run -p kvtier-ffi --example store`
//! with a directory on an NVMe filesystem to have them there, too.

use std::path::PathBuf;
use std::time::Duration;

use kvtier_ffi::{Buffers, Identity, Run, Store, StoreConfig, Submission};

const PAGES: usize = 16;
const PAGE: usize = 64 << 10;

fn runs(pages: &mut [Vec<u8>]) -> Result<Buffers, kvtier_ffi::BatchError> {
    let runs = pages.iter_mut().map(|page| Run { start: page.as_mut_ptr(), len: page.len() }).collect();
    Buffers::even(runs, PAGES)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let identity = Identity {
        model: "llama-3.1-8b".into(),
        revision: "0e9e39f".into(),
        layout: "bf16 NHD tp0/1".into(),
        ..Identity::default()
    };
    let mut config = StoreConfig::new(PAGE, 16 << 20, identity);
    config.nvme = std::env::args().nth(1).map(|dir| (PathBuf::from(dir), 256 << 20));
    let store = Store::open(&config)?;

    let hashes: Vec<[u8; 32]> = (0..PAGES).map(|page| [page as u8; 32]).collect();
    let batch = || store.keys(hashes.iter().map(<[u8; 32]>::as_slice)).map(Submission::of);
    let mut pages: Vec<_> = (0..PAGES).map(|page| vec![page as u8; PAGE]).collect();
    // SAFETY: nobody touches the pages until the ticket is done.
    let put = unsafe { store.put(batch()?, runs(&mut pages)?)? };
    put.wait(Duration::from_secs(10)).ok_or("the put takes too long")?;

    let mut back = vec![vec![0; PAGE]; PAGES];
    // SAFETY: as above.
    let get = unsafe { store.get(batch()?, runs(&mut back)?)? };
    let summary = get.wait(Duration::from_secs(10)).ok_or("the get takes too long")?;
    let right = pages.iter().zip(&back).filter(|(stored, got)| stored == got).count();
    println!("{} pages came back, {right} of {PAGES} are right", summary.done);
    store.close(Duration::from_secs(10))?;
    if right == PAGES { Ok(()) } else { Err("wrong bytes".into()) }
}
