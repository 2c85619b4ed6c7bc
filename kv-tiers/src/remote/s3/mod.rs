//! Amazon S3 and the object stores that speak its protocol: MinIO, Ceph, SeaweedFS, and others.
//!
//! ```text
//! kvtier-1/<shard>/<namespace>/<epoch>/<fingerprint>/<key>      an object, one record
//! ```
//!
//! The shard is the first hexadecimal digit of the key, a hash: a bucket that grows is split by the beginnings of its
//! names, so the names of one namespace must not all begin alike. A sweep looks into all 16.
//!
//! Calls are tasks of an event loop on two threads. A request that is late or cancelled is ended by closing its
//! connection; how many there are at a time is bounded. What breaks on the way, or is too much for the server, is asked
//! again after a random pause, as long as the call's deadline allows.
//!
//! What a bucket should have: for this client the rights to get, put, delete and list objects (without the last one
//! S3 calls an absent object forbidden), and a lifecycle rule that ends blocks by age and aborts unfinished multipart
//! uploads, which a killed process leaves. With versioning a deleted block stays readable under its version: leave it
//! off.
//!
//! Why the crate `object_store`, and not `opendal`: it signs with the same `ring` that Redis' TLS uses, where opendal
//! brings `aws-lc`, which is C and the longest build of all; 132 crates against 148. Both know the environment, web
//! identity and the metadata of containers and instances; the shared credentials file, which only opendal reads, is
//! twenty lines here. It has ranged gets and single parts of uploads as calls of their own, so how many run in
//! parallel and when they are repeated is decided in one place, for every kind of call.

mod credentials;
mod names;
mod ops;
mod request;
mod sweep;
mod upload;
mod wire;

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::{Certificate, ClientOptions, RetryConfig};

use super::backend::{Backend, Call};
use super::client::{Client, remote_store};
use super::event_loop::EventLoop;
use super::{Limits, OpenError};
use request::{Bucket, LANES, Requests};

pub use credentials::S3Credentials;

/// What an [`S3Store`] needs to know.
#[derive(Clone, Debug)]
pub struct S3Config {
    /// Where: `https://host[:port]`, without the bucket. `None` for Amazon's servers in the region.
    pub endpoint: Option<String>,
    /// The region, which signatures name. Most servers that are not Amazon's take `us-east-1`.
    pub region: String,
    /// The bucket. It must exist.
    pub bucket: String,
    /// Whether the bucket is the first part of the path, as most servers that are not Amazon's want it, and not of the
    /// host's name.
    pub path_style: bool,
    /// Whether an endpoint may be `http://`. Blocks are then readable on the way; only their payload is signed, so
    /// that nobody changes it.
    pub allow_http: bool,
    /// Who we are.
    pub credentials: S3Credentials,
    /// PEM of the authorities that signed the server's certificate; `None` for those that the system trusts.
    pub root_certificate: Option<Vec<u8>>,
    /// What may be in flight.
    pub limits: Limits,
}

impl S3Config {
    /// Where the bucket is.
    fn url(&self) -> Result<String, OpenError> {
        let Self { region, bucket, .. } = self;
        let wrong = |why: String| Err(OpenError::Address(why));
        let fits = |name: &str, more: &str| {
            let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c);
            !name.is_empty() && name.chars().all(ok)
        };
        if bucket.len() < 3 || !fits(bucket, ".-") {
            return wrong(format!("{bucket} is no name of a bucket"));
        }
        if !fits(region, "-") {
            return wrong(format!("{region} is no name of a region"));
        }
        let endpoint = match &self.endpoint {
            Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
            None => format!("https://s3.{region}.amazonaws.com"),
        };
        let (scheme, host) = match endpoint.split_once("://") {
            Some((scheme @ ("http" | "https"), host)) if !host.is_empty() => (scheme, host),
            // What somebody took for an address may hold a password.
            _ => return wrong("an endpoint is https://host[:port]".to_owned()),
        };
        if host.contains(['/', '@', '?', '#', ' ']) {
            return wrong("an endpoint is https://host[:port], and nothing else".to_owned());
        }
        if scheme == "http" && !self.allow_http {
            return wrong(format!("http://{host} is not encrypted, and allow_http is false"));
        }
        Ok(match self.path_style {
            true => format!("{scheme}://{host}/{bucket}"),
            false => format!("{scheme}://{bucket}.{host}"),
        })
    }
}

/// Blocks as objects of a bucket.
pub struct S3Store(Client<S3Backend>);

impl S3Store {
    /// Starts the event loop. Nothing is asked of the server yet, so one that is down is no error here.
    ///
    /// # Errors
    /// An endpoint, bucket, region, certificate or credential that makes no sense, or no threads.
    ///
    /// ```
    /// use kv_tiers::remote::{Limits, RemoteStore, S3Config, S3Credentials, S3Store};
    /// let store = S3Store::open(S3Config {
    ///     endpoint: None,
    ///     region: "eu-central-1".to_owned(),
    ///     bucket: "kv-blocks".to_owned(),
    ///     path_style: false,
    ///     allow_http: false,
    ///     credentials: S3Credentials::Found,
    ///     root_certificate: None,
    ///     limits: Limits::default(),
    /// })?;
    /// assert_eq!(store.counters().misses(), 0);
    /// # Ok::<(), kv_tiers::remote::OpenError>(())
    /// ```
    pub fn open(config: S3Config) -> Result<Self, OpenError> {
        let url = config.url()?;
        let wrong = |error: object_store::Error| OpenError::Address(error.to_string());
        let event_loop = EventLoop::start("kvtier-s3")?;
        let mut client = ClientOptions::new()
            .with_allow_http(config.allow_http)
            .with_http1_only()
            .with_pool_max_idle_per_host(LANES)
            // Deadlines are the call's.
            .with_timeout_disabled();
        if let Some(pem) = &config.root_certificate {
            let certificates = Certificate::from_pem_bundle(pem).map_err(wrong)?;
            if certificates.is_empty() {
                return Err(OpenError::Address("no certificate in the PEM that was given".to_owned()));
            }
            for certificate in certificates {
                client = client.with_root_certificate(certificate);
            }
            client = client.with_no_system_certificates(true);
        }
        let builder = AmazonS3Builder::new()
            .with_bucket_name(&config.bucket)
            .with_region(&config.region)
            // The bucket is in it already, wherever it belongs.
            .with_endpoint(&url)
            .with_virtual_hosted_style_request(true)
            .with_client_options(client)
            .with_http_connector(wire::Connector)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            // To hash what TLS protects anyway would cost as much as to send it.
            .with_unsigned_payload(url.starts_with("https://"));
        let store = config.credentials.tell(builder).build().map_err(wrong)?;
        let bucket = Arc::new(Bucket::new(store));
        Ok(Self(Client::new(S3Backend { event_loop, bucket }, config.limits, Arc::default())))
    }
}

remote_store!(S3Store);

struct S3Backend {
    event_loop: EventLoop,
    bucket: Arc<Bucket>,
}

impl Backend for S3Backend {
    fn submit(&self, call: Call) {
        let Some(flight) = call.flight().cloned() else { return };
        let requests = Requests::new(&self.bucket, flight.deadline());
        self.event_loop.run(&flight, ops::run(requests, call));
    }
}
