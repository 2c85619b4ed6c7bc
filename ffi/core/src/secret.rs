//! The secret of a namespace, when the caller has none of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use kv_core::key::NamespaceSecret;

/// Beside the log, readable by its owner alone. Who deletes it makes every block of the log unreadable.
const FILE: &str = "secret";

fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A secret for this process alone.
pub(crate) fn fresh() -> io::Result<NamespaceSecret> {
    random().map(NamespaceSecret::new)
}

/// The secret kept in `dir`, made on the first opening.
pub(crate) fn kept_in(dir: &Path) -> io::Result<NamespaceSecret> {
    let path = dir.join(FILE);
    match File::open(&path) {
        Ok(file) => read(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(dir, &path),
        Err(error) => Err(error),
    }
}

fn read(mut file: File) -> io::Result<NamespaceSecret> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, "the file `secret` does not have 32 bytes");
    bytes.try_into().map(NamespaceSecret::new).map_err(wrong)
}

/// Complete before it has its name, and of two processes only one gives it that name.
fn make(dir: &Path, path: &Path) -> io::Result<NamespaceSecret> {
    let part = dir.join(format!("{FILE}.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(&random()?)?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&part, path);
    std::fs::remove_file(&part)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(dir)?.sync_all()?;
    read(File::open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_made_once_and_belongs_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        drop(kept_in(dir.path()).unwrap());
        let path = dir.path().join(FILE);
        let (first, mode) = (std::fs::read(&path).unwrap(), path.metadata().unwrap().permissions().mode());
        drop(kept_in(dir.path()).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), first);
        assert_eq!((first.len(), mode & 0o777), (32, 0o600));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
        std::fs::write(&path, b"short").unwrap();
        assert!(kept_in(dir.path()).is_err());
    }
}
