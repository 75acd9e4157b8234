//! Scope migration: consumers of a stream's ARN take the positions stored under its name.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use kinestream::store::Scope;
use kinestream::testing::{Kinesis, Outcome, Stream, WrongListing};
use kinestream::{
    Checkpoint, CheckpointStore, ConsumerBuilder, ErrorKind, Event, Events, IfLeased, MemoryStore,
    Result, ShardId, StartingPosition,
};
use tokio::time::timeout;

use crate::simulated_clock::consumer_of;
use crate::{assert_silent, consumer, next, number, orders, shards};

const ARN: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
const OTHER_ARN: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/orders";

fn by_arn(kinesis: &Kinesis, arn: &str) -> ConsumerBuilder {
    consumer_of(kinesis, kinesis.client(), arn).starting_position(StartingPosition::TrimHorizon)
}

fn shard(number: usize) -> ShardId {
    format!("shardId-{number:012}").parse().unwrap()
}

/// Reads all available records and closes the consumer.
async fn read(builder: ConsumerBuilder) -> Vec<usize> {
    let consumer = builder.build().unwrap();
    let mut records = consumer.records();
    let mut read = Vec::new();
    while let Ok(record) = timeout(Duration::from_secs(60), records.next()).await {
        read.push(number(&record.unwrap().unwrap()));
    }
    drop(records);
    consumer.close().await.unwrap();
    read.sort_unstable();
    read
}

/// Returns the numbers of migrated and refused positions of each `PositionsMigrated` event.
async fn migrations(events: &mut Events) -> Vec<(usize, usize)> {
    let mut migrations = Vec::new();
    while let Ok(Some(event)) = timeout(Duration::from_secs(1), events.next()).await {
        if let Event::PositionsMigrated { positions, refused } = event {
            migrations.push((positions, refused));
        }
    }
    migrations
}

/// Creates a stream of the same name in another region, with later sequence numbers.
fn orders_of_other_region(shards: usize) -> (Kinesis, Stream) {
    let kinesis = Kinesis::new();
    kinesis.create_stream("orders", shards).put("key", "0");
    kinesis.delete_stream("orders");
    let orders = kinesis.create_stream("orders", shards);
    (kinesis, orders)
}

/// A store that keeps positions and no leases.
#[derive(Debug, Clone, Default)]
struct Plain(MemoryStore);

impl CheckpointStore for Plain {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        self.0.load(scope)
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        self.0.save(scope, checkpoints)
    }
}

async fn assert_positions_migrate_once(store: impl CheckpointStore + Clone) {
    let (kinesis, orders) = orders(2);
    orders.shard(0).put("0");
    orders.shard(1).put("1");
    assert_eq!(read(consumer(&kinesis).store(store.clone())).await, [0, 1]);
    orders.shard(0).put("2");
    let consumer = by_arn(&kinesis, ARN).store(store.clone()).build().unwrap();
    let mut events = consumer.events();
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 2);
    assert_silent(&mut records).await;
    assert_eq!(migrations(&mut events).await, [(2, 0)]);
    let status = consumer.status().await.unwrap();
    assert_eq!((&*status.stream, status.shards.len()), ("orders", 2));
    drop(records);
    consumer.close().await.unwrap();
    orders.shard(1).put("3");
    assert_eq!(read(by_arn(&kinesis, ARN).store(store.clone())).await, [3]);
    // The scope of the name is unchanged, and lists only its shards.
    let positions = shards(&self::consumer(&kinesis).store(store).build().unwrap()).await;
    assert_eq!(positions.into_keys().collect::<Vec<_>>(), [shard(0), shard(1)]);
}

#[tokio::test(start_paused = true)]
async fn positions_under_the_name_migrate_once() {
    assert_positions_migrate_once(MemoryStore::new()).await;
}

#[tokio::test(start_paused = true)]
async fn positions_in_a_store_without_leases_migrate_once() {
    assert_positions_migrate_once(Plain::default()).await;
}

