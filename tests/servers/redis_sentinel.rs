//! Tests of `RedisStore` against a real sentinel with a master and a replica.

use std::time::Duration;

use kinestream::store::{CheckpointStore, conformance};
use kinestream::{Checkpoint, ErrorKind, RedisStore, ShardId};
use tokio::time::{Instant, sleep};

use crate::free_port::free_port;
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{RedisServer, connect};
use crate::redis_store::{after, scope, shard};

const PASSWORD: &str = "secret-of-the-master";

pub(crate) struct SentinelSetup {
    sentinel: RedisServer,
    master: RedisServer,
    replica: RedisServer,
}

impl SentinelSetup {
    pub(crate) async fn start() -> Self {
        let guarded = ["--requirepass", PASSWORD, "--masterauth", PASSWORD];
        let master = RedisServer::start(&guarded);
        let port = master.port().to_string();
        let follows = ["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"];
        let replica = RedisServer::start(&[&guarded[..], &follows[..]].concat());
        let sentinel = RedisServer::sentinel(&format!(
            "sentinel monitor orders 127.0.0.1 {port} 1\n\
             sentinel auth-pass orders {PASSWORD}\n\
             sentinel down-after-milliseconds orders 300\n\
             sentinel failover-timeout orders 2000\n"
        ));
        let watched = Self { sentinel, master, replica };
        watched.wait_for_the_replica().await;
        watched
    }

    /// Waits until the sentinel knows the replica, and the replica is synchronized with the master.
    async fn wait_for_the_replica(&self) {
        let began = Instant::now();
        loop {
            let known = information(self.sentinel.url(), "sentinel").await;
            let url = format!("redis://:{PASSWORD}@127.0.0.1:{}/", self.replica.port());
            let link = information(url, "replication").await;
            if known.contains("slaves=1") && link.contains("master_link_status:up") {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{known} {link}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills the master, and waits until the replica has become the master.
    #[cfg(feature = "testing")]
    pub(crate) async fn fail_over(&mut self) {
        self.master.kill();
        let began = Instant::now();
        let url = format!("redis://:{PASSWORD}@127.0.0.1:{}/", self.replica.port());
        while !information(url.clone(), "replication").await.contains("role:master") {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "expected the sentinel to promote the replica"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn store(&self) -> RedisStore {
        let master = format!("redis://:{PASSWORD}@orders/");
        RedisStore::connect_sentinel([&*self.sentinel.url()], &master).await.unwrap()
    }
}

fn saved(number: u32) -> Vec<(ShardId, Checkpoint)> {
    vec![(shard(0), after(number))]
}

/// Returns a section of the server's information, or an error as text: a sentinel that promotes a
/// server closes all its connections.
async fn information(url: String, section: &str) -> String {
    let asked = async {
        let mut raw = connect(url).await?;
        redis::cmd("INFO").arg(section).query_async(&mut raw).await
    };
    asked.await.unwrap_or_else(|error: redis::RedisError| error.to_string())
}

#[tokio::test]
async fn sentinel_store_conforms() {
    let watched = SentinelSetup::start().await;
    conformance::check(&watched.store().await).await;
}

#[tokio::test]
async fn new_master_is_followed_after_failover() {
    let mut watched = SentinelSetup::start().await;
    let store = watched.store().await;
    store.save(&scope(), &saved(1)).await.unwrap();
    watched.master.kill();
    let began = Instant::now();
    while let Err(error) = store.save(&scope(), &saved(2)).await {
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(60), "{error:?}");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(store.load(&scope()).await.unwrap().into_iter().collect::<Vec<_>>(), saved(2));
    let url = format!("redis://:{PASSWORD}@127.0.0.1:{}/", watched.replica.port());
    let there = RedisStore::connect(&url).await.unwrap();
    assert_eq!(there.load(&scope()).await.unwrap().into_iter().collect::<Vec<_>>(), saved(2));
}

#[tokio::test]
async fn wrong_sentinel_settings_are_reported() {
    let watched = SentinelSetup::start().await;
    let sentinel = watched.sentinel.url();
    let unreachable = format!("redis://127.0.0.1:{}/", free_port());
    let connect = async |sentinels: &[&str], master: &str| {
        RedisStore::connect_sentinel(sentinels.iter().copied(), master).await.unwrap_err()
    };
    let master = format!("redis://:{PASSWORD}@orders/");
    let error = connect(&[&unreachable], &master).await;
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
    let error = connect(&[&sentinel], &format!("redis://:{PASSWORD}@parcels/")).await;
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error:?}");
    assert!(error.to_string().contains("parcels"), "{error}");
    let error = connect(&[&sentinel], "redis://:wrong@orders/").await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    for error in [connect(&[], &master).await, connect(&[&sentinel], "unix:///socket").await] {
        assert_eq!(error.kind(), ErrorKind::Configuration, "{error:?}");
    }
    // One sentinel that responds is enough.
    let urls = [&*unreachable, &*sentinel];
    RedisStore::connect_sentinel(urls, &master).await.unwrap();
}

#[tokio::test]
async fn silent_sentinels_delay_no_connection() {
    let watched = SentinelSetup::start().await;
    let sentinel = watched.sentinel.url();
    let silent = [Proxy::start(1).await, Proxy::start(1).await];
    for proxy in &silent {
        proxy.set_mode(Mode::Swallow);
    }
    let urls = [silent[0].url(), silent[1].url(), sentinel];
    let urls = urls.iter().map(String::as_str);
    let began = Instant::now();
    let store = RedisStore::connect_sentinel(urls, &format!("redis://:{PASSWORD}@orders/")).await;
    // Shorter than any time limit for a silent sentinel.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    store.unwrap().save(&scope(), &saved(1)).await.unwrap();
}
