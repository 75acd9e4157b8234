use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError, RedisResult, Script, ServerErrorKind};

use super::{CheckpointStore, Scope};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::record::ShardId;

/// The version of the layout of keys and values.
const FORMAT: &str = "1";

/// A server in the same network answers a connection in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A save of a thousand shards takes Redis a few milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps positions in Redis 6.2 or newer, or Valkey.
///
/// One connection, which is made anew whenever it is lost; the clones of a store share it. All
/// checkpoints that a consumer has to save go in one round trip, and a script on the server sees
/// to it that none moves backwards. The keys are laid out for people to read: see
/// [the module's page](crate::store#what-is-in-redis).
///
/// # Limits
///
/// A connection or an answer that takes longer than 5 seconds has failed. All keys of one
/// application and stream share a hash tag, as Redis Cluster needs it, but the store speaks to
/// the one server that the URL names.
///
/// ```no_run
/// # async fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use kinestream::{Consumer, RedisStore};
///
/// let store = RedisStore::connect("redis://127.0.0.1/").await?;
/// let consumer =
///     Consumer::builder(client, "orders").application("billing").store(store).build()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    connection: ConnectionManager,
    save: Arc<Script>,
    /// Where the server is, without its secrets.
    address: Arc<str>,
}

impl RedisStore {
    /// Connects to `redis://[user][:password@]host[:port][/database]`, to `rediss://…` for TLS
    /// (with the cargo feature `redis-tls`), or to `unix:///path/of/socket`.
    ///
    /// # Errors
    ///
    /// At once, or after 5 s where nothing answers:
    /// [`Configuration`](ErrorKind::Configuration) for a URL that is not one, a database that is
    /// not there, and a server that is too old; [`Denied`](ErrorKind::Denied) for a wrong or
    /// missing password; [`StoreUnavailable`](ErrorKind::StoreUnavailable) where there is no
    /// server. The URL's secrets are in none of them.
    pub async fn connect(url: &str) -> Result<Self> {
        if url.starts_with("rediss:") && cfg!(not(feature = "redis-tls")) {
            return Err(Error::new(
                ErrorKind::Configuration,
                "a rediss:// URL needs the cargo feature redis-tls of kinestream",
            ));
        }
        // Neither the URL nor what the parser says of it is shown: it may hold a password.
        let client = Client::open(url).map_err(|_unshown| {
            Error::new(
                ErrorKind::Configuration,
                "the Redis URL is not valid; it must be like \
                 redis://user:password@host:6379/0, rediss://… for TLS, or unix:///path",
            )
        })?;
        let address = client.get_connection_info().addr().to_string();
        let config = ConnectionManagerConfig::new()
            // Whoever calls tries again, with a back-off of its own.
            .set_number_of_retries(0)
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        let connection = ConnectionManager::new_with_config(client, config)
            .await
            .map_err(|error| sort(error, &address, "its server"))?;
        let store = Self {
            connection,
            save: Arc::new(Script::new(include_str!("redis/save.lua"))),
            address: address.into(),
        };
        store.check_version().await?;
        Ok(store)
    }

    async fn check_version(&self) -> Result<()> {
        let mut connection = self.connection.clone();
        let asked = redis::cmd("INFO").arg("server").query_async::<String>(&mut connection).await;
        let information = match asked {
            Ok(information) => information,
            // A user who may not ask is not kept from saving checkpoints.
            Err(error) if error.kind() == ServerErrorKind::NoPerm.into() => return Ok(()),
            Err(error) => return Err(sort(error, &self.address, "its server")),
        };
        let version = information.lines().find_map(|line| line.strip_prefix("redis_version:"));
        let number = version.map(|version| {
            let mut parts = version.trim().split('.').map(|part| part.parse().unwrap_or(0));
            (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
        });
        match (version, number) {
            (Some(version), Some(number)) if number < (6, 2) => Err(Error::new(
                ErrorKind::Configuration,
                format!(
                    "Redis at {} is version {version}, but 6.2 or newer is needed",
                    self.address
                ),
            )),
            _ => Ok(()),
        }
    }
}

impl CheckpointStore for RedisStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        async move {
            let keys = Keys::of(scope);
            let mut connection = self.connection.clone();
            // Each answer with its own error: a pipeline's has no code to sort it by.
            let (format, fields): (
                RedisResult<Option<String>>,
                RedisResult<HashMap<String, String>>,
            ) = redis::pipe()
                .get(&keys.format)
                .hgetall(&keys.checkpoints)
                .ignore_errors()
                .query_async(&mut connection)
                .await
                .map_err(|error| sort(error, &self.address, &keys.checkpoints))?;
            let format = format.map_err(|error| sort(error, &self.address, &keys.format))?;
            let fields = fields.map_err(|error| sort(error, &self.address, &keys.checkpoints))?;
            if let Some(format) = format
                && format != FORMAT
            {
                return Err(other_format(&keys, &format));
            }
            fields
                .into_iter()
                .map(|(shard, checkpoint)| match (shard.parse(), checkpoint.parse()) {
                    (Ok(shard), Ok(checkpoint)) => Ok((shard, checkpoint)),
                    _ => Err(no_checkpoint(&keys, &shard)),
                })
                .collect()
        }
        .boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            if checkpoints.is_empty() {
                return Ok(());
            }
            let keys = Keys::of(scope);
            let mut call = self.save.prepare_invoke();
            call.key(&keys.format).key(&keys.checkpoints);
            for (shard, checkpoint) in checkpoints {
                call.arg(shard.as_str()).arg(checkpoint.to_string());
            }
            let mut connection = self.connection.clone();
            let saved = call.invoke_async::<()>(&mut connection).await;
            saved.map_err(|error| match (error.code(), error.detail()) {
                (Some("KINESTREAMFORMAT"), format) => {
                    other_format(&keys, format.unwrap_or("unknown"))
                }
                (Some("KINESTREAMVALUE"), shard) => {
                    no_checkpoint(&keys, shard.unwrap_or("unknown"))
                }
                _ => sort(error, &self.address, &keys.checkpoints),
            })
        }
        .boxed()
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RedisStore").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The keys of one application and stream.
struct Keys {
    format: String,
    checkpoints: String,
}

