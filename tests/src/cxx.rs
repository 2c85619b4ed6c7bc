//! Compiles C++ for tests: once for every change of the sources, whatever number of test processes asks.
//!
//! What is compiled lies in `cxx/` of the target directory, under a name that carries a hash of everything
//! that went into it.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A shared library to be compiled.
#[derive(Clone, Debug, Default)]
pub struct Library {
    /// Of the file, without `lib` and `.so`.
    pub name: String,
    /// C++ files; their order is that of the command line.
    pub sources: Vec<PathBuf>,
    /// Where headers are looked for. All files of these directories, and of the sources', count as part of
    /// the library.
    pub include: Vec<PathBuf>,
    /// For the compiler, besides the usual ones.
    pub flags: Vec<String>,
}

/// Why there is no library.
#[derive(Debug, thiserror::Error)]
pub enum CxxError {
    /// There is no compiler of that name.
    #[error("no C++ compiler: `{0}` cannot be run ({1}); install g++ or clang++, or name one in CXX")]
    NoCompiler(String, io::Error),
    /// The compiler's own words.
    #[error("`{command}` failed:\n{stderr}")]
    Failed {
        /// As it was run.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// A file could not be read or written.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
}

impl Library {
    /// The compiled library. The compiler is `$CXX`, or else `c++`.
    ///
    /// # Errors
    /// See [`CxxError`].
    pub fn build(&self) -> Result<PathBuf, CxxError> {
        let compiler = compiler();
        let version = Command::new(&compiler)
            .arg("--version")
            .output()
            .map_err(|e| CxxError::NoCompiler(compiler.clone(), e))?;

        let mut hash = DefaultHasher::new();
        (&compiler, version.stdout, &self.flags).hash(&mut hash);
        for file in self.files()? {
            (&file, fs::read(&file).map_err(at(&file))?).hash(&mut hash);
        }

        let dir = output_dir();
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let out = dir.join(format!("lib{}-{:016x}.so", self.name, hash.finish()));
        let lock_path = dir.join(format!("{}.lock", self.name));
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        lock.lock().map_err(at(&lock_path))?;
        if out.exists() {
            return Ok(out);
        }

        // Under another name first: a process that is killed leaves no half a library.
        let unfinished = out.with_extension("unfinished");
        self.compile(&unfinished)?;
        fs::rename(&unfinished, &out).map_err(at(&out))?;
        Ok(out)
    }

    /// Compiles the library to this file, whatever is there already.
    ///
    /// # Errors
    /// See [`CxxError`].
    pub fn compile(&self, out: &Path) -> Result<(), CxxError> {
        let compiler = compiler();
        let mut command = Command::new(&compiler);
        command.args(["-std=c++20", "-O2", "-g", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"]);
        command.args(&self.flags);
        for dir in &self.include {
            command.arg("-I").arg(dir);
        }
        command.args(&self.sources).arg("-o").arg(out);
        let output = command.output().map_err(|e| CxxError::NoCompiler(compiler, e))?;
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(CxxError::Failed { command: format!("{command:?}"), stderr })
    }

    /// Everything that the library may depend on, in a fixed order.
    fn files(&self) -> Result<Vec<PathBuf>, CxxError> {
        let mut files = self.sources.clone();
        let dirs = self.sources.iter().filter_map(|source| source.parent());
        for dir in dirs.chain(self.include.iter().map(PathBuf::as_path)) {
            for entry in fs::read_dir(dir).map_err(at(dir))? {
                let path = entry.map_err(at(dir))?.path();
                let headers = ["h", "hpp", "cuh", "cu", "inc"].map(OsStr::new);
                if path.extension().is_some_and(|e| headers.contains(&e)) {
                    files.push(path);
                }
            }
        }
        files.sort();
        files.dedup();
        Ok(files)
    }
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CxxError {
    let path = path.to_owned();
    move |error| CxxError::Io(path, error)
}

/// Beside what cargo has compiled: the test's own executable is in `deps/`.
fn output_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let deps = exe.ancestors().find(|dir| dir.file_name() == Some(OsStr::new("deps")));
    deps.and_then(Path::parent).map_or_else(std::env::temp_dir, Path::to_owned).join("cxx")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(dir: &Path, text: &str) -> Library {
        let source = dir.join("one.cpp");
        fs::write(&source, text).unwrap();
        Library { name: "cxx_test".into(), sources: vec![source], ..Library::default() }
    }

    #[test]
    fn what_has_not_changed_is_not_compiled_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("two.h"), "#define TWO 2\n").unwrap();
        let library = library(dir.path(), "#include \"two.h\"\nextern \"C\" int two() { return TWO; }\n");
        let first = library.build().unwrap();
        let compiled = fs::metadata(&first).unwrap().modified().unwrap();
        assert_eq!(library.build().unwrap(), first);
        assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), compiled);

        fs::write(dir.path().join("two.h"), "#define TWO 3\n").unwrap();
        let second = library.build().unwrap();
        assert_ne!(first, second, "a header counts");
        fs::remove_file(first).unwrap();
        fs::remove_file(second).unwrap();
    }

    #[test]
    fn the_compiler_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let error = library(dir.path(), "nonsense\n").build().unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
    }
}
