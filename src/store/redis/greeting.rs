//! What a new connection to a server begins with.

use redis::aio::MultiplexedConnection;
use redis::{ConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisResult};

use super::refusal::is_withheld;

/// What a new connection begins with. The client would do the same, but it hides what a server says
/// that refuses the connection.
#[derive(Clone, Default)]
pub(super) struct Greeting {
    user: Option<String>,
    password: Option<String>,
    database: i64,
}

impl Greeting {
    pub(super) fn database(&self) -> i64 {
        self.database
    }

    /// The server without what the greeting does.
    pub(super) fn taken_from(server: ConnectionInfo) -> (ConnectionInfo, Self) {
        let settings = server.redis_settings();
        if settings.protocol() != ProtocolVersion::RESP2 {
            return (server, Self::default());
        }
        let greeting = Self {
            user: settings.username().map(str::to_owned),
            password: settings.password().map(str::to_owned),
            database: settings.db(),
        };
        let bare = RedisConnectionInfo::default().set_skip_set_lib_name();
        (server.set_redis_settings(bare), greeting)
    }

    /// Ends when the server has answered. A peer that is silent is waited for.
    pub(super) async fn send(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        if let Some(password) = &self.password {
            let mut login = redis::cmd("AUTH");
            login.arg(&self.user).arg(password).exec_async(connection).await?;
        }
        if self.database != 0 {
            redis::cmd("SELECT").arg(self.database).exec_async(connection).await?;
        }
        match redis::cmd("PING").exec_async(connection).await {
            Err(error) if is_withheld(&error) => Ok(()),
            answered => answered,
        }
    }
}
