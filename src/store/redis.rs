mod connection;
mod errors;
mod greeting;
mod keys;
mod leases;
mod link;
mod refusal;
mod scripts;
#[cfg(feature = "redis-sentinel")]
mod sentinel;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use connection::{Connection, parse};
use errors::{classify, corrupt_value, shard_of, unsupported_format};
use futures::FutureExt;
use futures::future::BoxFuture;
use keys::{FORMAT, Key, Keys};
use link::Target;
use redis::{FromRedisValue, RedisResult};
use refusal::is_command_denied;
use scripts::Scripts;

use super::unfenced::save_unfenced;
use super::{CheckpointStore, LeaseStore, Scope, all_or_error};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::record::ShardId;

/// Stores positions and leases in Redis 6.2 or newer, or Valkey.
///
/// All checkpoints of one save go in one round trip, and a script on the server ensures that none
/// moves backwards. The keys hold readable text: see
/// [the key layout](crate::store#redis-key-layout).
///
/// # Requirements on the server
///
/// - `maxmemory-policy noeviction`. With any other policy, Redis may delete checkpoints and leases
///   when its memory is full. `connect` logs a warning if the server reports another policy.
/// - Scripts (`EVAL`, `EVALSHA`, `SCRIPT LOAD`). A dedicated user needs
///   `ACL SETUSER … ~kinestream:* +@read +@write +@scripting +@connection`, and `+info` for the
///   checks of the server's version and policy.
///
/// # Connection
///
/// Clones of a store share one connection. It is replaced, and the address is resolved again, when
/// it is closed, when a call on it times out or is dropped before its answer, and when the server
/// reports that it no longer serves requests (such as `READONLY` after a failover, `LOADING` or
/// `MASTERDOWN`). Calls in flight on the old connection fail if they have no answer within 1 s; new
/// calls share one attempt to connect. Attempts start at least 50 ms apart.
///
/// The connection belongs to the tokio runtime of the call that opened it. A store may be used from
/// other runtimes and may outlive the first. A call that finds the connection gone fails with
/// [`StoreUnavailable`](ErrorKind::StoreUnavailable), and the next call connects again on its own
/// runtime.
///
/// # Redis Cluster and Sentinel
///
/// All keys of one application and stream share a hash tag, so they are on one node of a Redis
/// Cluster. With the cargo feature `redis-cluster`, the store finds that node, also after it
/// changes: `connect` detects whether a server belongs to a cluster, and `connect_cluster` takes
/// several of its nodes, so that one may be down. With `redis-sentinel`, `connect_sentinel` follows
/// the master that the sentinels report; it queries all sentinels at once and takes the first
/// master found.
///
/// # Limits
///
/// | | limit |
/// |---|---|
/// | the first connection | 5 s |
/// | a connection that replaces another one | 1.5 s |
/// | an answer | 5 s; a worker waits at most a third of its lease duration |
/// | TCP keep-alive | a probe after 3 s without traffic and then each second; 3 lost probes close the connection |
/// | `TCP_USER_TIMEOUT` (Linux) | bytes unacknowledged for 5 s close the connection |
///
/// A connection that is lost without notice is therefore detected and replaced within the default
/// lease duration of 10 s.
///
/// # Errors
///
/// Messages, and therefore events and logs, contain the text and the error code of Redis.
///
/// - [`StoreUnavailable`](ErrorKind::StoreUnavailable), for conditions that are or may be
///   temporary: an unreachable server, a replica (`READONLY`, `MASTERDOWN`), `LOADING`, `BUSY`, a
///   cluster that changes (`MOVED`, `ASK`, `CLUSTERDOWN`, `TRYAGAIN`), no memory (`OOM`), no disk
///   (`MISCONF`), too few replicas (`NOREPLICAS`).
/// - [`Denied`](ErrorKind::Denied): a refused user or password, no permission (`NOPERM`), protected
///   mode.
/// - [`Configuration`](ErrorKind::Configuration): a command that is disabled or renamed.
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
    connection: Connection,
    scripts: Arc<Scripts>,
    /// The server's address, without secrets.
    address: Arc<str>,
}

