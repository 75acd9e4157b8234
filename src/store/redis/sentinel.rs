//! The master that sentinels name.

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, ErrorKind, RedisResult, TlsMode,
};

/// The name of a master, the sentinels to ask for it, and how to speak to it.
#[derive(Clone)]
pub(super) struct Master {
    sentinels: Vec<ConnectionInfo>,
    name: String,
    server: SentinelNodeConnectionInfo,
    database: i64,
}

impl Master {
    pub(super) fn new(sentinels: Vec<ConnectionInfo>, name: &str, master: &ConnectionInfo) -> Self {
        let mut server = SentinelNodeConnectionInfo::default()
            .set_redis_connection_info(master.redis_settings().clone())
            .set_tcp_settings(master.tcp_settings().clone());
        if let ConnectionAddr::TcpTls { .. } = master.addr() {
            server = server.set_tls_mode(TlsMode::Secure);
        }
        let database = master.redis_settings().db();
        Self { sentinels, name: name.to_owned(), server, database }
    }

    pub(super) fn database(&self) -> i64 {
        self.database
    }

    /// Asks the sentinels for the master and connects to it. Connections to sentinels are new as
    /// well: an old one may be half open.
    pub(super) async fn connect(
        self,
        config: &AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        let kind = SentinelServerType::Master;
        let mut client = SentinelClient::build(self.sentinels, self.name, Some(self.server), kind)?;
        client.get_async_connection_with_config(config).await
    }
}

/// Returns the name of a master, which the URL holds in place of the host.
pub(super) fn name_of(master: &ConnectionInfo) -> RedisResult<&str> {
    match master.addr() {
        ConnectionAddr::Tcp(name, _) | ConnectionAddr::TcpTls { host: name, .. } => Ok(name),
        _ => Err((ErrorKind::InvalidClientConfig, "a master has a name").into()),
    }
}
