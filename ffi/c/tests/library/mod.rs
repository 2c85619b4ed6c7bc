//! The libraries that cargo and `link.sh` built, and programs compiled against them.
#![allow(dead_code, unreachable_pub)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `ffi/c`.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command that must succeed, and returns what it printed.
pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(program: &str, args: I) -> String {
    let mut command = Command::new(program);
    command.args(args);
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out + &err
}

/// The static library, which cargo builds beside this test, with a hash in its name: the newest is ours.
pub fn archive() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let archives = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap()).filter(|entry| {
        let name = entry.file_name().into_string().unwrap_or_default();
        name.starts_with("libkvtier") && !name.starts_with("libkvtier_") && name.ends_with(".a")
    });
    let newest = archives.max_by_key(|entry| entry.metadata().unwrap().modified().unwrap());
    newest.unwrap_or_else(|| panic!("no libkvtier.a in {}", folder.display())).path()
}

pub fn link_shared(folder: &Path) -> PathBuf {
    let script = root().join("link.sh");
    run(script.to_str().unwrap(), [archive().as_path(), folder]);
    folder.join("libkvtier.so")
}

fn compiler(cxx: bool) -> String {
    let (variable, usual) = if cxx { ("CXX", "c++") } else { ("CC", "cc") };
    std::env::var(variable).unwrap_or_else(|_| usual.to_owned())
}

/// How a program is compiled and linked.
#[derive(Clone, Copy, PartialEq)]
pub enum Link {
    Static,
    /// With the library in the folder of the program.
    Shared,
}

/// Compiles a C program (or a C++ one) with all warnings as errors.
pub fn compile(source: &Path, folder: &Path, cxx: bool, link: Link, more: &[&str]) -> PathBuf {
    let program = folder.join(source.file_stem().unwrap());
    let mut args: Vec<String> =
        if cxx { vec!["-xc++".into(), "-std=c++17".into()] } else { vec!["-std=gnu11".into()] };
    args.extend(["-Wall", "-Wextra", "-Werror", "-g", "-O1"].map(String::from));
    args.extend(more.iter().map(|flag| (*flag).to_owned()));
    for folder in [root().join("include"), root().join("tests/c")] {
        args.push(format!("-I{}", folder.display()));
    }
    args.push(source.display().to_string());
    args.extend(["-xnone".into(), "-o".into(), program.display().to_string()]);
    match link {
        Link::Static => args.push(archive().display().to_string()),
        Link::Shared => {
            link_shared(folder);
            args.extend([format!("-L{}", folder.display()), "-lkvtier".into(), "-Wl,-rpath,$ORIGIN".into()]);
        }
    }
    args.extend(["-lgcc_s", "-lpthread", "-lm", "-ldl"].map(String::from));
    run(&compiler(cxx), args);
    program
}