impl RedisStore {
    /// Connects to `redis://[user][:password@]host[:port][/database]`, to `rediss://…` for TLS
    /// (with the cargo feature `redis-tls`), or to `unix:///path/of/socket`.
    ///
    /// # Errors
    ///
    /// Fails at once, or after 5 s without an answer: [`Configuration`](ErrorKind::Configuration)
    /// for an invalid URL, a database that does not exist, a server that is too old, or a program
    /// with no TLS provider of rustls or several (select one with its
    /// `CryptoProvider::install_default`);
    /// [`Denied`](ErrorKind::Denied) for a wrong or missing password;
    /// [`StoreUnavailable`](ErrorKind::StoreUnavailable) for an unreachable server. No error
    /// contains the URL's secrets.
    pub async fn connect(url: &str) -> Result<Self> {
        let server = parse(url)?;
        let address = server.addr().to_string();
        let store = Self::open(Target::server(server.clone()), address).await?;
        let information = store.information().await?;
        check(&information, &store.address)?;
        // Valkey 8 has its own name for the mode.
        let is_cluster =
            |line: &str| matches!(line.trim(), "redis_mode:cluster" | "server_mode:cluster");
        if !information.lines().any(is_cluster) {
            return Ok(store);
        }
        store.into_cluster_store(server).await
    }

    #[cfg(feature = "redis-cluster")]
    async fn into_cluster_store(self, node: redis::ConnectionInfo) -> Result<Self> {
        let address = self.address.to_string();
        Self::open(Ok(Target::Cluster(vec![node])), address).await
    }

    #[cfg(not(feature = "redis-cluster"))]
    #[allow(clippy::unused_async)] // The variant with the feature awaits.
    async fn into_cluster_store(self, _node: redis::ConnectionInfo) -> Result<Self> {
        let message = format!(
            "Redis at {} is a node of a cluster, which needs the cargo feature redis-cluster of \
             kinestream",
            self.address
        );
        Err(Error::new(ErrorKind::Configuration, message))
    }

    /// Connects to the cluster that these nodes belong to. One node that answers is sufficient.
    /// Each URL has the form described at [`connect`](Self::connect).
    ///
    /// # Errors
    ///
    /// Fails as [`connect`](Self::connect) does.
    ///
    /// ```no_run
    /// # async fn example() -> kinestream::Result<()> {
    /// use kinestream::RedisStore;
    ///
    /// let store = RedisStore::connect_cluster(["redis://10.0.0.1/", "redis://10.0.0.2/"]).await?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "redis-cluster")]
    pub async fn connect_cluster<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let (nodes, addresses) = parse_all(urls)?;
        Self::open(Ok(Target::Cluster(nodes)), addresses).await?.checked().await
    }

    /// Connects to the server that the sentinels report as the master, and reconnects when they
    /// report another one. One sentinel that answers is sufficient.
    ///
    /// `master` is the URL of the master with the master's name in place of the host. It sets the
    /// user, password and database; `rediss://` selects TLS.
    ///
    /// # Errors
    ///
    /// Fails as [`connect`](Self::connect) does.
    ///
    /// ```no_run
    /// # async fn example() -> kinestream::Result<()> {
    /// use kinestream::RedisStore;
    ///
    /// let sentinels = ["redis://10.0.0.1:26379/", "redis://10.0.0.2:26379/"];
    /// let store = RedisStore::connect_sentinel(sentinels, "redis://:secret@mymaster/").await?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "redis-sentinel")]
    pub async fn connect_sentinel<'a>(
        sentinels: impl IntoIterator<Item = &'a str>,
        master: &str,
    ) -> Result<Self> {
        let (sentinels, addresses) = parse_all(sentinels)?;
        let master = parse(master)?;
        let name = sentinel::name_of(&master)
            .map_err(|error| classify(error, &addresses, "its server"))?
            .to_owned();
        let address = format!("{name} (sentinels {addresses})");
        let target = Target::master(sentinels, &name, &master);
        let connection = Connection::open(target).await;
        // After the first connection, the same error is temporary: the sentinels are electing
        // another master.
        if let Err(error) = &connection
            && error.kind() == redis::ErrorKind::MasterNameNotFoundBySentinel
        {
            let message = format!(
                "the sentinels {addresses} report no reachable master {name}; check the host of the \
                 master's URL"
            );
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        Self::new(connection, address)?.checked().await
    }

    async fn open(target: RedisResult<Target>, address: String) -> Result<Self> {
        let connection = match target {
            Ok(target) => Connection::open(target).await,
            Err(error) => Err(error),
        };
        Self::new(connection, address)
    }

    fn new(connection: RedisResult<Connection>, address: String) -> Result<Self> {
        Ok(Self {
            connection: connection.map_err(|error| classify(error, &address, "its server"))?,
            scripts: Arc::new(Scripts::new()),
            address: address.into(),
        })
    }

    /// Returns the store, or an error if the server is too old.
    #[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
    async fn checked(self) -> Result<Self> {
        check(&self.information().await?, &self.address)?;
        Ok(self)
    }

    /// Returns the server's `INFO`, or an empty string if this user may not run it: the store can
    /// save checkpoints without it.
    async fn information(&self) -> Result<String> {
        let answer = self.connection.ask_any(redis::cmd("INFO")).await;
        match answer.and_then(|answer| Ok(String::from_redis_value(answer)?)) {
            Ok(information) => Ok(information),
            Err(error) if is_command_denied(&error) => Ok(String::new()),
            Err(error) => Err(classify(error, &self.address, "its server")),
        }
    }
}

