//! A connection to one server or to a cluster.

use redis::aio::ConnectionLike;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{ErrorKind, RedisResult, ServerErrorKind};

use super::request::Request;
use super::wire::{Answer, Wire};
use crate::remote::RemoteError;

/// A connection. Dropping it (a cluster's: the last clone) closes it and ends what it was doing.
pub(super) enum Link {
    One(Box<Wire>),
    Cluster(ClusterConnection),
}

impl Link {
    /// One answer for each command; in a cluster all are about one block.
    pub(super) async fn ask(&mut self, request: &Request<'_>) -> RedisResult<Vec<Answer>> {
        match self {
            Self::One(wire) => wire.ask(request).await,
            Self::Cluster(connection) => ask_cluster(connection, request).await,
        }
    }

    /// Asks one server, about any of its blocks.
    pub(super) async fn ask_server(
        &mut self,
        server: &Server,
        request: &Request<'_>,
    ) -> RedisResult<Vec<Answer>> {
        match (self, server) {
            (Self::Cluster(connection), Server::Of { host, port }) => {
                let server = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
                let count = request.len();
                let answers = connection.route_pipeline(request.pipeline(), 0, count, server).await?;
                Ok(answers.into_iter().map(Answer::from).collect())
            }
            (link, _) => link.ask(request).await,
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

/// One answer for each command; all are about one block.
pub(super) async fn ask_cluster(
    connection: &mut ClusterConnection,
    request: &Request<'_>,
) -> RedisResult<Vec<Answer>> {
    let answers = connection.req_packed_commands(&request.pipeline(), 0, request.len()).await?;
    Ok(answers.into_iter().map(Answer::from).collect())
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
