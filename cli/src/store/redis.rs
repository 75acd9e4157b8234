//! A Redis: its store, and its keys by their pattern, on every master of a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kinestream::RedisStore;
use redis::aio::ConnectionLike;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, Slot, SlotAddr};
use redis::sentinel::{Sentinel, SentinelNodeConnectionInfo};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisError,
    RedisResult, TlsMode, Value, cmd, from_redis_value,
};

use crate::arguments::Redis;
use crate::failure::{Failure, Outcome};

/// The limit of a connection attempt and of an answer.
const TIME: Duration = Duration::from_secs(5);
/// The keys that one call looks at.
const PAGE: usize = 1000;

/// Connects to one server or the cluster that it belongs to, to the cluster of several nodes, or to
/// the master that sentinels report.
pub(crate) async fn connect(store: &Redis) -> Outcome<RedisStore> {
    let urls = store.urls.iter().map(String::as_str);
    let connected = match (store.master(), &store.urls[..]) {
        (Some(master), _) => RedisStore::connect_sentinel(urls, &master).await,
        (None, [url]) => RedisStore::connect(url).await,
        (None, _) => RedisStore::connect_cluster(urls).await,
    };
    Ok(connected?)
}

/// Returns the keys that match the pattern.
///
/// # Errors
///
/// The user may not call `INFO`, which tells a cluster, or `SCAN`: a part of the keys would look like
/// all of them.
pub(crate) async fn matching(store: &Redis, pattern: &str) -> Outcome<BTreeSet<String>> {
    // The crate finds out what is wrong with a store, and its errors give advice.
    connect(store).await?;
    found(store, pattern).await.map_err(|error| failure(&error))
}

/// Describes an error by its kind: its text may hold parts of the URL.
fn failure(error: &RedisError) -> Failure {
    let kind = error.category();
    let kind = error.code().map_or_else(|| kind.to_owned(), |code| format!("{kind} ({code})"));
    let failure = Failure::new(format!("cannot list the keys of Redis: {kind}"));
    if error.code() == Some("NOPERM") {
        failure.advise("Grant the user INFO and SCAN, and in a cluster CLUSTER SLOTS.")
    } else {
        failure
    }
}

async fn found(store: &Redis, pattern: &str) -> RedisResult<BTreeSet<String>> {
    let client = match (store.master(), &store.urls[..]) {
        (Some(master), _) => master_client(&store.urls, &master).await?,
        (None, [url]) => Client::open(url.as_str())?,
        (None, urls) => return in_cluster(urls, pattern).await,
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(TIME))
        .set_response_timeout(Some(TIME));
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let information: String = cmd("INFO").arg("server").query_async(&mut connection).await?;
    if is_of_cluster(&information) {
        return in_cluster(&store.urls, pattern).await;
    }
    let mut keys = BTreeSet::new();
    let mut cursor = 0;
    loop {
        let page = connection.req_packed_command(&scan(cursor, pattern)).await?;
        cursor = add(page, &mut keys)?;
        if cursor == 0 {
            return Ok(keys);
        }
    }
}

/// Returns true for the `INFO` of a node of a cluster. Valkey 8 and later name the mode after the server.
fn is_of_cluster(information: &str) -> bool {
    let mut lines = information.lines().map(str::trim);
    lines.any(|line| matches!(line, "redis_mode:cluster" | "server_mode:cluster"))
}

/// Returns a client of the master that the sentinels report.
async fn master_client(sentinels: &[String], master: &str) -> RedisResult<Client> {
    let master = master.into_connection_info()?;
    let node = SentinelNodeConnectionInfo::default()
        .set_redis_connection_info(master.redis_settings().clone());
    let (name, node) = match master.addr() {
        ConnectionAddr::TcpTls { host, .. } => (host, node.set_tls_mode(TlsMode::Secure)),
        ConnectionAddr::Tcp(host, _) => (host, node),
        _ => return Err((ErrorKind::InvalidClientConfig, "a master has a name").into()),
    };
    let sentinels = sentinels.iter().map(String::as_str).collect();
    Sentinel::build(sentinels)?.async_master_for(name, Some(&node)).await
}

/// Returns the keys of all masters. Keys that move to another master during the call may be missing.
async fn in_cluster(urls: &[String], pattern: &str) -> RedisResult<BTreeSet<String>> {
    let urls = urls.iter().map(String::as_str);
    let client =
        ClusterClient::builder(urls).connection_timeout(TIME).response_timeout(TIME).build()?;
    let mut connection = client.get_async_connection().await?;
    let slots = cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
    let mut keys = BTreeSet::new();
    for slot in slots_of_masters(slots)? {
        let route = Route::with_slot(slot, SlotAddr::Master);
        scan_node(&mut connection, &route, pattern, &mut keys).await?;
    }
    Ok(keys)
}

/// Returns one slot of each master in the answer to `CLUSTER SLOTS`: ranges of a first slot, a last
/// slot, the master, and its replicas.
fn slots_of_masters(ranges: Vec<Vec<Value>>) -> RedisResult<Vec<Slot>> {
    let mut slots = BTreeMap::new();
    for range in ranges {
        let [first, _last, master, ..] = &range[..] else { continue };
        if let Some(slot) = Slot::new(from_redis_value(first.clone())?) {
            slots.insert(format!("{master:?}"), slot);
        }
    }
    Ok(slots.into_values().collect())
}

async fn scan_node(
    connection: &mut ClusterConnection,
    route: &Route,
    pattern: &str,
    keys: &mut BTreeSet<String>,
) -> RedisResult<()> {
    let mut cursor = 0;
    loop {
        let routing = RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(*route));
        let page = connection.route_command(scan(cursor, pattern), routing).await?;
        cursor = add(page, keys)?;
        if cursor == 0 {
            return Ok(());
        }
    }
}

fn scan(cursor: u64, pattern: &str) -> Cmd {
    let mut scan = cmd("SCAN");
    scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(PAGE);
    scan
}

/// Adds the keys of a page, and returns the cursor of the next one; zero after the last.
fn add(page: Value, keys: &mut BTreeSet<String>) -> RedisResult<u64> {
    let (cursor, page): (u64, Vec<String>) = from_redis_value(page.extract_error()?)?;
    keys.extend(page);
    Ok(cursor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_is_recognized_by_the_mode_of_redis_and_of_valkey() {
        for text in
            ["# Server\r\nredis_mode:cluster\r\n", "server_name:valkey\r\nserver_mode:cluster\r\n"]
        {
            assert!(is_of_cluster(text), "{text:?}");
        }
        for text in ["", "redis_mode:standalone\r\n", "server_mode:sentinel\r\n"] {
            assert!(!is_of_cluster(text), "{text:?}");
        }
    }

    #[test]
    fn each_master_has_one_slot() {
        let range = |first: i64, port: i64| {
            let master =
                Value::Array(vec![Value::BulkString(b"127.0.0.1".to_vec()), Value::Int(port)]);
            vec![Value::Int(first), Value::Int(first + 99), master.clone(), master]
        };
        let slots = slots_of_masters(vec![range(0, 1), range(100, 2), range(200, 1)]).unwrap();
        assert_eq!(slots.len(), 2);
        assert!(slots_of_masters(vec![vec![Value::Int(0)]]).unwrap().is_empty());
    }
}
