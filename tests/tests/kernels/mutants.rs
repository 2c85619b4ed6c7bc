//! Planted defects: each must make the very checks fail that the kernels pass. A test that cannot fail proves nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Mutex;

use kvtier_tests::host_kernels::{self, HostKernels, sources};

use super::checks;

/// Names the library that `the_checks_hold` looks at, in the process that a mutant is run in.
const LIBRARY: &str = "KVTIER_TEST_HOST_KERNELS";

struct Mutant {
    defect: &'static str,
    file: &'static str,
    /// Occurs once.
    from: &'static str,
    to: &'static str,
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        defect: "blocks are used before all threads have fetched theirs",
        file: "walk.cuh",
        from: "kv_fetch_blocks(tile, blocks, first, count, threadIdx.x, blockDim.x);\n        __syncthreads();",
        to: "kv_fetch_blocks(tile, blocks, first, count, threadIdx.x, blockDim.x);",
    },
    Mutant {
        defect: "a tile is overwritten while others read it",
        file: "walk.cuh",
        from: "__syncthreads(); /* nobody reads the last tile any more */",
        to: "",
    },
    Mutant {
        defect: "a level takes the stride of another",
        file: "walk.cuh",
        from: "address += at.index[level] * view.step[level];",
        to: "address += at.index[level] * view.step[level == 2 ? 3 : level];",
    },
    Mutant {
        defect: "a block begins with its first run, whichever is asked for",
        file: "walk.cuh",
        from: "run.quotient + nest.first_run",
        to: "run.quotient",
    },
    Mutant {
        defect: "division rounds up at multiples",
        file: "divisor.cuh",
        from: "(__umulhi(n, by.multiplier) + n) >> by.shift",
        to: "(__umulhi(n, by.multiplier) + n + 1) >> by.shift",
    },
    Mutant {
        defect: "the tail of a batch is dropped",
        file: "copy.cu",
        from: "if (n + j * blockDim.x < end) {",
        to: "if (n + j * blockDim.x < end && n + (KV_COPY_BATCH - 1) * blockDim.x < end) {",
    },
    Mutant {
        defect: "the bytes after the last are zeroed",
        file: "zero.cu",
        from: "n < end; n += blockDim.x",
        to: "n <= end; n += blockDim.x",
    },
    Mutant {
        defect: "a slot is stored before its load has landed",
        file: "bulk.cu",
        from: "kv_barrier_wait(&from.barrier, parity);",
        to: "(void)parity;",
    },
    Mutant { defect: "the phase parity never turns", file: "bulk.cu", from: "parity ^= 1;", to: "" },
    Mutant {
        defect: "a slot is loaded before its store has read it",
        file: "bulk.cu",
        from: "kv_bulk_wait_read<1>();",
        to: "kv_bulk_wait_read<2>();",
    },
    Mutant {
        defect: "a CTA ends before its last stores have read its memory",
        file: "bulk.cu",
        from: "kv_bulk_wait_all();",
        to: "",
    },
    Mutant {
        defect: "lanes use a tile that others have not fetched",
        file: "bulk.cu",
        from: "lane, KV_LANES);\n            __syncwarp();",
        to: "lane, KV_LANES);",
    },
    Mutant {
        defect: "the last piece of a run is as long as the others",
        file: "bulk.cu",
        from: "left < ring.slot_vectors ? left : ring.slot_vectors",
        to: "left < 1 ? left : ring.slot_vectors",
    },
    Mutant {
        defect: "the ring is one slot longer than the memory",
        file: "bulk.cu",
        from: "ring.depth = slots / ring.lanes;",
        to: "ring.depth = slots / ring.lanes + 1;",
    },
    Mutant {
        defect: "a thread's part of the CRC is combined at the wrong place",
        file: "digest.cu",
        from: "(blockDim.x - 1 - threadIdx.x)",
        to: "(blockDim.x - threadIdx.x)",
    },
    Mutant {
        defect: "the two words of a vector change places",
        file: "digest.cu",
        from: "kv_crc_multiply(kv_crc_multiply(sum[0], KV_CRC_X64), plan.tail)",
        to: "kv_crc_multiply(sum[0], plan.tail)",
    },
    Mutant {
        defect: "a warp's part is overwritten by that of the next block",
        file: "digest.cu",
        from: "__syncthreads(); /* `partial` may be written again */",
        to: "",
    },
    Mutant {
        defect: "short blocks keep inverted bits that they have not",
        file: "digest.cu",
        from: "if (bytes < 8) {",
        to: "if (bytes == 0) {",
    },
    Mutant {
        defect: "a product is used before its table is full",
        file: "crc64.cuh",
        from: "factor);\n    }\n    __syncthreads();",
        to: "factor);\n    }",
    },
    Mutant {
        defect: "a tile of the product is overwritten while others read it",
        file: "gemm.cu",
        from: "__syncthreads(); /* nobody reads these tiles any more */",
        to: "",
    },
];

/// The checks on the kernels, or on the library that [`LIBRARY`] names.
#[test]
fn the_checks_hold() {
    let found = match std::env::var_os(LIBRARY) {
        Some(library) => checks::all(&HostKernels::load(Path::new(&library)).unwrap()),
        None => checks::all(HostKernels::shared()),
    };
    if let Err(error) = found {
        panic!("{error}");
    }
}

/// Copies the sources that make the library, and nothing else.
fn copy_sources(to: &Path) {
    for folder in ["", "host"] {
        fs::create_dir_all(to.join(folder)).unwrap();
        for entry in fs::read_dir(sources().join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
}

/// Runs the checks on a library in a process of its own, as a defect may end the process: how it ended, and what it
/// printed.
fn run_checks(library: &Path) -> (ExitStatus, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "mutants::the_checks_hold", "--nocapture"])
        .env(LIBRARY, library)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("running 1 test"), "the checks were not run:\n{text}");
    (output.status, text)
}

/// Compiles the sources with one defect, or with none.
fn build(mutant: Option<&Mutant>, folder: &Path) -> std::path::PathBuf {
    copy_sources(folder);
    if let Some(mutant) = mutant {
        let file = folder.join(mutant.file);
        let source = fs::read_to_string(&file).unwrap();
        let found = source.matches(mutant.from).count();
        assert_eq!(found, 1, "{}: {:?} must occur once in {}", mutant.defect, mutant.from, mutant.file);
        fs::write(&file, source.replace(mutant.from, mutant.to)).unwrap();
    }
    let library = folder.join("libkv_host_kernels.so");
    host_kernels::library(folder).compile(&library).unwrap_or_else(|error| panic!("{error}"));
    library
}

#[test]
fn sources_without_a_defect_pass_in_a_process_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (status, text) = run_checks(&build(None, folder.path()));
    assert!(status.success(), "{text}");
}

#[test]
fn every_defect_is_found() {
    let queue = Mutex::new(MUTANTS.iter());
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(mutant) = next else { return };
                    let folder = tempfile::tempdir().unwrap();
                    let (status, text) = run_checks(&build(Some(mutant), folder.path()));
                    if status.success() {
                        missed.lock().unwrap().push(mutant.defect);
                    }
                    // Shown with --nocapture.
                    let reason = text.lines().find(|line| line.starts_with("kv_")).unwrap_or("no message");
                    println!("{}: {status}: {reason}", mutant.defect);
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "the checks hold although {missed:?}");
}
