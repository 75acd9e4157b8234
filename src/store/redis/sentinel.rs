//! The connection to the master that sentinels report.

use std::io;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisResult, Role,
};

use super::greeting::Greeting;
use super::refusal::is_command_denied;

/// The name of a master, the sentinels to query, and the settings of the connection to the master.
#[derive(Clone)]
pub(super) struct Master {
    sentinels: Vec<ConnectionInfo>,
    name: String,
    server: ConnectionInfo,
    greeting: Greeting,
}

/// The furthest point that a sentinel query reached. A later point gives a more specific error.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Nothing,
    Sentinel,
    Server,
}

impl Master {
    pub(super) fn new(sentinels: Vec<ConnectionInfo>, name: &str, master: ConnectionInfo) -> Self {
        let (server, greeting) = Greeting::split_from(master);
        Self { sentinels, name: name.to_owned(), server, greeting }
    }

    pub(super) fn database(&self) -> i64 {
        self.greeting.database()
    }

    /// Queries the sentinels for the master and connects to it. All are queried at once: the host
    /// of the first may be down, often together with the master that ran there. Connections to
    /// sentinels are always new, since an old connection may be half open.
    pub(super) async fn connect(
        self,
        config: &AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        let asked = self.sentinels.iter().map(|sentinel| self.connect_by(sentinel.clone(), config));
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut failed = None;
        while let Some(outcome) = asked.next().await {
            match outcome {
                Ok(connection) => return Ok(connection),
                Err(failure) => {
                    let says_more = |(known, _): &(Reached, _)| *known < failure.0;
                    if failed.as_ref().is_none_or(says_more) {
                        failed = Some(failure);
                    }
                }
            }
        }
        let nothing =
            || (ErrorKind::InvalidClientConfig, "no sentinel is given; give at least one").into();
        Err(failed.map_or_else(nothing, |(_, error)| error))
    }

    /// Connects to the master that this sentinel reports.
    async fn connect_by(
        &self,
        sentinel: ConnectionInfo,
        config: &AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, (Reached, redis::RedisError)> {
        let named = self.named_by(sentinel, config).await;
        let (host, port) = named.map_err(|error| (Reached::Nothing, error))?.ok_or_else(|| {
            let message = "the sentinel knows no master of this name";
            (Reached::Sentinel, (ErrorKind::MasterNameNotFoundBySentinel, message).into())
        })?;
        self.connect_to(host, port, config).await.map_err(|error| (Reached::Server, error))
    }

    async fn named_by(
        &self,
        sentinel: ConnectionInfo,
        config: &AsyncConnectionConfig,
    ) -> RedisResult<Option<(String, u16)>> {
        let client = Client::open(sentinel)?;
        let mut raw = client.get_multiplexed_async_connection_with_config(config).await?;
        let question = ["GET-MASTER-ADDR-BY-NAME", &self.name];
        redis::cmd("SENTINEL").arg(&question).query_async(&mut raw).await
    }

    async fn connect_to(
        &self,
        host: String,
        port: u16,
        config: &AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        let client = Client::open(self.server.clone().set_addr(self.address(host, port)))?;
        let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
        self.greeting.send(&mut connection).await?;
        match redis::cmd("ROLE").query_async(&mut connection).await {
            Ok(Role::Primary { .. }) => Ok(connection),
            // Without ROLE the server counts as the master; a replica refuses the first write.
            Err(error) if is_command_denied(&error) => Ok(connection),
            Ok(_) => {
                Err(io::Error::other("the server that the sentinels report is not a master").into())
            }
            Err(error) => Err(error),
        }
    }

    fn address(&self, host: String, port: u16) -> ConnectionAddr {
        match self.server.addr().clone() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(host, port),
        }
    }
}

/// Returns the name of a master, which is in place of the URL's host.
pub(super) fn name_of(master: &ConnectionInfo) -> RedisResult<&str> {
    match master.addr() {
        ConnectionAddr::Tcp(name, _) | ConnectionAddr::TcpTls { host: name, .. } => Ok(name),
        _ => Err((
            ErrorKind::InvalidClientConfig,
            "the URL of a master must hold its name in place of the host",
        )
            .into()),
    }
}
