//! `RedisStore` against real nodes of a cluster.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use kinestream::store::{CheckpointStore, Scope, conformance};
use kinestream::{Checkpoint, ErrorKind, RedisStore};
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep};

use crate::free_port::free_port;
use crate::redis_server::RedisServer;

const SLOTS: u16 = 16_384;
const CHECKPOINTS: &str = "kinestream:{billing:orders}:checkpoints";

/// A node of a cluster.
struct Node {
    server: RedisServer,
    cluster_port: String,
    raw: MultiplexedConnection,
}

impl Node {
    /// Holds these slots, and knows no other node.
    async fn start(slots: Range<u16>) -> Self {
        let mut cluster_port = 0;
        let listens = |port: u16, _folder: &Path| {
            cluster_port = free_port();
            ["--port", &port.to_string(), "--cluster-port", &cluster_port.to_string()]
                .map(str::to_owned)
                .to_vec()
        };
        let server = RedisServer::launched(listens, &["--cluster-enabled", "yes"]);
        let client = redis::Client::open(server.url()).unwrap();
        let raw = client.get_multiplexed_async_connection().await.unwrap();
        let mut node = Self { server, cluster_port: cluster_port.to_string(), raw };
        let [first, last] = [slots.start, slots.end - 1].map(|slot| slot.to_string());
        node.cluster::<()>(&["ADDSLOTSRANGE", &first, &last]).await;
        node
    }

    async fn cluster<T: FromRedisValue>(&mut self, words: &[&str]) -> T {
        redis::cmd("CLUSTER").arg(words).query_async(&mut self.raw).await.unwrap()
    }

    async fn slot(&mut self, key: &str) -> u16 {
        self.cluster(&["KEYSLOT", key]).await
    }

    /// Waits until the nodes that hold all slots know each other.
    async fn wait_until_complete(&mut self) {
        let began = Instant::now();
        loop {
            let state: String = self.cluster(&["INFO"]).await;
            if state.contains("cluster_state:ok") {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{state}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// All keys of one application and stream are in one slot: a script that touches two is refused.
#[tokio::test]
async fn keeps_what_belongs_together_in_one_slot() {
    let mut node = Node::start(0..SLOTS).await;
    node.wait_until_complete().await;
    let store = RedisStore::connect(&node.server.url()).await.unwrap();
    conformance::check(&store).await;

    let checkpoints = node.slot(CHECKPOINTS).await;
    assert_eq!(node.slot("kinestream:{billing:orders}:format").await, checkpoints);
    assert_ne!(node.slot("kinestream:{billing:parcels}:checkpoints").await, checkpoints);
}

#[tokio::test]
async fn says_what_is_wrong_with_a_cluster() {
    let scope = Scope::new("billing", "orders");
    let saved = [("shardId-000000000000".parse().unwrap(), Checkpoint::TrimHorizon)];
    let middle = SLOTS / 2;
    let mut low = Node::start(0..middle).await;
    let mut high = Node::start(middle..SLOTS).await;
    let holds_it = low.slot(CHECKPOINTS).await < middle;
    let (named, needed) = if holds_it { (&high, &low) } else { (&low, &high) };
    let [address, other] = [named, needed].map(|node| format!("127.0.0.1:{}", node.server.port()));
    let store = RedisStore::connect(&named.server.url()).await.unwrap();
    let refused = async || {
        [store.load(&scope).await.unwrap_err(), store.save(&scope, &saved).await.unwrap_err()]
    };
    for error in refused().await {
        assert_eq!(
            error.to_string(),
            format!(
                "Redis at {address} is a node of a cluster that is down or not complete; check \
                 it with CLUSTER INFO"
            ),
            "{error:?}"
        );
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    }

    let port = high.server.port().to_string();
    low.cluster::<()>(&["MEET", "127.0.0.1", &port, &high.cluster_port]).await;
    low.wait_until_complete().await;
    high.wait_until_complete().await;
    for error in refused().await {
        assert_eq!(
            error.to_string(),
            format!(
                "Redis at {address} is a node of a cluster that does not hold these keys; name \
                 the one that does, {other}"
            ),
            "{error:?}"
        );
        assert_eq!(error.kind(), ErrorKind::Configuration);
    }
}