impl Keys {
    fn of(scope: &Scope) -> Self {
        // A colon in the application's name must not pass for the one before the stream's.
        let application = scope.application().replace('%', "%25").replace(':', "%3A");
        let prefix = format!("kinestream:{{{application}:{}}}", scope.stream());
        Self { format: format!("{prefix}:format"), checkpoints: format!("{prefix}:checkpoints") }
    }
}

fn other_format(keys: &Keys, format: &str) -> Error {
    Error::store_corrupt(format!(
        "the Redis key {} says format {format:?}, but this version of kinestream knows {FORMAT:?}; \
         use the version that wrote it, or another application",
        keys.format
    ))
}

fn no_checkpoint(keys: &Keys, shard: &str) -> Error {
    Error::store_corrupt(format!(
        "the Redis key {} holds something that is not a checkpoint in field {shard:?}; delete the \
         field if it is a leftover, or use another application",
        keys.checkpoints
    ))
}

/// What an error of Redis means for a store: whether waiting cures it, and what to do.
fn sort(error: RedisError, address: &str, key: &str) -> Error {
    use redis::ErrorKind as Kind;
    let code = error.code().unwrap_or_default().to_owned();
    let detail = error.detail().unwrap_or_default().to_owned();
    let (kind, message) = match error.kind() {
        Kind::AuthenticationFailed => (ErrorKind::Denied, denied(address)),
        Kind::Server(ServerErrorKind::NoPerm) => (
            ErrorKind::Denied,
            format!("Redis at {address} does not let this user do what is needed: {detail}"),
        ),
        _ if matches!(&*code, "NOAUTH" | "WRONGPASS") => (ErrorKind::Denied, denied(address)),
        Kind::Server(
            ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot,
        ) => (
            ErrorKind::Configuration,
            format!(
                "Redis at {address} is a node of a cluster that does not hold these keys; name \
                 the one that does{}",
                error.redirect_node().map_or_else(String::new, |(node, _slot)| format!(", {node}"))
            ),
        ),
        _ if code == "WRONGTYPE" => (
            ErrorKind::StoreCorrupt,
            format!(
                "the Redis key {key} holds something else than checkpoints; delete it if it is a \
                 leftover, or use another application"
            ),
        ),
        Kind::Parse | Kind::UnexpectedReturnType => (
            ErrorKind::StoreCorrupt,
            format!(
                "the Redis key {key} holds something that is not text; use another application"
            ),
        ),
        Kind::InvalidClientConfig => (
            ErrorKind::Configuration,
            format!(
                "Redis at {address} cannot be used as the URL says; check the database's number"
            ),
        ),
        _ if detail.contains("DB index") || detail.contains("database") => (
            ErrorKind::Configuration,
            format!("Redis at {address} has no such database; check the number at the URL's end"),
        ),
        Kind::Server(ServerErrorKind::ClusterDown) => (
            ErrorKind::StoreUnavailable,
            format!(
                "Redis at {address} is a node of a cluster that is down or not complete; check it \
                 with CLUSTER INFO"
            ),
        ),
        Kind::Io if error.to_string().contains("certificate") => (
            ErrorKind::Configuration,
            format!(
                "Redis at {address} has a certificate that this system does not trust for that \
                 name; add its authority to the system's certificates, or name it in SSL_CERT_FILE"
            ),
        ),
        // Loading, failing over, out of memory, busy, refused, reset, slow: all pass.
        _ => (
            ErrorKind::StoreUnavailable,
            format!(
                "Redis at {address} is out of reach; check that it runs and takes connections, \
                 with TLS for rediss:// and without for redis://"
            ),
        ),
    };
    Error::new(kind, message).with_source(error)
}

fn denied(address: &str) -> String {
    format!("Redis at {address} refused the user or password; check both in the URL")
}