/// The fields of a hash and their values.
type Fields = HashMap<Vec<u8>, Vec<u8>>;

/// Checks a server's `INFO`: fails if the version is too old, and logs a warning if the server may
/// evict keys.
fn check(information: &str, address: &str) -> Result<()> {
    check_version(information, address)?;
    let policy = information.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
    if let Some(policy) = policy.map(str::trim)
        && policy != "noeviction"
    {
        tracing::warn!(
            server = address,
            policy,
            "maxmemory-policy may evict checkpoints and leases; set it to noeviction"
        );
    }
    Ok(())
}

fn check_version(information: &str, address: &str) -> Result<()> {
    let version = information.lines().find_map(|line| line.strip_prefix("redis_version:"));
    let number = version.map(|version| {
        let mut parts = version.trim().split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    });
    match (version, number) {
        (Some(version), Some(number)) if number < (6, 2) => Err(Error::new(
            ErrorKind::Configuration,
            format!("Redis at {address} has version {version}; use 6.2 or newer"),
        )),
        _ => Ok(()),
    }
}

/// Parses the URLs of several servers. Returns the servers and their addresses.
#[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
fn parse_all<'a>(
    urls: impl IntoIterator<Item = &'a str>,
) -> Result<(Vec<redis::ConnectionInfo>, String)> {
    let servers = urls.into_iter().map(parse).collect::<Result<Vec<_>>>()?;
    if servers.is_empty() {
        let message = "no Redis URL is given; give at least one";
        return Err(Error::new(ErrorKind::Configuration, message));
    }
    let addresses: Vec<_> = servers.iter().map(|server| server.addr().to_string()).collect();
    Ok((servers, addresses.join(", ")))
}

impl CheckpointStore for RedisStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        async move { all_or_error(self.load_each(scope).await?) }.boxed()
    }

    fn load_each<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, Result<HashMap<ShardId, Result<Checkpoint>>>> {
        async move {
            let keys = Keys::of(scope);
            let (format, checkpoints) = (keys.of_part(Key::Format), keys.of_part(Key::Checkpoints));
            let mut connection = self.connection.clone();
            // Each answer keeps its own error: the error of a whole pipeline has no code to
            // classify.
            let (found, fields): (RedisResult<Option<String>>, RedisResult<Fields>) = redis::pipe()
                .get(&format)
                .hgetall(&checkpoints)
                .ignore_errors()
                .query_async(&mut connection)
                .await
                .map_err(|error| classify(error, &self.address, &checkpoints))?;
            let found = found.map_err(|error| classify(error, &self.address, &format))?;
            let fields = fields.map_err(|error| classify(error, &self.address, &checkpoints))?;
            if let Some(found) = found
                && found != FORMAT
            {
                return Err(unsupported_format(&keys, &found));
            }
            let shards = fields.into_iter().filter_map(|(field, text)| {
                let shard = shard_of(&keys, Key::Checkpoints, &field)?;
                let checkpoint = String::from_utf8_lossy(&text).parse();
                let why = |_| corrupt_value(&keys, Key::Checkpoints, shard.as_str());
                let checkpoint = checkpoint.map_err(why);
                Some((shard, checkpoint))
            });
            Ok(shards.collect())
        }
        .boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let damaged = save_unfenced(checkpoints, |saves| async move {
                self.save_texts(scope, saves.iter().map(|save| (None, save)).collect()).await
            });
            match damaged.await? {
                None => Ok(()),
                Some((shard, _text)) => {
                    Err(corrupt_value(&Keys::of(scope), Key::Checkpoints, shard.as_str()))
                }
            }
        }
        .boxed()
    }

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Some(self)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RedisStore").field("address", &self.address).finish_non_exhaustive()
    }
}
