//! Stores other than a single Redis: a cluster, and a master that sentinels report.

use std::path::Path;
use std::time::{Duration, Instant};

use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;

use crate::certificates;
use crate::ferrokinesis_server::put_numbers;
use crate::free_port::free_port;
use crate::redis_server::{RedisServer, connect};
use crate::run::{Server, command, run};
use crate::server_process::new_folder;

const SLOTS: u16 = 16_384;
/// Applications whose keys are on both nodes of a cluster of two.
const APPLICATIONS: [&str; 4] = ["billing", "search", "mail", "audit"];

async fn connection(server: &RedisServer) -> MultiplexedConnection {
    connect(server.url()).await.unwrap()
}

async fn cluster<T: FromRedisValue>(raw: &mut MultiplexedConnection, words: &[&str]) -> T {
    redis::cmd("CLUSTER").arg(words).query_async(raw).await.unwrap()
}

/// Starts two nodes of a cluster with half of the slots each. `start` returns a node and its port for
/// other nodes.
async fn two_nodes(mut start: impl FnMut() -> (RedisServer, String)) -> [RedisServer; 2] {
    let mut cluster_ports = Vec::new();
    let mut nodes = Vec::new();
    for (first, last) in [(0, SLOTS / 2 - 1), (SLOTS / 2, SLOTS - 1)] {
        let (node, cluster_port) = start();
        let mut raw = connection(&node).await;
        let range = [first, last].map(|slot| slot.to_string());
        cluster::<()>(&mut raw, &["ADDSLOTSRANGE", &range[0], &range[1]]).await;
        cluster_ports.push(cluster_port);
        nodes.push(node);
    }
    let mut raw = connection(&nodes[0]).await;
    let port = nodes[1].port().to_string();
    cluster::<()>(&mut raw, &["MEET", "127.0.0.1", &port, &cluster_ports[1]]).await;
    for node in &nodes {
        let mut raw = connection(node).await;
        let began = Instant::now();
        while !cluster::<String>(&mut raw, &["INFO"]).await.contains("cluster_state:ok") {
            assert!(began.elapsed() < Duration::from_secs(60), "expected a complete cluster");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    nodes.try_into().unwrap_or_else(|_| panic!("expected two nodes"))
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_is_found_by_one_node_or_several() {
    let (server, nodes) =
        (Server::with_orders(1).await, two_nodes(RedisServer::cluster_node).await);
    put_numbers(&server.client, "orders", 0..10).await.unwrap();
    let one = format!("--redis {}", nodes[0].url());
    // Nothing listens on the first port.
    let several = format!("--redis redis://127.0.0.1:1/ --redis {}", nodes[1].url());
    for (application, store) in APPLICATIONS.iter().zip([&one, &several, &one, &several]) {
        let of = format!("--application {application} {store}");
        let read = server.run(&format!("tail orders --since trim-horizon -n 10 {of}")).await;
        assert_eq!(read.lines().len(), 10);
        let status = server.run(&format!("status orders {of}")).await;
        assert_eq!(status.lines()[2], "workers     none: the application does not run");
        server.run(&format!("seek orders --to trim-horizon --yes {of}")).await.lines();
    }
    for node in &nodes {
        let mut raw = connection(node).await;
        let keys: u64 = redis::cmd("DBSIZE").query_async(&mut raw).await.unwrap();
        assert!(keys > 0, "expected applications on both nodes");
    }
    for store in [&one, &several] {
        let listed = server.run(&format!("status {store}")).await;
        let names: Vec<_> =
            listed.lines()[1..].iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names, ["audit", "billing", "mail", "search"]);
        server.run(&format!("reset orders --yes --application mail {store}")).await.lines();
        server
            .run(&format!("tail orders -n 1 --since trim-horizon --application mail {store}"))
            .await
            .lines();
    }
}

/// Starts a node of a cluster whose clients and nodes use TLS, by the certificates in `folder`. Its
/// other port, without TLS, is for this test.
fn tls_node(folder: &Path, tls_port: u16) -> (RedisServer, String) {
    let cluster_port = free_port();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let node = RedisServer::launched(
        |port, _folder| {
            let mut options: Vec<String> = format!(
                "--port {port} --tls-port {tls_port} --cluster-port {cluster_port} \
                 --cluster-enabled yes --tls-cluster yes --tls-auth-clients no \
                 --cluster-announce-hostname localhost --cluster-preferred-endpoint-type hostname \
                 --user billing on >hunter2 ~* +@all"
            )
            .split(' ')
            .map(str::to_owned)
            .collect();
            for (option, name) in
                [("cert", "server.crt"), ("key", "server.key"), ("ca-cert", "authority.crt")]
            {
                options.extend([format!("--tls-{option}-file"), file(name)]);
            }
            options
        },
        &[],
    );
    (node, cluster_port.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_is_used_over_tls() {
    let server = Server::with_orders(1).await;
    put_numbers(&server.client, "orders", 0..10).await.unwrap();
    let folder = new_folder("certificates");
    certificates::make(&folder);
    let tls_ports = [free_port(), free_port()];
    let mut ports = tls_ports.into_iter();
    let nodes = two_nodes(|| tls_node(&folder, ports.next().unwrap())).await;
    let trusting = async |words: &str| {
        let mut command = server.command(words);
        run(command.env("SSL_CERT_FILE", folder.join("authority.crt")), "").await
    };
    let [one, other] =
        tls_ports.map(|port| format!("--redis rediss://billing:hunter2@localhost:{port}/"));
    let both = format!("{one} {other}");
    for (application, store) in APPLICATIONS.iter().zip([&one, &other, &both, &one]) {
        let of = format!("--application {application} {store}");
        let read = trusting(&format!("tail orders --since trim-horizon -n 10 {of}")).await;
        assert_eq!(read.lines().len(), 10);
        let status = trusting(&format!("status orders {of}")).await;
        assert_eq!(status.lines()[2], "workers     none: the application does not run");
        trusting(&format!("seek orders --to trim-horizon --yes {of}")).await.lines();
    }
    for node in &nodes {
        let mut raw = connection(node).await;
        let keys: u64 = redis::cmd("DBSIZE").query_async(&mut raw).await.unwrap();
        assert!(keys > 0, "expected applications on both nodes");
    }
    for store in [&one, &both] {
        let listed = trusting(&format!("status {store}")).await;
        assert_eq!(listed.lines().len(), 1 + APPLICATIONS.len(), "{listed:?}");
        let untrusting = server.run(&format!("status {store}")).await;
        assert!(untrusting.failure().contains("SSL_CERT_FILE"), "{untrusting:?}");
        assert!(!untrusting.stderr.contains("hunter2"), "{untrusting:?}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn master_is_found_by_its_sentinel() {
    const PASSWORD: &str = "secret-of-the-master";
    let server = Server::with_orders(1).await;
    put_numbers(&server.client, "orders", 0..10).await.unwrap();
    let master = RedisServer::start(&["--requirepass", PASSWORD]);
    let sentinel = RedisServer::sentinel(&format!(
        "sentinel monitor orders-master 127.0.0.1 {} 1\nsentinel auth-pass orders-master {PASSWORD}\n",
        master.port()
    ));
    let store = |name: &str| format!("--redis {} --sentinel-master {name}", sentinel.url());
    let known = store(&format!("redis://:{PASSWORD}@orders-master/"));
    let of = format!("--application billing {known}");
    let read = server.run(&format!("tail orders --since trim-horizon -n 10 {of}")).await;
    assert_eq!(read.lines().len(), 10);
    let status = server.run(&format!("status orders {of} --output json")).await;
    let json: serde_json::Value = serde_json::from_str(status.lines()[0]).unwrap();
    assert_eq!(json["shards"].as_array().map(Vec::len), Some(1), "{json}");
    let listed = server.run(&format!("status {known}")).await;
    assert_eq!(listed.lines(), ["APPLICATION  STREAM", "billing      orders"]);
    server.run(&format!("reset orders --yes {of}")).await.lines();

    for (name, expected) in [
        ("unknown", "report no reachable master unknown"),
        ("orders-master", "error: Redis at orders-master (sentinels 127.0.0.1:"),
    ] {
        let refused = server.run(&format!("status {}", store(name))).await;
        let failure = refused.failure();
        assert!(failure.contains(expected), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_without_a_cluster_are_refused_together() {
    let (server, redis) = (Server::with_orders(1).await, RedisServer::start(&[]));
    let refused = server.run(&format!("status --redis {0} --redis {0}", redis.url())).await;
    assert!(refused.failure().contains("cluster"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn listing_by_a_user_without_its_commands_is_refused_with_advice() {
    let redis = RedisServer::start(&[]);
    let mut raw = connection(&redis).await;
    for denied in ["info", "scan"] {
        let rules = ["SETUSER", denied, "on", ">pw", "~*", "+@all", &format!("-{denied}")];
        redis::cmd("ACL").arg(&rules).query_async::<()>(&mut raw).await.unwrap();
        let words = format!("status --redis redis://{denied}:pw@127.0.0.1:{}/", redis.port());
        let refused = run(&mut command(&words), "").await;
        let failure = refused.failure();
        assert!(failure.starts_with("error: cannot list the keys of Redis: "), "{failure}");
        assert!(failure.contains("(NOPERM)\n  Grant the user INFO and SCAN"), "{failure}");
    }
}
