//! What `RedisStore` does when its connection no longer serves.

use std::time::Duration;

use kinestream::store::CheckpointStore;
use kinestream::{ErrorKind, RedisStore};
use redis::AsyncCommands;
use tokio::time::{Instant, sleep, timeout};

use crate::proxy::{Mode, Proxy};
use crate::redis_server::RedisServer;
use crate::redis_store::{after, raw, scope, shard, whole_text};

/// The default lease duration, within which a lost connection must be replaced.
const LEASE: Duration = Duration::from_secs(10);

struct Behind {
    server: RedisServer,
    proxy: Proxy,
    store: RedisStore,
}

impl Behind {
    /// A store on a server behind a proxy, with one checkpoint.
    async fn start() -> Self {
        let server = RedisServer::start(&[]);
        let proxy = Proxy::start(server.port()).await;
        let store = RedisStore::connect(&proxy.url()).await.unwrap();
        store.save(&scope(), &[(shard(0), after(1))]).await.unwrap();
        Self { server, proxy, store }
    }

    async fn save(&self, number: u32) -> kinestream::Result<()> {
        self.store.save(&scope(), &[(shard(0), after(number))]).await
    }

    /// Saves again and again until it works, and returns how long that took.
    async fn until_saved(&self, number: u32) -> Duration {
        let began = Instant::now();
        while let Err(error) = self.save(number).await {
            assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{}", whole_text(&error));
            assert!(began.elapsed() < 2 * LEASE, "{}", whole_text(&error));
            sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    }
}

/// A replica of the server, once it has all that the server has.
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
    let behind = Behind::start().await;
    let replica = replica_of(&behind.server).await;
    replicate(&replica, &["NO", "ONE"]).await;
    replicate(&behind.server, &["127.0.0.1", &replica.port().to_string()]).await;
    behind.proxy.redirect(replica.port());
    let took = behind.until_saved(2).await;
    assert!(took < LEASE, "the new master was found after {took:?}");
    let there = RedisStore::connect(&replica.url()).await.unwrap();
    assert_eq!(there.load(&scope()).await.unwrap()[&shard(0)], after(2));
}

#[tokio::test]
async fn half_open_connection_is_replaced() {
    let behind = Behind::start().await;
    behind.proxy.freeze();
    let took = behind.until_saved(2).await;
    assert!(took < LEASE, "the connection was replaced after {took:?}");
}

#[tokio::test]
async fn dropped_call_replaces_the_connection() {
    let behind = Behind::start().await;
    behind.proxy.freeze();
    timeout(Duration::from_millis(200), behind.save(2)).await.expect_err("there is no answer");
    let saved = timeout(Duration::from_secs(3), behind.save(2)).await;
    saved.expect("the next call uses a new connection").unwrap();
}

#[tokio::test]
async fn calls_on_a_replaced_connection_end_soon() {
    let behind = Behind::start().await;
    behind.proxy.freeze();
    let began = Instant::now();
    let waiting = behind.save(2);
    let dropped = timeout(Duration::from_millis(200), behind.save(2));
    let (waiting, dropped) = futures::future::join(waiting, dropped).await;
    dropped.expect_err("there is no answer");
    let error = waiting.expect_err("there is no answer");
    assert!(error.is_temporary(), "{}", whole_text(&error));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn peer_that_accepts_and_is_silent_fails_in_time() {
    let behind = Behind::start().await;
    behind.proxy.set_mode(Mode::Swallow);
    let began = Instant::now();
    let error = RedisStore::connect(&behind.proxy.url()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{}", whole_text(&error));
    assert!(began.elapsed() < Duration::from_secs(8), "a connection fails after 5 s");
    for _ in 0..2 {
        let began = Instant::now();
        let error = behind.save(2).await.unwrap_err();
        assert!(error.is_temporary(), "{}", whole_text(&error));
        assert!(began.elapsed() < Duration::from_secs(8), "an answer fails after 5 s");
    }
    behind.proxy.set_mode(Mode::Pass);
    let took = behind.until_saved(2).await;
    assert!(took < Duration::from_secs(5), "the store was back after {took:?}");
}

#[tokio::test]
async fn killed_client_connects_again() {
    let behind = Behind::start().await;
    let mut raw = raw(&behind.server).await;
    for round in 2..6 {
        let kill = ["KILL", "TYPE", "normal", "SKIPME", "yes"];
        redis::cmd("CLIENT").arg(&kill).query_async::<u32>(&mut raw).await.unwrap();
        let took = behind.until_saved(round).await;
        assert!(took < Duration::from_secs(5), "the store was back after {took:?}");
    }
}

#[tokio::test]
async fn concurrent_calls_share_one_new_connection() {
    let behind = Behind::start().await;
    let accepted = behind.proxy.accepted();
    behind.proxy.cut();
    let calls = (0..50).map(|_| behind.until_saved(2));
    futures::future::join_all(calls).await;
    let connected = behind.proxy.accepted() - accepted;
    assert!(connected <= 2, "50 calls made {connected} connections");
}

#[tokio::test]
async fn unreachable_server_is_not_stormed() {
    let behind = Behind::start().await;
    let accepted = behind.proxy.accepted();
    behind.proxy.set_mode(Mode::Refuse);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        // Callers back off: without that, the store still does.
        let calls = (0..10).map(|_| behind.save(2));
        for saved in futures::future::join_all(calls).await {
            assert!(saved.unwrap_err().is_temporary());
        }
    }
    let connected = behind.proxy.accepted() - accepted;
    assert!(connected <= 30, "{connected} connections were tried in a second");
    let _: String = raw(&behind.server).await.ping().await.unwrap();
}
