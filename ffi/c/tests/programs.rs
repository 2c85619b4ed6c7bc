//! C and C++ programs against the static and the shared library.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod library;

use library::{Link, compile, root, run};
use std::path::Path;

fn source(name: &str) -> std::path::PathBuf {
    root().join("tests/c").join(name)
}

/// Compiles and runs a program, with a new directory as its last argument if it wants one.
fn check(name: &str, cxx: bool, link: Link, more: &[&str], args: &[&str], dir: bool) -> String {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(&source(name), folder.path(), cxx, link, more);
    let mut args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    args.extend(dir.then(|| folder.path().join("kv").display().to_string()));
    run(program.to_str().unwrap(), args)
}

#[test]
fn a_c_program_calls_everything() {
    assert!(check("everything.c", false, Link::Shared, &[], &[], true).contains("everything works"));
}

#[test]
fn a_cxx_program_calls_everything() {
    assert!(check("everything.c", true, Link::Static, &[], &[], true).contains("everything works"));
}

#[test]
fn misuse_gives_statuses() {
    assert!(check("misuse.c", false, Link::Shared, &[], &[], false).contains("misuse gives statuses"));
}

/// The address sanitizer of the C compiler sees the program, all allocations, and what is left at its end.
#[test]
fn the_address_sanitizer_finds_nothing() {
    let asan = ["-fsanitize=address", "-fno-omit-frame-pointer"];
    assert!(check("everything.c", false, Link::Static, &asan, &[], true).contains("everything works"));
    assert!(check("misuse.c", false, Link::Static, &asan, &[], false).contains("misuse gives statuses"));
}

#[test]
fn ten_thousand_cycles_leave_nothing_behind() {
    let said = check("cycles.c", false, Link::Static, &[], &["10000"], true);
    assert!(said.contains("10000 cycles"), "{said}");
    println!("{said}");
}

#[test]
fn the_examples_run() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "c") {
            let program = compile(&path, folder.path(), false, Link::Shared, &[]);
            let said = run(program.to_str().unwrap(), [folder.path().join("kv")]);
            assert!(said.contains("16 of 16"), "{}: {said}", path.display());
        }
    }
}

/// As a user would: `make ffi`, pkg-config's flags, a program.
#[test]
fn an_installed_library_is_found() {
    let prefix = tempfile::tempdir().unwrap();
    let (script, archive) = (root().join("install.sh"), library::archive());
    let args = [archive.as_path(), Path::new(env!("CARGO_PKG_VERSION")), prefix.path()];
    run(script.to_str().unwrap(), args);
    for file in ["include/kvtier.h", "lib/libkvtier.a", "lib/libkvtier.so", "lib/libkvtier.so.1"] {
        assert!(prefix.path().join(file).exists(), "{file}");
    }
    let config = std::fs::read_to_string(prefix.path().join("lib/pkgconfig/kvtier.pc")).unwrap();
    assert!(
        config.contains(&format!("prefix={}", prefix.path().display())) && !config.contains('@'),
        "{config}"
    );
}
