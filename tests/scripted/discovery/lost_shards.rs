//! Shards that are given up as lost because they expired or belong to another stream.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::testing::{Kinesis, Outcome, Stream, WrongListing};
use kinestream::{
    Checkpoint, CheckpointOn, CheckpointStore, ErrorKind, Event, MemoryStore, OnTrimmed, ShardState,
};
use tokio::time::timeout;

use crate::{assert_silent, consumer, next, number, orders};

const HOUR: Duration = Duration::from_secs(3600);

/// Returns a store in which a closed shard is read up to the first of its two records.
async fn store_with_half_read_shard() -> (Kinesis, Stream, MemoryStore) {
    let (kinesis, orders) = orders(1);
    let sequence_number = orders.shard(0).put("0");
    orders.shard(0).put("1");
    let [left, _right] = orders.shard(0).split();
    left.put("2");
    let store = MemoryStore::new();
    let position = Checkpoint::AfterSequenceNumber { sequence_number, sub_sequence_number: None };
    let scope = Scope::new("default", "orders");
    store.save(&scope, &[(orders.shard(0).id(), position)]).await.unwrap();
    (kinesis, orders, store)
}

#[tokio::test(start_paused = true)]
async fn lost_shard_is_reported_at_each_start_until_on_trimmed_skips_it() {
    let (kinesis, orders, store) = store_with_half_read_shard().await;
    orders.shard(0).expire();
    for _ in 0..2 {
        let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
        let mut records = consumer.records();
        let error = timeout(HOUR, records.next()).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Trimmed);
        assert!(error.to_string().contains("set on_trimmed"), "{error}");
        let quiet = timeout(HOUR, records.next()).await;
        assert!(quiet.is_err(), "expected one error and no record of the children: {quiet:?}");
        let status = consumer.status().await.unwrap();
        assert_eq!(status.shards[&orders.shard(0).id()].state, ShardState::Expired);
        drop(records);
        consumer.close().await.unwrap();
    }
    let consumer =
        consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon).store(store).build().unwrap();
    let mut events = consumer.events();
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 2);
    let all = std::iter::from_fn(|| events.next().now_or_never().flatten());
    let gaps = all.filter(|event| matches!(event, Event::Gap { .. })).count();
    assert_eq!(gaps, 1);
}

#[tokio::test(start_paused = true)]
async fn lost_shard_that_is_listed_again_is_read() {
    let (kinesis, orders, store) = store_with_half_read_shard().await;
    let missing = Outcome::Mislisted(WrongListing::Without(orders.shard(0).id()));
    let not_found = Outcome::failed(400, "ResourceNotFoundException", "no such shard");
    kinesis.on_call(move |call| match call.operation.as_str() {
        "ListShards" => missing.clone(),
        "GetShardIterator" => not_found.clone(),
        _ => Outcome::Served,
    });
    let consumer = consumer(&kinesis).store(store).build().unwrap();
    let mut records = consumer.records();
    let error = timeout(HOUR, records.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Trimmed);
    kinesis.on_call(|_| Outcome::Served);
    for expected in 1..3 {
        let record = timeout(HOUR, records.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(number(&record), expected);
    }
}

/// A server that lags behind shows neither the children of a split in its listings nor for other
/// requests.
#[tokio::test(start_paused = true)]
async fn child_of_a_shard_that_is_listed_as_open_is_not_lost() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).store(MemoryStore::new());
    let mut records = builder.build().unwrap().records();
    let last = next(&mut records).await;
    for (child, number) in orders.shard(0).split().iter().zip(1..) {
        child.put(number.to_string());
    }
    // The children wait for the acknowledgement.
    assert_silent(&mut records).await;
    let outdated = Outcome::Mislisted(WrongListing::Stale(1));
    let not_found = Outcome::failed(400, "ResourceNotFoundException", "no such shard");
    kinesis.on_call(move |call| match call.operation.as_str() {
        "ListShards" => outdated.clone(),
        "GetShardIterator" => not_found.clone(),
        _ => Outcome::Served,
    });
    let quiet = timeout(HOUR, records.next()).await;
    assert!(quiet.is_err(), "expected no loss: {quiet:?}");
    kinesis.on_call(|_| Outcome::Served);
    last.ack();
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let record = next(&mut records).await;
        numbers.push(number(&record));
        record.ack();
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2]);
}

/// One listing shows another first sequence number for a shard that is being read.
#[tokio::test(start_paused = true)]
async fn single_listing_with_another_start_has_no_effect() {
    for on_trimmed in [OnTrimmed::Fail, OnTrimmed::TrimHorizon] {
        let (kinesis, orders) = orders(1);
        let interval = Duration::from_secs(5);
        let builder = consumer(&kinesis).discovery_interval(interval).on_trimmed(on_trimmed);
        let consumer = builder.build().unwrap();
        let mut records = consumer.records();
        orders.shard(0).put("0");
        assert_eq!(number(&next(&mut records).await), 0);
        assert_silent(&mut records).await;
        let wrong = Outcome::Mislisted(WrongListing::OtherStart(orders.shard(0).id()));
        kinesis.next_calls("ListShards", 1, wrong);
        let quiet = timeout(HOUR, records.next()).await;
        assert!(quiet.is_err(), "{on_trimmed:?}: {quiet:?}");
        orders.shard(0).put("1");
        assert_eq!(number(&next(&mut records).await), 1, "{on_trimmed:?}");
    }
}
