//! The targets of a store's connection: one server, a cluster, or the master that sentinels report.

use std::io;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, RedisError, RedisResult,
};
use tokio::time::timeout;

use super::greeting::Greeting;
#[cfg(feature = "redis-cluster")]
use super::refusal::Refusal;
use crate::error::{Panic, contain};

/// The time limit of the first connection, for which no worker waits.
pub(super) const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The time limit of a connection that replaces another one. A server in the same region accepts it
/// in milliseconds. TCP repeats a lost first packet after 1 s (RFC 6298, section 2.1), so one
/// packet may be lost. Two attempts fit between the end of a fault and the end of the shortest
/// lease plus two renewals.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);

/// The time limit of an answer: half of the default lease duration. A save of a thousand shards
/// takes Redis a few milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The idle time before the first keep-alive probe, about one renewal interval of the default
/// lease.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(3);

/// The time between two keep-alive probes, the shortest that TCP allows.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// The number of consecutive unanswered probes that closes the connection.
const KEEPALIVE_RETRIES: u32 = 3;

/// Returns the settings of every socket. Bytes that are not acknowledged, or a peer that is gone,
/// close the connection within 6 s, which is less than the default lease duration.
fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(ANSWER_TIMEOUT);
    settings
}

/// The server or servers to connect to. Every attempt resolves host names again.
#[derive(Clone)]
pub(super) enum Target {
    Server(Client, Greeting),
    #[cfg(feature = "redis-cluster")]
    Cluster(Vec<ConnectionInfo>),
    #[cfg(feature = "redis-sentinel")]
    Master(super::sentinel::Master),
}

impl Target {
    pub(super) fn server(server: ConnectionInfo) -> RedisResult<Self> {
        let (server, greeting) = Greeting::split_from(server);
        Ok(Self::Server(Client::open(server.set_tcp_settings(tcp_settings()))?, greeting))
    }

    /// Creates the target of the master that sentinels report under this name. `master` holds the
    /// settings of its connection.
    #[cfg(feature = "redis-sentinel")]
    pub(super) fn master(
        sentinels: Vec<ConnectionInfo>,
        name: &str,
        master: &ConnectionInfo,
    ) -> Self {
        let set = |sentinel: ConnectionInfo| sentinel.set_tcp_settings(tcp_settings());
        let sentinels = sentinels.into_iter().map(set).collect();
        let master = master.clone().set_tcp_settings(tcp_settings());
        Self::Master(super::sentinel::Master::new(sentinels, name, master))
    }

    /// Opens a new connection. Fails after `limit` at the latest.
    pub(super) async fn connect(self, limit: Duration) -> RedisResult<Link> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(limit));
        let connecting = async {
            match self {
                Self::Server(client, greeting) => {
                    let connection = client.get_multiplexed_async_connection_with_config(&config);
                    let mut connection = connection.await?;
                    greeting.send(&mut connection).await?;
                    Ok(Link::of_one(connection))
                }
                #[cfg(feature = "redis-cluster")]
                Self::Cluster(nodes) => connect_cluster(nodes, limit).await,
                #[cfg(feature = "redis-sentinel")]
                Self::Master(master) => master.connect(&config).await.map(Link::of_one),
            }
        };
        let connected = contain(timeout(limit, connecting)).await.map_err(panicked)?;
        connected.unwrap_or_else(|_elapsed| {
            let message = format!("not connected within {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, message).into())
        })
    }

    pub(super) fn database(&self) -> i64 {
        match self {
            Self::Server(_, greeting) => greeting.database(),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(_) => 0,
            #[cfg(feature = "redis-sentinel")]
            Self::Master(master) => master.database(),
        }
    }
}

/// Returns the error of a connection that panicked. With `rediss://`, rustls panics if the program
/// has no TLS provider, or several.
fn panicked(panic: Panic) -> RedisError {
    let text = panic.to_string();
    if text.contains("CryptoProvider") {
        let words: Vec<&str> = text.split_whitespace().collect();
        return (ErrorKind::InvalidClientConfig, "no TLS provider", words.join(" ")).into();
    }
    io::Error::other(panic).into()
}

#[cfg(feature = "redis-cluster")]
async fn connect_cluster(nodes: Vec<ConnectionInfo>, limit: Duration) -> RedisResult<Link> {
    let client = redis::cluster::ClusterClient::builder(nodes.clone())
        // For moved keys and failed nodes. The caller retries remaining failures.
        .retries(3)
        // A silent node must not use up the time of one that answers.
        .connection_timeout(limit / 2)
        .response_timeout(ANSWER_TIMEOUT)
        .tcp_settings(tcp_settings())
        .build()?;
    match client.get_async_connection().await {
        Ok(link) => Ok(Link::Cluster(link)),
        Err(error) if Refusal::of(&error).is_some() => Err(error),
        Err(error) => Err(refusal_of_node(nodes).await.unwrap_or(error)),
    }
}

/// Returns the error answer of a node that refuses connections, which the cluster client does not
/// show.
#[cfg(feature = "redis-cluster")]
async fn refusal_of_node(nodes: Vec<ConnectionInfo>) -> Option<RedisError> {
    let config = AsyncConnectionConfig::new();
    let greeted = nodes.into_iter().map(async |node| {
        let (node, greeting) = Greeting::split_from(node);
        let client = Client::open(node)?;
        let mut raw = client.get_multiplexed_async_connection_with_config(&config).await?;
        greeting.send(&mut raw).await
    });
    let answers = futures::future::join_all(greeted).await;
    answers.into_iter().find_map(|answer| answer.err().filter(|error| Refusal::of(error).is_some()))
}

/// An open connection. Clones share it.
#[derive(Clone)]
pub(super) enum Link {
    One(MultiplexedConnection),
    #[cfg(feature = "redis-cluster")]
    Cluster(redis::cluster_async::ClusterConnection),
}

impl Link {
    /// Wraps the connection to one server, which has answered its greeting.
    fn of_one(mut connection: MultiplexedConnection) -> Self {
        connection.set_response_timeout(ANSWER_TIMEOUT);
        Self::One(connection)
    }

    pub(super) fn any(&mut self) -> &mut (dyn ConnectionLike + Send) {
        match self {
            Self::One(link) => link,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(link) => link,
        }
    }

    /// Sends a command without a key; in a cluster, to any node.
    pub(super) async fn ask_any(&mut self, command: Cmd) -> RedisResult<redis::Value> {
        match self {
            Self::One(link) => link.req_packed_command(&command).await,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(link) => {
                use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
                let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
                link.route_command(command, any).await
            }
        }
    }
}
