//! How connections are made: addresses, TLS, and who we say to be.

use std::sync::Arc;

use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::{
    ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisResult, TlsCertificates, Value,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::link::Link;
use super::request::Request;
use super::wire::{Answer, Stream, Wire};
use super::{RedisConfig, Servers};
use crate::remote::buffers::Buffers;

/// How to make connections.
pub(super) enum Dial {
    One(Box<One>),
    Cluster(Box<ClusterClient>),
}

/// One server.
pub(super) struct One {
    server: ConnectionInfo,
    tls: Option<TlsConnector>,
    buffers: Arc<Buffers>,
}

impl Dial {
    pub(super) fn new(config: &RedisConfig, buffers: Arc<Buffers>) -> RedisResult<Self> {
        Ok(match &config.servers {
            Servers::One(url) => {
                let server = url.as_str().into_connection_info()?;
                let tls = match server.addr() {
                    ConnectionAddr::TcpTls { .. } => Some(tls(config.root_certificate.as_deref())?),
                    _ => None,
                };
                Self::One(Box::new(One { server, tls, buffers }))
            }
            Servers::Cluster(urls) => {
                // Calls have deadlines of their own, and a miss is cheaper than a retry.
                let builder = ClusterClientBuilder::new(urls.iter().map(String::as_str)).retries(2);
                let builder = match config.root_certificate.clone() {
                    Some(pem) => builder.certs(TlsCertificates { client_tls: None, root_cert: Some(pem) }),
                    None => builder,
                };
                Self::Cluster(Box::new(builder.build()?))
            }
        })
    }

    /// Waits for as long as it takes: deadlines are the caller's.
    pub(super) async fn dial(&self) -> RedisResult<Link> {
        Ok(match self {
            Self::One(server) => Link::One(Box::new(server.dial().await?)),
            Self::Cluster(client) => Link::Cluster(client.get_async_connection().await?),
        })
    }
}

impl One {
    async fn dial(&self) -> RedisResult<Wire> {
        let tcp = async |host: &str, port| {
            let stream = TcpStream::connect((host, port)).await?;
            // The last piece of a request waits for nobody.
            stream.set_nodelay(true).map(|()| stream)
        };
        let stream: Box<dyn Stream> = match (self.server.addr(), &self.tls) {
            (ConnectionAddr::Tcp(host, port), _) => Box::new(tcp(host, *port).await?),
            (ConnectionAddr::TcpTls { host, port, .. }, Some(tls)) => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| (ErrorKind::InvalidClientConfig, "not the name of a server"))?;
                Box::new(tls.connect(name, tcp(host, *port).await?).await?)
            }
            (ConnectionAddr::Unix(path), _) => Box::new(UnixStream::connect(path).await?),
            _ => Err((ErrorKind::InvalidClientConfig, "no address that is known"))?,
        };
        let mut wire = Wire::new(stream, Arc::clone(&self.buffers));
        self.introduce(&mut wire).await?;
        Ok(wire)
    }

    async fn introduce(&self, wire: &mut Wire) -> RedisResult<()> {
        let us = self.server.redis_settings();
        let mut request = Request::default();
        match (us.username(), us.password()) {
            (Some(user), Some(password)) => {
                request.add(["AUTH".into(), user.as_bytes().into(), password.as_bytes().into()]);
            }
            (None, Some(password)) => request.add(["AUTH".into(), password.as_bytes().into()]),
            (_, None) => {}
        }
        if us.db() != 0 {
            request.add(["SELECT".into(), us.db().to_string().into()]);
        }
        if request.len() == 0 {
            return Ok(());
        }
        for answer in wire.ask(&request).await? {
            match answer {
                Answer::Other(Value::Okay) => {}
                Answer::Other(Value::ServerError(error)) => return Err(error.into()),
                _ => Err((ErrorKind::Parse, "the server's greeting makes no sense"))?,
            }
        }
        Ok(())
    }
}

/// Trusts that authority, or those that the system trusts.
fn tls(root_certificate: Option<&[u8]>) -> RedisResult<TlsConnector> {
    let wrong = |what: String| (ErrorKind::InvalidClientConfig, "TLS", what);
    let mut roots = RootCertStore::empty();
    match root_certificate {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                roots
                    .add(certificate.map_err(|e| wrong(e.to_string()))?)
                    .map_err(|e| wrong(e.to_string()))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            if let Some(error) = found.errors.first() {
                tracing::warn!(%error, "some certificates that the system trusts cannot be read");
            }
            // Those that nobody can parse help nobody.
            roots.add_parsable_certificates(found.certs);
        }
    }
    if roots.is_empty() {
        Err(wrong("there is no authority to be trusted".to_owned()))?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
