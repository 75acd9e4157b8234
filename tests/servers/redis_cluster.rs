//! Tests of `RedisStore` against a real Redis Cluster.

use std::ops::Range;
use std::time::Duration;

use kinestream::store::{CheckpointStore, conformance};
use kinestream::{Checkpoint, ErrorKind, RedisStore, ShardId};
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep};

use crate::free_port::free_port;
use crate::redis_server::{RedisServer, connect};
use crate::redis_store::{after, scope, shard};

const SLOTS: u16 = 16_384;
const CHECKPOINTS: &str = "kinestream:{billing:orders}:checkpoints";

/// A cluster node.
struct Node {
    server: RedisServer,
    cluster_port: String,
    raw: MultiplexedConnection,
}

impl Node {
    /// Starts a node that holds these slots and knows no other node.
    async fn start(slots: Range<u16>) -> Self {
        let mut node = Self::launch().await;
        let [first, last] = [slots.start, slots.end - 1].map(|slot| slot.to_string());
        node.cluster::<()>(&["ADDSLOTSRANGE", &first, &last]).await;
        node
    }

    /// Starts a node that holds no slot and knows no other node.
    async fn launch() -> Self {
        let (server, cluster_port) = RedisServer::cluster_node();
        let raw = connect(server.url()).await.unwrap();
        Self { server, cluster_port, raw }
    }

    async fn cluster<T: FromRedisValue>(&mut self, words: &[&str]) -> T {
        redis::cmd("CLUSTER").arg(words).query_async(&mut self.raw).await.unwrap()
    }

    async fn slot(&mut self, key: &str) -> u16 {
        self.cluster(&["KEYSLOT", key]).await
    }

    /// Waits until the node knows the holders of all slots.
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

/// A node that holds all slots, and its replica.
#[cfg(feature = "testing")]
pub(crate) struct Pair {
    master: Node,
    replica: Node,
}

#[cfg(feature = "testing")]
impl Pair {
    pub(crate) async fn start() -> Self {
        let mut master = Node::start(0..SLOTS).await;
        let mut replica = Node::launch().await;
        let port = master.server.port().to_string();
        replica.cluster::<()>(&["MEET", "127.0.0.1", &port, &master.cluster_port]).await;
        replica.wait_until_complete().await;
        let id: String = master.cluster(&["MYID"]).await;
        replica.cluster::<()>(&["REPLICATE", &id]).await;
        let mut pair = Self { master, replica };
        pair.wait_for_replica("master_link_status:up").await;
        pair
    }

    pub(crate) fn urls(&self) -> [String; 2] {
        [self.master.server.url(), self.replica.server.url()]
    }

    /// Kills the master, and makes the replica take over its slots.
    pub(crate) async fn fail_over(&mut self) {
        self.master.server.kill();
        self.replica.cluster::<()>(&["FAILOVER", "TAKEOVER"]).await;
        self.wait_for_replica("role:master").await;
        self.replica.wait_until_complete().await;
    }

