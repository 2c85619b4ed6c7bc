//! What opening a store needs: sizes that work, a directory, a secret; and why it can fail.

use std::io;
use std::path::{Path, PathBuf};

use kv_core::key::NamespaceSecret;
use kv_tiers::arena::slot_bytes;
use kv_tiers::engine::EngineError;

use crate::config::StoreConfig;
use crate::secret;
use crate::slow::RemoteError;

/// Fewest blocks of host memory: every worker needs some to work with.
pub const FEWEST_SLOTS: u64 = 16;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A size that cannot work.
    #[error("block_bytes is {0}; it must be at least 1 and less than 1 GiB")]
    BlockBytes(usize),
    /// Too little host memory.
    #[error(
        "host_bytes is {host_bytes}, room for {slots} blocks; at least {FEWEST_SLOTS} are needed, {needed} bytes"
    )]
    HostBytes {
        /// As configured.
        host_bytes: u64,
        /// Blocks that it can hold.
        slots: u64,
        /// Bytes that are enough.
        needed: u64,
    },
    /// More blocks than 32 bits can name.
    #[error("host_bytes is room for {0} blocks; at most {max} can be named", max = u32::MAX - 1)]
    TooManyBlocks(u64),
    /// The directory cannot be used.
    #[error("{}: {source}", path.display())]
    Directory {
        /// The path.
        path: PathBuf,
        /// The answer of the operating system.
        source: io::Error,
    },
    /// No random bytes for a secret, or no thread.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A remote store.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] kv_tiers::engine::OpenError),
    /// The namespace.
    #[error(transparent)]
    Namespace(#[from] EngineError),
}

pub(crate) fn slots(config: &StoreConfig) -> Result<u32, OpenError> {
    let bytes = Some(config.block_bytes).filter(|bytes| *bytes > 0).and_then(slot_bytes);
    let bytes = bytes.ok_or(OpenError::BlockBytes(config.block_bytes))? as u64;
    let slots = config.host_bytes / bytes;
    if slots < FEWEST_SLOTS {
        let needed = bytes.saturating_mul(FEWEST_SLOTS);
        return Err(OpenError::HostBytes { host_bytes: config.host_bytes, slots, needed });
    }
    u32::try_from(slots).ok().filter(|slots| *slots < u32::MAX).ok_or(OpenError::TooManyBlocks(slots))
}

/// The directory of the log, made if it is not there.
pub(crate) fn prepare(dir: &Path) -> io::Result<PathBuf> {
    let log = dir.join("log");
    for path in [dir, &log] {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(log)
}

pub(crate) fn secret_of(config: &StoreConfig, dir: Option<&PathBuf>) -> Result<NamespaceSecret, OpenError> {
    match (&config.secret, dir) {
        (Some(secret), _) => Ok(secret.clone()),
        (None, None) => Ok(secret::fresh()?),
        (None, Some(dir)) => {
            secret::kept_in(dir).map_err(|source| OpenError::Directory { path: dir.join("secret"), source })
        }
    }
}
