//! Reconnection of `RedisStore` after its connection has failed.

use std::time::Duration;

use kinestream::store::CheckpointStore;
use kinestream::{ErrorKind, RedisStore};
use redis::AsyncCommands;
use tokio::time::{Instant, sleep, timeout};

use crate::black_hole::BlackHole;
use crate::proxy::{Mode, Proxy};
use crate::redis_server::RedisServer;
use crate::redis_store::{after, raw, scope, shard, whole_text};

/// The default lease duration, within which a lost connection must be replaced.
const LEASE: Duration = Duration::from_secs(10);

/// The way in which a store connects to its server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ConnectBy {
    Url,
    #[cfg(feature = "redis-cluster")]
    Cluster,
    #[cfg(feature = "redis-sentinel")]
    Sentinel,
}

pub(crate) const ALL: &[ConnectBy] = &[
    ConnectBy::Url,
    #[cfg(feature = "redis-cluster")]
    ConnectBy::Cluster,
    #[cfg(feature = "redis-sentinel")]
    ConnectBy::Sentinel,
];

/// A store and its server, with a proxy between them.
pub(crate) struct ProxiedStore {
    by: ConnectBy,
    pub(crate) server: RedisServer,
    pub(crate) proxy: Proxy,
    store: RedisStore,
    sentinel: Option<RedisServer>,
}

impl ProxiedStore {
    /// Starts a store that connects by URL.
    async fn start() -> Self {
        Self::started(ConnectBy::Url).await
    }

    /// Starts a store that holds one checkpoint.
    pub(crate) async fn started(by: ConnectBy) -> Self {
        let options: &[&str] = match by {
            #[cfg(feature = "redis-cluster")]
            ConnectBy::Cluster => &["--cluster-enabled", "yes"],
            _ => &[],
        };
        let server = RedisServer::start(options);
        let proxy = Proxy::start(server.port()).await;
        #[cfg(feature = "redis-cluster")]
        if matches!(by, ConnectBy::Cluster) {
            make_cluster(&server, proxy.port()).await;
        }
        let sentinel = match by {
            #[cfg(feature = "redis-sentinel")]
            ConnectBy::Sentinel => Some(RedisServer::sentinel(&format!(
                "sentinel monitor orders 127.0.0.1 {} 1\n\
                 sentinel down-after-milliseconds orders 60000\n",
                proxy.port()
            ))),
            _ => None,
        };
        let store = connect(&proxy, sentinel.as_ref(), "").await.unwrap();
        let behind = Self { by, server, proxy, store, sentinel };
        behind.save(1).await.unwrap();
        behind
    }

    /// Connects another store with this password.
    pub(crate) async fn connect(&self, password: &str) -> kinestream::Result<RedisStore> {
        connect(&self.proxy, self.sentinel.as_ref(), password).await
    }

    async fn save(&self, number: u32) -> kinestream::Result<()> {
        self.store.save(&scope(), &[(shard(0), after(number))]).await
    }

    async fn until_saved(&self, number: u32) -> Duration {
        until_saved(&self.store, number).await
    }
}

async fn connect(
    proxy: &Proxy,
    sentinel: Option<&RedisServer>,
    password: &str,
) -> kinestream::Result<RedisStore> {
    let login = if password.is_empty() { String::new() } else { format!(":{password}@") };
    match sentinel {
        #[cfg(feature = "redis-sentinel")]
        Some(sentinel) => {
            let master = format!("redis://{login}orders/");
            RedisStore::connect_sentinel([&*sentinel.url()], &master).await
        }
        _ => RedisStore::connect(&proxy.url().replace("//", &format!("//{login}"))).await,
    }
}

