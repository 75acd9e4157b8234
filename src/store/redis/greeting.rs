//! The commands that open a new connection to a server.

use redis::aio::MultiplexedConnection;
use redis::{ConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisResult};

use super::refusal::is_command_denied;

/// Sends the login, the database and a `PING` on a new connection. The client can send the same
/// commands, but it hides the error of a server that refuses the connection.
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

    /// Moves the login and the database from a server's settings into a greeting.
    pub(super) fn split_from(server: ConnectionInfo) -> (ConnectionInfo, Self) {
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

    /// Sends the greeting and waits for the answers, without a time limit.
    pub(super) async fn send(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        if let Some(password) = &self.password {
            let mut login = redis::cmd("AUTH");
            login.arg(&self.user).arg(password).exec_async(connection).await?;
        }
        if self.database != 0 {
            redis::cmd("SELECT").arg(self.database).exec_async(connection).await?;
        }
        match redis::cmd("PING").exec_async(connection).await {
            Err(error) if is_command_denied(&error) => Ok(()),
            answered => answered,
        }
    }
}
