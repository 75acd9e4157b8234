//! Workers that resume after a failover of their Redis, behind sentinels and in a cluster.

#[cfg(feature = "redis-cluster")]
use kinestream::RedisStore;

use crate::reading::ReadingWorker;

#[cfg(feature = "redis-sentinel")]
#[tokio::test]
async fn worker_behind_sentinels_resumes_after_failover() {
    let mut watched = crate::redis_sentinel::SentinelSetup::start().await;
    let reading = ReadingWorker::start(watched.store().await).await;
    watched.fail_over().await;
    reading.reads_on().await;
}

#[cfg(feature = "redis-cluster")]
#[tokio::test]
async fn worker_on_cluster_resumes_after_failover() {
    let mut pair = crate::redis_cluster::Pair::start().await;
    let urls = pair.urls();
    let store = RedisStore::connect_cluster(urls.iter().map(String::as_str)).await.unwrap();
    let reading = ReadingWorker::start(store).await;
    pair.fail_over().await;
    reading.reads_on().await;
}
