//! The server that sentinels name, and another one when they name another.

use std::sync::Arc;

use futures::FutureExt;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline, RedisError,
    RedisFuture, RedisResult, ServerErrorKind, TlsMode, Value,
};
use tokio::sync::Mutex;

/// A connection to the master, which is looked for anew when it has failed.
#[derive(Clone)]
pub(super) struct Watched {
    state: Arc<Mutex<State>>,
    config: AsyncConnectionConfig,
    database: i64,
}

struct State {
    sentinels: SentinelClient,
    current: Option<MultiplexedConnection>,
    /// How many there were, so that one that has failed is not taken for its successor.
    connections: u64,
}

impl Watched {
    /// To the server that is called `name`; `master` says how to speak to it.
    pub(super) async fn connect(
        sentinels: Vec<ConnectionInfo>,
        name: &str,
        master: &ConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> RedisResult<Self> {
        let settings = master.redis_settings();
        let mut server =
            SentinelNodeConnectionInfo::default().set_redis_connection_info(settings.clone());
        if let ConnectionAddr::TcpTls { .. } = master.addr() {
            server = server.set_tls_mode(TlsMode::Secure);
        }
        let (name, kind) = (name.to_owned(), SentinelServerType::Master);
        let sentinels = SentinelClient::build(sentinels, name, Some(server), kind)?;
        let state = State { sentinels, current: None, connections: 0 };
        let watched = Self { state: Arc::new(Mutex::new(state)), config, database: settings.db() };
        watched.connection().await?;
        Ok(watched)
    }

    async fn connection(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let mut state = self.state.lock().await;
        if let Some(connection) = &state.current {
            return Ok((connection.clone(), state.connections));
        }
        let connection = state.sentinels.get_async_connection_with_config(&self.config).await?;
        state.current = Some(connection.clone());
        state.connections += 1;
        Ok((connection, state.connections))
    }

    /// Looks for the master anew with the next call, where this one has failed with it.
    async fn settle<T>(&self, answer: RedisResult<T>, connection: u64) -> RedisResult<T> {
        if answer.as_ref().is_err_and(is_over) {
            let mut state = self.state.lock().await;
            if state.connections == connection {
                state.current = None;
            }
        }
        answer
    }
}

/// The name of a master, which stands in place of the host.
pub(super) fn name_of(master: &ConnectionInfo) -> RedisResult<&str> {
    match master.addr() {
        ConnectionAddr::Tcp(name, _) | ConnectionAddr::TcpTls { host: name, .. } => Ok(name),
        _ => Err((ErrorKind::InvalidClientConfig, "a master has a name").into()),
    }
}

/// Whether the server may be the master no longer, or not be there at all.
fn is_over(error: &RedisError) -> bool {
    let is_replica = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
    is_replica || error.is_io_error() || error.is_unrecoverable_error()
}

impl ConnectionLike for Watched {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        async move {
            let (mut connection, number) = self.connection().await?;
            let answer = connection.req_packed_command(command).await;
            self.settle(answer, number).await
        }
        .boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        async move {
            let (mut connection, number) = self.connection().await?;
            let answer = connection.req_packed_commands(pipeline, offset, count).await;
            self.settle(answer, number).await
        }
        .boxed()
    }

    fn get_db(&self) -> i64 {
        self.database
    }
}