/// One listing with a wrong first sequence number does not make the stream a different one.
#[tokio::test(start_paused = true)]
async fn positions_migrate_despite_a_wrong_start_in_a_listing() {
    let store = MemoryStore::new();
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    assert_eq!(read(consumer(&kinesis).store(store.clone())).await, [0]);
    orders.shard(0).put("1");
    let wrong = Outcome::Mislisted(WrongListing::OtherStart(shard(0)));
    kinesis.next_calls("ListShards", 1, wrong);
    let consumer = by_arn(&kinesis, ARN).store(store).build().unwrap();
    let mut events = consumer.events();
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 1);
    assert_silent(&mut records).await;
    assert_eq!(migrations(&mut events).await, [(1, 0)]);
}

#[tokio::test(start_paused = true)]
async fn streams_of_one_name_have_separate_positions() {
    let store = MemoryStore::new();
    let (here, local) = orders(1);
    let (there, remote) = orders_of_other_region(1);
    for round in 0..3 {
        local.shard(0).put(format!("{}", 2 * round));
        remote.shard(0).put(format!("{}", 2 * round + 1));
        assert_eq!(read(by_arn(&here, ARN).store(store.clone())).await, [2 * round]);
        let other = by_arn(&there, OTHER_ARN).store(store.clone());
        assert_eq!(read(other).await, [2 * round + 1]);
    }
}

#[tokio::test(start_paused = true)]
async fn positions_of_another_region_are_left_to_their_stream() {
    let store = MemoryStore::new();
    let (here, local) = orders(1);
    local.shard(0).put("0");
    assert_eq!(read(consumer(&here).store(store.clone())).await, [0]);
    let (there, remote) = orders_of_other_region(1);
    remote.shard(0).put("1");
    let other = by_arn(&there, OTHER_ARN).store(store.clone()).build().unwrap();
    let mut events = other.events();
    let mut records = other.records();
    assert_eq!(number(&next(&mut records).await), 1);
    assert_eq!(migrations(&mut events).await, [(0, 1)]);
    // The positions still migrate to the stream that they belong to.
    local.shard(0).put("2");
    assert_eq!(read(by_arn(&here, ARN).store(store)).await, [2]);
}

/// The positions are times, which may belong to either stream.
#[tokio::test(start_paused = true)]
async fn claimed_positions_do_not_migrate_to_another_arn() {
    let store = MemoryStore::new();
    let (here, _local) = orders(1);
    let (there, remote) = orders_of_other_region(1);
    remote.shard(0).put("1");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let now = Checkpoint::AtTimestamp(here.now());
    let scope = Scope::new("default", "orders");
    store.save(&scope, &[(shard(0), now)]).await.unwrap();
    let first = by_arn(&here, ARN).store(store.clone()).build().unwrap();
    let mut events = first.events();
    assert_silent(&mut first.records()).await;
    assert_eq!(migrations(&mut events).await, [(1, 0)]);
    assert_eq!(read(by_arn(&there, OTHER_ARN).store(store)).await, [1]);
}

#[tokio::test(start_paused = true)]
async fn migration_waits_for_workers_that_read_by_name() {
    let store = MemoryStore::new();
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let named = consumer(&kinesis).store(store.clone()).worker_id("old").build().unwrap();
    let mut by_name = named.records();
    assert_eq!(number(&next(&mut by_name).await), 0);
    let consumer = by_arn(&kinesis, ARN).store(store).build().unwrap();
    let (mut events, began) = (consumer.events(), tokio::time::Instant::now());
    let mut records = consumer.records();
    let error = records.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().contains("old"), "{error}");
    assert_eq!(began.elapsed().as_secs() / 10, 6, "expected the error after a minute");
    // There is one error, and the consumer continues to wait.
    assert_silent(&mut records).await;
    orders.shard(0).put("1");
    assert_eq!(number(&next(&mut by_name).await), 1);
    drop(by_name);
    named.close().await.unwrap();
    // The record was delivered, but no further poll acknowledged it.
    assert_eq!(number(&next(&mut records).await), 1);
    let mut delays = 0;
    while let Ok(Some(event)) = timeout(Duration::from_secs(1), events.next()).await {
        if let Event::MigrationDelayed { worker_ids } = event {
            assert_eq!(worker_ids, ["old"]);
            delays += 1;
        }
    }
    assert_eq!(delays, 1);
}

