//! Workers that read on after their Redis has failed over: behind sentinels, and in a cluster.

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Kinesis, Shard};
use kinestream::{Consumer, RedisStore, StartingPosition};
use tokio::time::{Instant, sleep};

const LEASE: Duration = Duration::from_secs(2);
const RENEWAL: Duration = LEASE.checked_div(3).unwrap();

/// How long reading may stop after a failover.
const BOUND: Duration = LEASE.saturating_add(RENEWAL.saturating_mul(2));

/// What a poll, a put and a busy machine may add.
const DELAY: Duration = Duration::from_millis(1500);

/// A worker that has read a record.
struct Reading {
    shard: Shard,
    consumer: Consumer,
    records: kinestream::Records,
    put: usize,
}

impl Reading {
    async fn start(store: RedisStore) -> Self {
        let kinesis = Kinesis::new();
        let shard = kinesis.create_stream("orders", 1).shard(0);
        let consumer = Consumer::builder(kinesis.client(), "orders")
            .application("billing")
            .starting_position(StartingPosition::TrimHorizon)
            .interval(Duration::from_millis(200))
            .checkpoint_interval(Duration::from_millis(100))
            .lease_duration(LEASE)
            .store(store)
            .build()
            .unwrap();
        let records = consumer.records();
        let mut reading = Self { shard, consumer, records, put: 0 };
        reading.read_one().await;
        reading
    }

    /// Puts a record, and waits for it. Redelivered records are ignored.
    async fn read_one(&mut self) {
        self.put += 1;
        let expected = self.put.to_string();
        self.shard.put(&*expected);
        while self.records.next().await.unwrap().unwrap().data() != expected.as_bytes() {}
    }

    /// Reads on from the moment at which there is a master again.
    async fn reads_on(mut self) {
        let began = Instant::now();
        self.read_one().await;
        // What was fetched before may come at once: the lease is valid again with a later one.
        sleep(LEASE).await;
        self.read_one().await;
        let took = began.elapsed().saturating_sub(LEASE);
        assert!(took < BOUND + DELAY, "the worker reads on after {took:?}");
        self.consumer.close().await.unwrap();
    }
}

#[cfg(feature = "redis-sentinel")]
#[tokio::test]
async fn worker_behind_sentinels_reads_on_after_a_failover() {
    let mut watched = crate::redis_sentinel::Watched::start().await;
    let reading = Reading::start(watched.store().await).await;
    watched.fail_over().await;
    reading.reads_on().await;
}

#[cfg(feature = "redis-cluster")]
#[tokio::test]
async fn worker_on_a_cluster_reads_on_after_a_failover() {
    let mut pair = crate::redis_cluster::Pair::start().await;
    let urls = pair.urls();
    let store = RedisStore::connect_cluster(urls.iter().map(String::as_str)).await.unwrap();
    let reading = Reading::start(store).await;
    pair.fail_over().await;
    reading.reads_on().await;
}
