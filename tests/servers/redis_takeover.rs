//! Takeovers by workers that have lost their own connection.

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::Kinesis;
use kinestream::{Consumer, RedisStore, StartingPosition};
use tokio::time::{Instant, timeout};

use crate::proxy::{Mode, Proxy};
use crate::redis_server::RedisServer;

const LEASE: Duration = Duration::from_secs(2);
const RENEWAL: Duration = LEASE.checked_div(3).unwrap();

/// An allowance for a poll, a put and a busy machine.
const DELAY: Duration = Duration::from_millis(1500);

async fn start(kinesis: &Kinesis, redis: &RedisServer, name: &str) -> (Proxy, Consumer) {
    let proxy = Proxy::start(redis.port()).await;
    let consumer = Consumer::builder(kinesis.client(), "orders")
        .starting_position(StartingPosition::TrimHorizon)
        .interval(Duration::from_millis(200))
        .lease_duration(LEASE)
        .worker_id(name)
        .store(RedisStore::connect(&proxy.url()).await.unwrap())
        .build()
        .unwrap();
    (proxy, consumer)
}

#[tokio::test]
async fn idle_worker_with_half_open_connection_takes_over() {
    let redis = RedisServer::start(&[]);
    let kinesis = Kinesis::new();
    let shard = kinesis.create_stream("orders", 1).shard(0);
    shard.put("first");
    let (crashed, first) = start(&kinesis, &redis, "first").await;
    let mut records = first.records();
    assert_eq!(records.next().await.unwrap().unwrap().data(), b"first");
    let (half_open, second) = start(&kinesis, &redis, "second").await;
    let mut taken = second.records();
    // Gives the second worker the time to join.
    timeout(2 * RENEWAL, taken.next())
        .await
        .expect_err("expected the first worker to own the shard");

    shard.put("second");
    crashed.set_mode(Mode::Swallow);
    half_open.freeze();
    let began = Instant::now();
    let bound = LEASE + 2 * RENEWAL + DELAY;
    let taken = timeout(bound, taken.next()).await;
    assert!(taken.is_ok(), "expected a takeover within {bound:?}, waited {:?}", began.elapsed());
}