#[tokio::test(start_paused = true)]
async fn migration_resumes_after_a_crash_that_followed_the_claim() {
    let store = MemoryStore::new();
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    assert_eq!(read(consumer(&kinesis).store(store.clone())).await, [0]);
    let claim = "positions-claimed.123456789012.eu-west-1".parse().unwrap();
    let scope = Scope::new("default", "orders");
    store.save(&scope, &[(claim, Checkpoint::ShardEnd)]).await.unwrap();
    orders.shard(0).put("1");
    assert_eq!(read(by_arn(&kinesis, ARN).store(store)).await, [1]);
}

#[tokio::test(start_paused = true)]
async fn edits_before_the_migration_are_kept() {
    let store = MemoryStore::new();
    let (kinesis, orders) = orders(2);
    orders.shard(0).put("0");
    orders.shard(1).put("1");
    assert_eq!(read(consumer(&kinesis).store(store.clone())).await, [0, 1]);
    let consumer = by_arn(&kinesis, ARN).store(store.clone());
    let operator = by_arn(&kinesis, ARN).store(store).build().unwrap();
    let back = Checkpoint::TrimHorizon;
    operator.set_position(&shard(0), back, IfLeased::Refuse).await.unwrap();
    assert_eq!(read(consumer).await, [0]);
}

#[tokio::test(start_paused = true)]
async fn cleared_scope_migrates_no_position() {
    let store = MemoryStore::new();
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    assert_eq!(read(consumer(&kinesis).store(store.clone())).await, [0]);
    for _ in 0..2 {
        let operator = by_arn(&kinesis, ARN).store(store.clone()).build().unwrap();
        operator.clear_positions(IfLeased::Refuse).await.unwrap();
        assert_eq!(read(by_arn(&kinesis, ARN).store(store.clone())).await, [0]);
    }
}

/// A shard that expires between the two readers is reported in the same way as without a migration.
#[tokio::test(start_paused = true)]
async fn unread_shard_that_has_expired_is_reported() {
    let store = MemoryStore::new();
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    assert_eq!(read(consumer(&kinesis).store(store.clone())).await, [0]);
    orders.shard(0).put("1");
    let [left, _right] = orders.shard(0).split();
    left.put("2");
    orders.shard(0).expire();
    let builder = by_arn(&kinesis, ARN).store(store);
    let consumer = builder.discovery_interval(Duration::from_secs(5)).build().unwrap();
    let mut records = consumer.records();
    let error = timeout(Duration::from_secs(600), records.next()).await.unwrap();
    let error = error.unwrap().expect_err("the loss is reported before a child is read");
    assert_eq!(error.kind(), ErrorKind::Trimmed, "{error}");
}

#[tokio::test(start_paused = true)]
async fn number_that_kinesis_rejects_as_of_another_stream_does_not_migrate() {
    let store = MemoryStore::new();
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let later: Checkpoint =
        "AFTER_SEQUENCE_NUMBER:99999999999999999999999999999999999999999999999999999999"
            .parse()
            .unwrap();
    let scope = Scope::new("default", "orders");
    store.save(&scope, &[(shard(0), later)]).await.unwrap();
    let refusal = "StartingSequenceNumber 99 used in GetShardIterator on shard \
        shardId-000000000000 in stream orders under account 123456789012 is invalid because it did \
        not come from this stream.";
    let refused = Outcome::Failed {
        status: 400,
        code: "InvalidArgumentException".to_owned(),
        message: refusal.to_owned(),
    };
    kinesis.next_calls("GetShardIterator", 1, refused);
    assert_eq!(read(by_arn(&kinesis, ARN).store(store)).await, [0]);
}
