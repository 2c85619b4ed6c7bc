//! A connection to one server or to a cluster.

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisResult, ServerErrorKind, TlsCertificates, Value,
};

use super::{RedisConfig, Servers};
use crate::remote::RemoteError;

/// How to make connections.
pub(super) enum Dial {
    One(Box<redis::Client>),
    Cluster(Box<ClusterClient>),
}

impl Dial {
    pub(super) fn new(config: &RedisConfig) -> RedisResult<Self> {
        let root_cert = config.root_certificate.clone();
        let certificates = root_cert.map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem) });
        Ok(match (&config.servers, certificates) {
            (Servers::One(url), None) => Self::One(Box::new(redis::Client::open(url.as_str())?)),
            (Servers::One(url), Some(pem)) => {
                Self::One(Box::new(redis::Client::build_with_tls(url.as_str(), pem)?))
            }
            (Servers::Cluster(urls), certificates) => {
                // Calls have deadlines of their own, and a miss is cheaper than a retry.
                let builder = ClusterClientBuilder::new(urls.iter().map(String::as_str)).retries(2);
                let builder = match certificates {
                    Some(pem) => builder.certs(pem),
                    None => builder,
                };
                Self::Cluster(Box::new(builder.build()?))
            }
        })
    }

    pub(super) async fn dial(&self) -> RedisResult<Link> {
        // Deadlines are the caller's.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        Ok(match self {
            Self::One(client) => {
                Link::One(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Self::Cluster(client) => Link::Cluster(client.get_async_connection().await?),
        })
    }
}

/// A connection. Dropping the last clone closes it and ends what it was doing.
#[derive(Clone)]
pub(super) enum Link {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    /// Whether commands about different blocks may share a pipeline.
    pub(super) fn mixes_blocks(&self) -> bool {
        matches!(self, Self::One(_))
    }

    /// One answer for each command; in a cluster all are about one block.
    pub(super) async fn ask(&mut self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        let count = pipeline.len();
        match self {
            Self::One(connection) => connection.req_packed_commands(pipeline, 0, count).await,
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, 0, count).await,
        }
    }

    /// Asks one server.
    pub(super) async fn ask_server(&mut self, server: &Server, command: Cmd) -> RedisResult<Value> {
        match (self, server) {
            (Self::Cluster(connection), Server::Of { host, port }) => {
                let server = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
                connection.route_command(command, RoutingInfo::SingleNode(server)).await
            }
            (Self::Cluster(connection), Server::Only) => connection.req_packed_command(&command).await,
            (Self::One(connection), _) => connection.req_packed_command(&command).await,
        }
    }

    /// Every server that keeps blocks.
    pub(super) async fn servers(&mut self) -> Result<Vec<Server>, RemoteError> {
        let Self::Cluster(connection) = self else { return Ok(vec![Server::Only]) };
        let mut command = redis::cmd("CLUSTER");
        command.arg("NODES");
        let random = RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary);
        let nodes = connection.route_command(command, random).await.map_err(|e| remote_error(&e))?;
        let nodes: String = redis::from_redis_value(nodes).map_err(|_| RemoteError::Server)?;
        nodes.lines().filter_map(Server::of_line).collect()
    }
}

/// One server among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// There is no other.
    Only,
    /// A primary of a cluster.
    Of { host: String, port: u16 },
}

impl Server {
    /// From a line of `CLUSTER NODES`: `id host:port@bus[,name] flags primary ping pong epoch state slots...`.
    /// `None` for what keeps no blocks of its own.
    fn of_line(line: &str) -> Option<Result<Self, RemoteError>> {
        let mut fields = line.split(' ');
        let (address, flags) = (fields.nth(1)?, fields.next()?);
        let keeps_slots = fields.nth(5).is_some();
        if !keeps_slots || !flags.split(',').any(|flag| flag == "master") {
            return None;
        }
        if flags.split(',').any(|flag| matches!(flag, "fail" | "fail?" | "noaddr")) {
            return Some(Err(RemoteError::Unreachable));
        }
        let address = address.split('@').next()?.rsplit_once(':');
        let server = address
            .and_then(|(host, port)| Some(Self::Of { host: host.to_owned(), port: port.parse().ok()? }));
        Some(server.ok_or(RemoteError::Server))
    }
}

/// What an error of the client or of the server means to us.
pub(super) fn remote_error(error: &redis::RedisError) -> RemoteError {
    match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _)
        | (ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ReadOnly), _)
        | (_, Some("NOAUTH" | "WRONGPASS")) => RemoteError::Denied,
        (_, Some("OOM")) => RemoteError::NoSpace,
        (ErrorKind::Io | ErrorKind::ClusterConnectionNotFound, _) => RemoteError::Unreachable,
        (ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::ClusterDown), _) => {
            RemoteError::Unreachable
        }
        _ => RemoteError::Server,
    }
}

/// Whether the connection is in a known state after that error: the server itself said it.
pub(super) fn leaves_link_good(error: &redis::RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primaries_with_slots_are_the_servers() {
        let of = Server::of_line;
        let server = Server::Of { host: "10.0.0.1".to_owned(), port: 7000 };
        assert_eq!(of("a 10.0.0.1:7000@17000,n1 myself,master - 0 0 1 connected 0-5460"), Some(Ok(server)));
        let six = Server::Of { host: "::1".to_owned(), port: 7000 };
        assert_eq!(of("a ::1:7000@17000 master - 0 0 1 connected 0"), Some(Ok(six)));
        assert_eq!(of("a 10.0.0.1:7000@17000 myself,master - 0 0 1 connected"), None);
        assert_eq!(of("a 10.0.0.1:7000@17000 slave b 0 0 1 connected"), None);
        let failed = "a 10.0.0.1:7000@17000 master,fail - 0 0 1 disconnected 0-5460";
        assert_eq!(of(failed), Some(Err(RemoteError::Unreachable)));
        assert_eq!(of("a nonsense master - 0 0 1 connected 0-5460"), Some(Err(RemoteError::Server)));
        assert_eq!(of(""), None);
    }
}
