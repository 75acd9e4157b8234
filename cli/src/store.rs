//! The store that the arguments name.

pub(crate) mod keys;

use kinestream::RedisStore;

use crate::arguments::Store;
use crate::failure::Outcome;

/// Connects to one server or the cluster that it belongs to, to the cluster of several nodes, or to
/// the master that sentinels report.
pub(crate) async fn connect(store: &Store) -> Outcome<RedisStore> {
    let urls = store.redis.iter().map(String::as_str);
    let connected = match (store.master(), &store.redis[..]) {
        (Some(master), _) => RedisStore::connect_sentinel(urls, &master).await,
        (None, [url]) => RedisStore::connect(url).await,
        (None, _) => RedisStore::connect_cluster(urls).await,
    };
    Ok(connected?)
}
