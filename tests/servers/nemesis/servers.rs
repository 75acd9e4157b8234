//! The servers of a store, with the faults that all of them have.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use kinestream::store::CheckpointStore;

use super::postgres::Postgres;
use super::redis::RedisServers;
use crate::proxy::Proxy;

/// The source address of the proxies' connections to the servers.
pub(super) const PROXIES: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The store, and the way in which workers find its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deployment {
    /// One address of Redis, which leads to the new master after a failover.
    Address,
    /// A sentinel of Redis.
    Sentinel,
    /// The nodes of a Redis cluster.
    Cluster,
    /// The address of PostgreSQL.
    Postgres,
}

pub(super) enum Servers {
    Redis(Box<RedisServers>),
    Postgres(Postgres),
}

impl Servers {
    pub(super) async fn start(by: Deployment) -> Self {
        match by {
            Deployment::Postgres => Self::Postgres(Postgres::start()),
            by => Self::Redis(Box::new(RedisServers::start(by).await)),
        }
    }

    /// Connects a store through new proxies.
    pub(super) async fn connect(&self) -> (Vec<Proxy>, Arc<dyn CheckpointStore>) {
        match self {
            Self::Redis(servers) => {
                let (proxies, store) = servers.connect().await;
                (proxies, Arc::new(store))
            }
            Self::Postgres(server) => server.connect().await,
        }
    }

    /// Returns true if the server has connections of workers, and all of them use proxies.
    pub(super) async fn serve_proxies_alone(&self) -> bool {
        match self {
            Self::Redis(servers) => servers.serve_proxies_alone().await,
            Self::Postgres(server) => server.serves_proxies_alone().await,
        }
    }

    /// Closes the connections of all clients.
    pub(super) async fn close_connections(&self) {
        match self {
            Self::Redis(servers) => servers.command(&["CLIENT", "KILL", "TYPE", "normal"]).await,
            Self::Postgres(server) => server.close_connections().await,
        }
    }

    /// Suspends the server that workers write to.
    pub(super) async fn suspend(&mut self, time: Duration) {
        match self {
            Self::Redis(servers) => servers.suspend(time).await,
            Self::Postgres(server) => server.suspend(time).await,
        }
    }

    /// Kills the server that workers write to, and restarts it with its data.
    pub(super) async fn restart(&mut self, time: Duration) {
        match self {
            Self::Redis(servers) => servers.restart(time).await,
            Self::Postgres(server) => server.restart(time).await,
        }
    }

    /// Makes all calls of workers wait or fail because of another client.
    pub(super) async fn keep_busy(&self, time: Duration) {
        match self {
            Self::Redis(servers) => servers.keep_busy(time).await,
            Self::Postgres(server) => server.keep_busy(time).await,
        }
    }

    pub(super) async fn lose_all(&self) {
        match self {
            Self::Redis(servers) => servers.command(&["FLUSHALL"]).await,
            Self::Postgres(server) => server.lose_all().await,
        }
    }

    /// Returns the servers for a fault that only Redis has.
    pub(super) fn redis(&mut self) -> &mut RedisServers {
        match self {
            Self::Redis(servers) => servers,
            Self::Postgres(_) => unreachable!("the fault is drawn for Redis only"),
        }
    }

    /// Returns the server for a fault that only PostgreSQL has.
    pub(super) fn postgres(&self) -> &Postgres {
        match self {
            Self::Postgres(server) => server,
            Self::Redis(_) => unreachable!("the fault is drawn for PostgreSQL only"),
        }
    }
}
