//! A directory that goes away.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::ByteSize;

/// A new directory with enough free space, removed with all that is in it when dropped.
#[derive(Debug)]
pub struct Scratch(TempDir);

/// No place to measure in.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// The parent does not exist or may not be written.
    #[error("cannot make a directory in {}; choose another with --dir", parent.display())]
    Unusable {
        /// Where it was to be.
        parent: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The filesystem is too full.
    #[error("{} has {free} MiB free and this needs {needed} MiB; choose another with --dir, or a smaller log",
            parent.display())]
    NoSpace {
        /// Where it was to be.
        parent: PathBuf,
        /// MiB that may be used.
        free: u64,
        /// MiB that will be used.
        needed: u64,
    },
}

impl Scratch {
    /// A directory in `parent` for `needed` bytes.
    ///
    /// # Errors
    /// [`ScratchError`].
    pub fn new(parent: &Path, needed: ByteSize) -> Result<Self, ScratchError> {
        let unusable = |source: io::Error| ScratchError::Unusable { parent: parent.to_path_buf(), source };
        let dir = tempfile::Builder::new().prefix("kvtier-bench-").tempdir_in(parent).map_err(unusable)?;
        let space = rustix::fs::statvfs(dir.path()).map_err(|e| unusable(e.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < needed.0 {
            let parent = parent.to_path_buf();
            return Err(ScratchError::NoSpace {
                parent,
                free: free >> 20,
                needed: needed.0.div_ceil(1 << 20),
            });
        }
        Ok(Self(dir))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_whether_it_is_used_or_refused() {
        let parent = tempfile::tempdir().unwrap();
        let left = || std::fs::read_dir(parent.path()).unwrap().count();
        let scratch = Scratch::new(parent.path(), ByteSize(1)).unwrap();
        std::fs::write(scratch.path().join("file"), "bytes").unwrap();
        assert_eq!(left(), 1);
        drop(scratch);
        assert_eq!(left(), 0);
        let error = Scratch::new(parent.path(), ByteSize(u64::MAX)).unwrap_err();
        assert!(matches!(error, ScratchError::NoSpace { .. }));
        assert_eq!(left(), 0);
        let error = Scratch::new(&parent.path().join("none"), ByteSize(1)).unwrap_err();
        assert!(matches!(error, ScratchError::Unusable { .. }));
    }
}