/// Repeats a save until it succeeds, and returns the time that this took.
pub(crate) async fn until_saved(store: &RedisStore, number: u32) -> Duration {
    let began = Instant::now();
    while let Err(error) = store.save(&scope(), &[(shard(0), after(number))]).await {
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{}", whole_text(&error));
        assert!(began.elapsed() < 2 * LEASE, "{}", whole_text(&error));
        sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// Makes the server a cluster of one node, which announces this port to clients.
#[cfg(feature = "redis-cluster")]
async fn make_cluster(server: &RedisServer, port: u16) {
    let mut raw = raw(server).await;
    let announced = ["SET", "cluster-announce-port", &port.to_string()];
    redis::cmd("CONFIG").arg(&announced).exec_async(&mut raw).await.unwrap();
    redis::cmd("CLUSTER").arg(&["ADDSLOTSRANGE", "0", "16383"]).exec_async(&mut raw).await.unwrap();
    loop {
        let state: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut raw).await.unwrap();
        if state.contains("cluster_state:ok") {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Starts a replica of the server, and waits until it is synchronized.
async fn replica_of(master: &RedisServer) -> RedisServer {
    let port = master.port().to_string();
    let options = ["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"];
    let replica = RedisServer::start(&options);
    let mut raw = raw(&replica).await;
    loop {
        let link: String =
            redis::cmd("INFO").arg("replication").query_async(&mut raw).await.unwrap();
        if link.contains("master_link_status:up") {
            return replica;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn replicate(server: &RedisServer, of: &[&str]) {
    let mut raw = raw(server).await;
    redis::cmd("REPLICAOF").arg(of).query_async::<()>(&mut raw).await.unwrap();
}

#[tokio::test]
async fn failover_behind_a_stable_address_is_followed() {
    let behind = ProxiedStore::start().await;
    let replica = replica_of(&behind.server).await;
    replicate(&replica, &["NO", "ONE"]).await;
    replicate(&behind.server, &["127.0.0.1", &replica.port().to_string()]).await;
    behind.proxy.redirect(replica.port());
    let took = behind.until_saved(2).await;
    assert!(took < LEASE, "expected the new master within {LEASE:?}, took {took:?}");
    let there = RedisStore::connect(&replica.url()).await.unwrap();
    assert_eq!(there.load(&scope()).await.unwrap()[&shard(0)], after(2));
}

#[tokio::test]
async fn half_open_connection_is_replaced() {
    let replaced = ALL.iter().map(async |by| {
        let behind = ProxiedStore::started(*by).await;
        behind.proxy.freeze();
        let took = behind.until_saved(2).await;
        assert!(took < LEASE, "{by:?}: expected a new connection within {LEASE:?}, took {took:?}");
    });
    futures::future::join_all(replaced).await;
}

#[tokio::test]
async fn dropped_call_replaces_the_connection() {
    for by in ALL {
        let behind = ProxiedStore::started(*by).await;
        behind.proxy.freeze();
        timeout(Duration::from_millis(200), behind.save(2))
            .await
            .expect_err("expected no response");
        let saved = timeout(Duration::from_secs(3), behind.save(2)).await;
        saved
            .unwrap_or_else(|_| panic!("{by:?}: expected a new connection for the next call"))
            .unwrap();
    }
}

#[tokio::test]
async fn calls_on_a_replaced_connection_end_soon() {
    let behind = ProxiedStore::start().await;
    behind.proxy.freeze();
    let began = Instant::now();
    let waiting = behind.save(2);
    let dropped = timeout(Duration::from_millis(200), behind.save(2));
    let (waiting, dropped) = futures::future::join(waiting, dropped).await;
    dropped.expect_err("expected no response");
    let error = waiting.expect_err("expected no response");
    assert!(error.is_temporary(), "{}", whole_text(&error));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn silent_peer_times_out() {
    let failed = ALL
        .iter()
        .map(async |by| silent_peer_case_times_out(ProxiedStore::started(*by).await).await);
    futures::future::join_all(failed).await;
}

async fn silent_peer_case_times_out(behind: ProxiedStore) {
    let by = behind.by;
    behind.proxy.set_mode(Mode::Swallow);
    let began = Instant::now();
    let error = RedisStore::connect(&behind.proxy.url()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{}", whole_text(&error));
    assert!(began.elapsed() < Duration::from_secs(8), "expected connecting to time out after 5 s");
    for _ in 0..2 {
        let began = Instant::now();
        let error = behind.save(2).await.unwrap_err();
        assert!(error.is_temporary(), "{}", whole_text(&error));
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "expected the call to time out after 5 s"
        );
    }
    behind.proxy.set_mode(Mode::Pass);
    let took = behind.until_saved(2).await;
    assert!(took < Duration::from_secs(5), "{by:?}: expected recovery within 5 s, took {took:?}");
}

#[tokio::test]
async fn unanswered_connection_attempt_times_out() {
    let ProxiedStore { server, proxy, store, .. } = ProxiedStore::start().await;
    let (port, url) = (proxy.port(), proxy.url());
    proxy.stop().await;
    let hole = BlackHole::open(port).await;
    let began = Instant::now();
    let error = RedisStore::connect(&url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{}", whole_text(&error));
    assert!(began.elapsed() < Duration::from_secs(8), "expected connecting to time out after 5 s");
    let began = Instant::now();
    let error = store.save(&scope(), &[(shard(0), after(2))]).await.unwrap_err();
    assert!(error.is_temporary(), "{}", whole_text(&error));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "expected reconnecting to time out after 1.5 s"
    );
    drop(hole);
    let _proxy = Proxy::start_at(port, server.port()).await;
    let took = until_saved(&store, 2).await;
    assert!(took < Duration::from_secs(5), "expected recovery within 5 s, took {took:?}");
}

#[tokio::test]
async fn killed_client_reconnects() {
    let behind = ProxiedStore::start().await;
    let mut raw = raw(&behind.server).await;
    for round in 2..6 {
        let kill = ["KILL", "TYPE", "normal", "SKIPME", "yes"];
        redis::cmd("CLIENT").arg(&kill).query_async::<u32>(&mut raw).await.unwrap();
        let took = behind.until_saved(round).await;
        assert!(took < Duration::from_secs(5), "expected recovery within 5 s, took {took:?}");
    }
}

#[tokio::test]
async fn concurrent_calls_share_one_new_connection() {
    let behind = ProxiedStore::start().await;
    let accepted = behind.proxy.accepted();
    behind.proxy.cut();
    let calls = (0..50).map(|_| behind.until_saved(2));
    futures::future::join_all(calls).await;
    let connected = behind.proxy.accepted() - accepted;
    assert!(connected <= 2, "expected at most 2 new connections for 50 calls, got {connected}");
}

#[tokio::test]
async fn attempts_to_unreachable_server_are_limited() {
    let behind = ProxiedStore::start().await;
    let accepted = behind.proxy.accepted();
    behind.proxy.set_mode(Mode::Refuse);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        // These calls do not back off, but the store does.
        let calls = (0..10).map(|_| behind.save(2));
        for saved in futures::future::join_all(calls).await {
            assert!(saved.unwrap_err().is_temporary());
        }
    }
    let connected = behind.proxy.accepted() - accepted;
    assert!(connected <= 30, "expected at most 30 attempts in 1 s, got {connected}");
    let _: String = raw(&behind.server).await.ping().await.unwrap();
}
