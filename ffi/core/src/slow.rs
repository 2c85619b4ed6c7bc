//! Load or recompute: what a store needs to know for it, and remote stores by URL.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kv_core::cost::priors;
use kv_core::key::Fingerprint;
use kv_tiers::engine::{RemoteConfig, SlowConfig};
use kv_tiers::remote::{FsStore, Limits, OpenError, RemoteStore};
use serde::Serialize;

/// The sources that are used only when that beats recomputing. They are asked about in loads of chains alone: a key
/// that stands by itself has no prefix that could be recomputed instead.
#[derive(Clone, Debug, Default)]
pub struct SlowSources {
    /// Tokens of one block.
    pub tokens_per_block: u32,
    /// The GPU that recomputes, such as `H200`; with the model of the identity it says what is believed before anything
    /// was observed. It may be empty.
    pub gpu: String,
    /// Whether NVMe is one of them. Otherwise what NVMe has is always loaded.
    pub weigh_nvme: bool,
    /// Remote stores. Blocks that are stored go to all of them.
    pub remotes: Vec<RemoteUrl>,
}

/// `file:///directory` for a shared file system, `redis://` and `rediss://` (with the feature `redis`) for Redis and
/// Valkey. It may hold a password and is never printed.
#[derive(Clone)]
pub struct RemoteUrl(pub String);

impl RemoteUrl {
    /// What stands before `://`.
    fn scheme(&self) -> &str {
        self.0.split_once("://").map_or("", |(scheme, _)| scheme)
    }

    fn open(&self) -> Result<Arc<dyn RemoteStore>, RemoteError> {
        let refused = |source| RemoteError::Open { scheme: self.scheme().to_owned(), source };
        match (self.scheme(), self.0.split_once("://")) {
            ("file", Some((_, path))) if path.starts_with('/') => {
                Ok(Arc::new(FsStore::open(Path::new(path), Limits::default()).map_err(refused)?))
            }
            #[cfg(feature = "redis")]
            ("redis" | "rediss", _) => {
                use kv_tiers::remote::{RedisConfig, RedisStore, Servers};
                /// A day: what nobody has stored again by then was not of use.
                const TTL: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
                let servers = Servers::One(self.0.clone());
                let config =
                    RedisConfig { servers, ttl: TTL, root_certificate: None, limits: Limits::default() };
                Ok(Arc::new(RedisStore::open(config).map_err(refused)?))
            }
            (scheme, _) => Err(RemoteError::Scheme(scheme.to_owned())),
        }
    }
}

impl fmt::Debug for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteUrl({}://..)", self.scheme())
    }
}

/// What slow sources have done. Plain totals since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SlowStats {
    /// Blocks read from remote stores.
    pub remote_reads: u64,
    /// Blocks written to them.
    pub remote_writes: u64,
    /// Decisions to load.
    pub loads_admitted: u64,
    /// Decisions to recompute.
    pub loads_refused: u64,
    /// Loads that took too long, and were recomputed after all.
    pub loads_late: u64,
}

/// Why a remote store could not be set up. One that does not answer is no error: it is not used until it does.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// An address of a kind that this build does not know.
    #[error("a remote store at {0:?}://: this build knows {known}", known = KNOWN)]
    Scheme(String),
    /// The store.
    #[error("a remote store at {scheme}://")]
    Open {
        /// Which kind.
        scheme: String,
        /// Why.
        #[source]
        source: OpenError,
    },
}

#[cfg(feature = "redis")]
const KNOWN: &str = "file:///directory, redis:// and rediss://";
#[cfg(not(feature = "redis"))]
const KNOWN: &str = "file:///directory";

impl SlowSources {
    /// Opens the remote stores. What is learnt is kept in `dir`.
    pub(crate) fn open(
        &self,
        model: &str,
        fingerprint: Fingerprint,
        dir: Option<&Path>,
    ) -> Result<SlowConfig, RemoteError> {
        let remote = |(at, url): (usize, &RemoteUrl)| {
            Ok(RemoteConfig {
                name: format!("{}{at}", url.scheme()),
                store: url.open()?,
                link: priors::NETWORK,
                writes: true,
                elements: None,
            })
        };
        Ok(SlowConfig {
            tokens_per_block: self.tokens_per_block,
            fingerprint,
            curve: priors::curve(model, &self.gpu),
            nvme: self.weigh_nvme.then_some(priors::NVME_GEN4),
            remotes: self.remotes.iter().enumerate().map(remote).collect::<Result<_, _>>()?,
            learnt: dir.map(|dir: &Path| -> PathBuf { dir.join("learnt") }),
        })
    }
}
