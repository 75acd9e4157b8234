//! What a store speaks to: one server, a cluster, or the server that sentinels name.

use std::time::Duration;

use redis::Value;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisFuture, RedisResult};

use crate::error::{Error, ErrorKind, Result};

/// A server in the same network answers a connection in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A save of a thousand shards takes Redis a few milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Cheap to clone, and made anew by itself when it is lost.
#[derive(Clone)]
pub(super) enum Connection {
    Server(ConnectionManager),
    #[cfg(feature = "redis-cluster")]
    Cluster(redis::cluster_async::ClusterConnection),
    #[cfg(feature = "redis-sentinel")]
    Watched(super::sentinel::Watched),
}

impl Connection {
    pub(super) async fn to_server(server: ConnectionInfo) -> RedisResult<Self> {
        let config = ConnectionManagerConfig::new()
            // Whoever calls tries again, with a back-off of its own.
            .set_number_of_retries(0)
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        let manager = ConnectionManager::new_with_config(Client::open(server)?, config);
        Ok(Self::Server(manager.await?))
    }

    /// To the cluster that any of these nodes belongs to.
    #[cfg(feature = "redis-cluster")]
    pub(super) async fn to_cluster(nodes: Vec<ConnectionInfo>) -> RedisResult<Self> {
        let client = redis::cluster::ClusterClient::builder(nodes)
            // For keys that have moved, and for a node that is gone; what fails is tried again.
            .retries(3)
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(ANSWER_TIMEOUT)
            .build()?;
        Ok(Self::Cluster(client.get_async_connection().await?))
    }

    /// To the server that is the master of that name, whichever that is.
    #[cfg(feature = "redis-sentinel")]
    pub(super) async fn to_master(
        sentinels: Vec<ConnectionInfo>,
        name: &str,
        master: &ConnectionInfo,
    ) -> RedisResult<Self> {
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        let watched = super::sentinel::Watched::connect(sentinels, name, master, config);
        Ok(Self::Watched(watched.await?))
    }

    fn any(&mut self) -> &mut (dyn ConnectionLike + Send) {
        match self {
            Self::Server(server) => server,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => cluster,
            #[cfg(feature = "redis-sentinel")]
            Self::Watched(watched) => watched,
        }
    }

    /// What `INFO server` says of one server.
    pub(super) async fn information(&mut self) -> RedisResult<String> {
        let mut asked = redis::cmd("INFO");
        asked.arg("server");
        match self {
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => {
                use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
                let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
                redis::from_redis_value(cluster.route_command(asked, any).await?)
                    .map_err(redis::RedisError::from)
            }
            _ => asked.query_async(self).await,
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.any().req_packed_command(command)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.any().req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(server) => server.get_db(),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => cluster.get_db(),
            #[cfg(feature = "redis-sentinel")]
            Self::Watched(watched) => watched.get_db(),
        }
    }
}

/// What a URL says. Neither the URL nor what the parser says of it is shown: it may hold a password.
pub(super) fn parse(url: &str) -> Result<ConnectionInfo> {
    if url.starts_with("rediss:") && cfg!(not(feature = "redis-tls")) {
        return Err(Error::new(
            ErrorKind::Configuration,
            "a rediss:// URL needs the cargo feature redis-tls of kinestream",
        ));
    }
    url.into_connection_info().map_err(|_unshown| {
        Error::new(
            ErrorKind::Configuration,
            "the Redis URL is not valid; it must be like redis://user:password@host:6379/0, \
             rediss://… for TLS, or unix:///path",
        )
    })
}