    async fn wait_for_replica(&mut self, state: &str) {
        let began = Instant::now();
        loop {
            let information = redis::cmd("INFO").arg("replication").clone();
            let found: String = information.query_async(&mut self.replica.raw).await.unwrap();
            if found.contains(state) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{found}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// All keys of one application and stream are in one slot, because Redis refuses a script that
/// accesses two slots.
#[tokio::test]
async fn keys_of_application_and_stream_share_one_slot() {
    let mut node = Node::start(0..SLOTS).await;
    node.wait_until_complete().await;
    let store = RedisStore::connect(&node.server.url()).await.unwrap();
    conformance::check(&store).await;
    conformance::check_leases(&store).await;

    let checkpoints = node.slot(CHECKPOINTS).await;
    assert_eq!(node.slot("kinestream:{billing:orders}:format").await, checkpoints);
    assert_ne!(node.slot("kinestream:{billing:parcels}:checkpoints").await, checkpoints);
}

/// Starts a cluster of two nodes with half of the slots each. Returns the nodes, and the index of
/// the one that holds the checkpoints.
async fn two_nodes() -> ([Node; 2], usize) {
    let middle = SLOTS / 2;
    let mut low = Node::start(0..middle).await;
    let mut high = Node::start(middle..SLOTS).await;
    let port = high.server.port().to_string();
    low.cluster::<()>(&["MEET", "127.0.0.1", &port, &high.cluster_port]).await;
    low.wait_until_complete().await;
    high.wait_until_complete().await;
    let owner = usize::from(low.slot(CHECKPOINTS).await >= middle);
    ([low, high], owner)
}

#[tokio::test]
async fn store_connected_to_other_node_reaches_node_of_keys() {
    let (nodes, owner) = two_nodes().await;
    let store = RedisStore::connect(&nodes[1 - owner].server.url()).await.unwrap();
    conformance::check(&store).await;
    let urls = nodes.each_ref().map(|node| node.server.url());
    let store = RedisStore::connect_cluster(urls.iter().map(String::as_str)).await.unwrap();
    conformance::check(&store).await;
    conformance::check_leases(&store).await;
}

#[tokio::test]
async fn migrated_slot_is_followed_to_its_new_node() {
    let (mut nodes, owner) = two_nodes().await;
    let store = RedisStore::connect(&nodes[owner].server.url()).await.unwrap();
    store.save(&scope(), &saved(1)).await.unwrap();

    let slot = nodes[owner].slot(CHECKPOINTS).await.to_string();
    let port = nodes[1 - owner].server.port().to_string();
    let [from, to]: [String; 2] =
        [nodes[owner].cluster(&["MYID"]).await, nodes[1 - owner].cluster(&["MYID"]).await];
    nodes[1 - owner].cluster::<()>(&["SETSLOT", &slot, "IMPORTING", &from]).await;
    nodes[owner].cluster::<()>(&["SETSLOT", &slot, "MIGRATING", &to]).await;
    let keys: Vec<String> = nodes[owner].cluster(&["GETKEYSINSLOT", &slot, "100"]).await;
    let moved: String = redis::cmd("MIGRATE")
        .arg(&["127.0.0.1", &port, "", "0", "10000", "KEYS"])
        .arg(&keys)
        .query_async(&mut nodes[owner].raw)
        .await
        .unwrap();
    assert_eq!(moved, "OK");
    for node in [1 - owner, owner] {
        nodes[node].cluster::<()>(&["SETSLOT", &slot, "NODE", &to]).await;
    }

    assert_eq!(store.load(&scope()).await.unwrap().len(), 1);
    store.save(&scope(), &saved(2)).await.unwrap();
    let there = RedisStore::connect(&nodes[1 - owner].server.url()).await.unwrap();
    let stored = there.load(&scope()).await.unwrap();
    assert_eq!(stored.into_iter().collect::<Vec<_>>(), saved(2));
}

#[tokio::test]
async fn incomplete_cluster_is_reported_as_temporary() {
    let node = Node::start(0..SLOTS / 2).await;
    let address = format!("127.0.0.1:{}", node.server.port());
    let error = match RedisStore::connect(&node.server.url()).await {
        Ok(store) => store.save(&scope(), &saved(1)).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
    assert_eq!(
        error.to_string(),
        format!(
            "Redis at {address} is a node of a cluster that is down or incomplete: CLUSTERDOWN \
             The cluster is down; check it with CLUSTER INFO"
        ),
        "{error:?}"
    );
}

/// Without the permission for INFO, the store cannot detect a cluster and uses the given server
/// alone.
#[tokio::test]
async fn slot_outside_of_single_node_is_reported_with_remedy() {
    let saved = saved(1);
    let middle = SLOTS / 2;
    let mut low = Node::start(0..middle).await;
    let mut high = Node::start(middle..SLOTS).await;
    let holds_it = low.slot(CHECKPOINTS).await < middle;
    let (named, needed) = if holds_it { (&mut high, &low) } else { (&mut low, &high) };
    let port = named.server.port();
    let (address, other) =
        (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", needed.server.port()));
    let user = ["SETUSER", "reader", "on", ">secret", "~*", "+@all", "-info"];
    redis::cmd("ACL").arg(&user).query_async::<()>(&mut named.raw).await.unwrap();
    let url = format!("redis://reader:secret@127.0.0.1:{port}/");
    let store = RedisStore::connect(&url).await.unwrap();
    let refused = async || {
        [store.load(&scope()).await.unwrap_err(), store.save(&scope(), &saved).await.unwrap_err()]
    };
    for error in refused().await {
        assert_eq!(
            error.to_string(),
            format!(
                "Redis at {address} is a node of a cluster that is down or incomplete: \
                 CLUSTERDOWN Hash slot not served; check it with CLUSTER INFO"
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
        let text = error.to_string();
        let begins = format!(
            "Redis at {address} is a node of a cluster that does not hold these keys: MOVED "
        );
        assert!(text.starts_with(&begins) && text.contains(&other), "{error:?}");
        assert!(text.ends_with("with the cargo feature redis-cluster"), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    }
}

#[tokio::test]
async fn cluster_connect_needs_one_node_that_answers() {
    let (nodes, _owner) = two_nodes().await;
    let unreachable = format!("redis://127.0.0.1:{}/", free_port());
    let error = RedisStore::connect_cluster([&*unreachable]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
    let urls = [unreachable, nodes[0].server.url()];
    RedisStore::connect_cluster(urls.iter().map(String::as_str)).await.unwrap();
    let error = RedisStore::connect_cluster([]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error:?}");
}

fn saved(number: u32) -> Vec<(ShardId, Checkpoint)> {
    vec![(shard(0), after(number))]
}
