//! The generated files, before they are written or compared.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the PTX and its manifest lie. Everything in it is generated.
pub(crate) const FOLDER: &str = "kernels/generated";

/// Why nothing was generated, or what differs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{tool} is version {found}, but {expected} is pinned")]
    Version { tool: &'static str, found: String, expected: &'static str },
    #[error("{what} failed:\n{output}")]
    Tool { what: String, output: String },
    #[error("{module}: ptxas {version} accepts no PTX version up to {highest}:\n{output}")]
    NoPtxVersion { module: &'static str, version: &'static str, highest: &'static str, output: String },
    #[error("{entry} on {arch}: {spilled} bytes of registers are spilled to memory")]
    Spills { entry: String, arch: &'static str, spilled: u32 },
    #[error("{module}: what ptxas reports is not understood:\n{output}")]
    Report { module: &'static str, output: String },
    #[error("bindgen: {0}")]
    Bindgen(#[from] bindgen::BindgenError),
    #[error("manifest: {0}")]
    Json(#[from] serde_json::Error),
    #[error("not current, run `make kernels` and commit the result: {}", .0.join(", "))]
    Stale(Vec<String>),
}

impl Error {
    /// For `map_err` on operations on `path`.
    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

/// Contents by path from the root of the repository.
#[derive(Default)]
pub(crate) struct Generated {
    pub(crate) files: BTreeMap<String, String>,
}

impl Generated {
    pub(crate) fn add(&mut self, path: &str, content: String) {
        self.files.insert(path.to_owned(), content);
    }

    /// Writes the files and removes what else lies in the generated folder.
    pub(crate) fn write_to(&self, root: &Path) -> Result<(), Error> {
        for path in self.strangers(root)? {
            let path = root.join(path);
            fs::remove_file(&path).map_err(Error::at(&path))?;
        }
        for (path, content) in &self.files {
            let path = root.join(path);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(Error::at(folder))?;
            }
            fs::write(&path, content).map_err(Error::at(&path))?;
        }
        Ok(())
    }

    /// Names every file that differs, is missing, or should not be there.
    pub(crate) fn compare_with(&self, root: &Path) -> Result<(), Error> {
        let mut stale = self.strangers(root)?;
        for (path, content) in &self.files {
            if !fs::read_to_string(root.join(path)).is_ok_and(|found| found == *content) {
                stale.push(path.clone());
            }
        }
        if stale.is_empty() { Ok(()) } else { Err(Error::Stale(stale)) }
    }

    /// Files in the generated folder that were not generated.
    fn strangers(&self, root: &Path) -> Result<Vec<String>, Error> {
        let folder = root.join(FOLDER);
        let mut strangers = Vec::new();
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(strangers),
            entries => entries.map_err(Error::at(&folder))?,
        };
        for entry in entries {
            let entry = entry.map_err(Error::at(&folder))?;
            let path = format!("{FOLDER}/{}", entry.file_name().to_string_lossy());
            if !self.files.contains_key(&path) {
                strangers.push(path);
            }
        }
        Ok(strangers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_the_file() {
        let root = tempfile::tempdir().unwrap();
        let mut generated = Generated::default();
        generated.add("kernels/generated/a.ptx", "a".into());
        generated.add("kv-cuda/src/kernels/args.rs", "b".into());
        generated.write_to(root.path()).unwrap();
        generated.compare_with(root.path()).unwrap();

        let stale = |path: &str, content: Option<&str>| {
            generated.write_to(root.path()).unwrap();
            let path = root.path().join(path);
            content.map_or_else(|| fs::remove_file(&path), |content| fs::write(&path, content)).unwrap();
            match generated.compare_with(root.path()) {
                Err(Error::Stale(files)) => files,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(stale("kernels/generated/a.ptx", Some("A")), ["kernels/generated/a.ptx"]);
        assert_eq!(stale("kv-cuda/src/kernels/args.rs", None), ["kv-cuda/src/kernels/args.rs"]);
        assert_eq!(stale("kernels/generated/old.ptx", Some("")), ["kernels/generated/old.ptx"]);
    }
}
