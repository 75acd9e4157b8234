//! Scope migration in Redis: positions move from a stream's name to its ARN.

use std::time::Duration;

use futures::StreamExt;
use kinestream::store::{CheckpointStore, Scope};
use kinestream::testing::Kinesis;
use kinestream::{Checkpoint, Consumer, RedisStore, ShardId, StartingPosition};
use redis::AsyncCommands;
use tokio::time::timeout;

use crate::redis_server::{RedisServer, connect};

const ARN: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
const OTHER_ARN: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/orders";

/// Reads until no record is delivered for one second, closes the consumer, and returns the records.
async fn read(kinesis: &Kinesis, stream: &str, store: &RedisStore) -> Vec<String> {
    let consumer = Consumer::builder(kinesis.client(), stream)
        .application("billing")
        .starting_position(StartingPosition::TrimHorizon)
        .interval(Duration::from_millis(200))
        .store(store.clone())
        .build()
        .unwrap();
    let mut records = consumer.records();
    let mut read = Vec::new();
    while let Ok(record) = timeout(Duration::from_secs(1), records.next()).await {
        read.push(String::from_utf8(record.unwrap().unwrap().into_data().to_vec()).unwrap());
    }
    drop(records);
    consumer.close().await.unwrap();
    read
}

#[tokio::test]
async fn positions_under_name_migrate_to_arn_once() {
    let redis = RedisServer::start(&[]);
    let store = RedisStore::connect(&redis.url()).await.unwrap();
    let here = Kinesis::new();
    let orders = here.create_stream("orders", 1).shard(0);
    orders.put("first");
    assert_eq!(read(&here, "orders", &store).await, ["first"]);
    orders.put("second");
    assert_eq!(read(&here, ARN, &store).await, ["second"]);
    assert_eq!(read(&here, ARN, &store).await, [""; 0]);

    let mut raw = connect(redis.url()).await.unwrap();
    let prefix = "kinestream:{billing:123456789012:eu-west-1:orders}";
    let positions: Vec<String> = raw.hkeys(format!("{prefix}:checkpoints")).await.unwrap();
    assert_eq!(positions, ["shardId-000000000000"]);
    let mut marked: Vec<String> =
        raw.hkeys("kinestream:{billing:orders}:checkpoints").await.unwrap();
    marked.sort_unstable();
    let expected = [
        "positions-claimed.123456789012.eu-west-1",
        "positions-taken-over.123456789012.eu-west-1",
        "shardId-000000000000",
    ];
    assert_eq!(marked, expected);
}

/// Timestamps that no worker has stored, as after an import, may belong to either stream.
#[tokio::test]
async fn positions_without_lease_table_are_claimed_by_one_arn() {
    let redis = RedisServer::start(&[]);
    let store = RedisStore::connect(&redis.url()).await.unwrap();
    let (here, there) = (Kinesis::new(), Kinesis::new());
    let shard: ShardId = "shardId-000000000000".parse().unwrap();
    here.create_stream("orders", 1).shard(0).put("first");
    there.create_stream("orders", 1).shard(0).put("of the other region");
    tokio::time::sleep(Duration::from_millis(10)).await;
    let now = Checkpoint::AtTimestamp(here.now());
    store.save(&Scope::new("billing", "orders"), &[(shard, now)]).await.unwrap();
    assert_eq!(read(&here, ARN, &store).await, [""; 0]);
    assert_eq!(read(&there, OTHER_ARN, &store).await, ["of the other region"]);
}
