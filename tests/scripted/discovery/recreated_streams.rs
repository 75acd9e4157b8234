//! Streams that are deleted and created again: positions of the earlier stream are recognized.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::store::lease::Lease;
use kinestream::testing::{Kinesis, Outcome, Shard, Stream, WrongListing};
use kinestream::{Checkpoint, CheckpointStore, ErrorKind, Event, MemoryStore, OnTrimmed, ShardId};
use tokio::time::timeout;

use crate::lease_access::LeaseAccess;
use crate::{assert_silent, calls, consumer, next, number, orders, read_first};

const SHARD: &str = "shardId-000000000000";

/// Returns the leases of the application.
async fn leases(store: &MemoryStore) -> BTreeMap<ShardId, Lease> {
    store.table(&Scope::new("default", "orders")).await.unwrap().leases
}

/// Reads the only record of a stream, and creates the stream again with another record.
async fn recreate_stream(store: &MemoryStore) -> (Kinesis, Stream) {
    let (kinesis, before) = orders(1);
    let (first, records) = read_first(&kinesis, &before, store).await;
    drop(records);
    first.close().await.unwrap();
    kinesis.delete_stream("orders");
    let again = kinesis.create_stream("orders", 1);
    again.shard(0).put("1");
    (kinesis, again)
}

#[tokio::test(start_paused = true)]
async fn recreated_stream_is_an_error_by_default() {
    let store = MemoryStore::new();
    let (kinesis, _again) = recreate_stream(&store).await;
    // Each start yields the error and no record.
    for _ in 0..2 {
        let reads = calls(&kinesis, "GetRecords").len();
        let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
        let mut records = consumer.records();
        let error = records.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Trimmed);
        assert_eq!(error.shard_id().map(ShardId::as_str), Some(SHARD));
        assert!(error.to_string().contains("earlier stream of this name"), "{error}");
        assert_silent(&mut records).await;
        assert_eq!(calls(&kinesis, "GetRecords").len(), reads, "expected no read of the shard");
        drop(records);
        consumer.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn recreated_stream_is_read_from_the_on_trimmed_position() {
    for policy in [OnTrimmed::TrimHorizon, OnTrimmed::Latest] {
        let store = MemoryStore::new();
        let (kinesis, again) = recreate_stream(&store).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let consumer = consumer(&kinesis).store(store).on_trimmed(policy).build().unwrap();
        let mut events = consumer.events();
        let mut records = consumer.records();
        if policy == OnTrimmed::Latest {
            assert_silent(&mut records).await;
            again.shard(0).put("2");
            assert_eq!(number(&next(&mut records).await), 2);
        } else {
            assert_eq!(number(&next(&mut records).await), 1);
        }
        let is_gap = |event: &Event| matches!(event, Event::Gap { .. });
        let mut gaps = 0;
        while let Ok(Some(event)) = timeout(Duration::from_secs(1), events.next()).await {
            gaps += usize::from(is_gap(&event));
        }
        assert_eq!(gaps, 1, "expected one gap");
    }
}

/// The old shard was read to its end. The new shard with the same ID is not treated as finished.
#[tokio::test(start_paused = true)]
async fn finished_shard_of_a_recreated_stream_is_read() {
    let store = MemoryStore::new();
    let (kinesis, before) = orders(1);
    before.shard(0).put("0");
    before.shard(0).split();
    let first = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = first.records();
    assert_eq!(number(&next(&mut records).await), 0);
    assert_silent(&mut records).await;
    drop(records);
    first.close().await.unwrap();
    kinesis.delete_stream("orders");
    kinesis.create_stream("orders", 1).shard(0).put("1");
    let second =
        consumer(&kinesis).store(store).on_trimmed(OnTrimmed::TrimHorizon).build().unwrap();
    assert_eq!(number(&next(&mut second.records()).await), 1);
}

/// The stream is recreated while a worker reads it.
#[tokio::test(start_paused = true)]
async fn stream_recreated_while_read_is_read_from_the_on_trimmed_position() {
    let (kinesis, before) = orders(1);
    before.shard(0).put("0");
    let consumer = consumer(&kinesis)
        .on_trimmed(OnTrimmed::TrimHorizon)
        .discovery_interval(Duration::from_secs(5))
        .build()
        .unwrap();
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 0);
    assert_silent(&mut records).await;
    kinesis.delete_stream("orders");
    kinesis.create_stream("orders", 1).shard(0).put("1");
    let mut read = Vec::new();
    while read.is_empty() {
        match timeout(Duration::from_secs(600), records.next()).await.unwrap().unwrap() {
            Ok(record) => read.push(number(&record)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Trimmed, "{error}"),
        }
    }
    assert_eq!(read, [1]);
}

/// Both the rejected position and the listing reveal the new stream.
#[tokio::test(start_paused = true)]
async fn stream_recreated_while_read_is_reported_once() {
    for (interval, discovery_interval) in [(1, 30), (1, 1), (30, 5), (5, 5)] {
        let (kinesis, before) = orders(1);
        before.shard(0).put("0");
        let consumer = consumer(&kinesis)
            .interval(Duration::from_secs(interval))
            .discovery_interval(Duration::from_secs(discovery_interval))
            .build()
            .unwrap();
        let mut records = consumer.records();
        assert_eq!(number(&next(&mut records).await), 0);
        assert_silent(&mut records).await;
        kinesis.delete_stream("orders");
        kinesis.create_stream("orders", 1).shard(0).put("1");
        let mut errors = Vec::new();
        while let Ok(next) = timeout(Duration::from_secs(600), records.next()).await {
            // A quiet shard may be read up to the next listing.
            errors.extend(next.unwrap().err());
        }
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].kind(), ErrorKind::Trimmed);
        assert_eq!(errors[0].shard_id().map(ShardId::as_str), Some(SHARD));
    }
}

/// The stored position has no start of its shard, like one from an earlier version or an import.
#[tokio::test(start_paused = true)]
async fn position_before_the_start_of_its_shard_is_an_error() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let store = MemoryStore::new();
    let position: Checkpoint = "AFTER_SEQUENCE_NUMBER:7".parse().unwrap();
    let scope = Scope::new("default", "orders");
    store.save(&scope, &[(SHARD.parse().unwrap(), position)]).await.unwrap();
    let consumer = consumer(&kinesis).store(store).build().unwrap();
    let mut records = consumer.records();
    let error = records.next().await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.shard_id().map(ShardId::as_str)),
        (ErrorKind::Trimmed, Some(SHARD))
    );
    assert!(error.to_string().contains("earlier stream"), "{error}");
    assert_silent(&mut records).await;
}

#[tokio::test(start_paused = true)]
async fn start_of_a_shard_is_stored_from_the_listing() {
    let (kinesis, orders) = orders(1);
    let last = orders.shard(0).put("0");
    let store = MemoryStore::new();
    let position =
        Checkpoint::AfterSequenceNumber { sequence_number: last, sub_sequence_number: None };
    let scope = Scope::new("default", "orders");
    store.save(&scope, &[(SHARD.parse().unwrap(), position)]).await.unwrap();
    let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = consumer.records();
    assert_silent(&mut records).await;
    let lease = &leases(&store).await[&SHARD.parse().unwrap()];
    assert!(lease.start.is_some(), "{lease:?}");
    // The end of the parent names its children but not their starts.
    orders.shard(0).split();
    assert_silent(&mut records).await;
    for (shard, lease) in leases(&store).await {
        assert!(lease.start.is_some(), "{shard}: {lease:?}");
    }
}

/// Makes the next listings show a first sequence number beyond every record of the shard.
fn mislist(kinesis: &Kinesis, shard: &Shard, times: usize) {
    let wrong = Outcome::Mislisted(WrongListing::OtherStart(shard.id()));
    kinesis.next_calls("ListShards", times, wrong);
}

/// One listing shows a new shard with a wrong first sequence number.
#[tokio::test(start_paused = true)]
async fn wrong_start_of_a_new_shard_is_not_stored() {
    let (kinesis, orders) = orders(1);
    let first = orders.shard(0);
    first.put("0");
    mislist(&kinesis, &first, 1);
    let store = MemoryStore::new();
    let consumer = consumer(&kinesis).discovery_interval(Duration::from_secs(5));
    let consumer = consumer.store(store.clone()).build().unwrap();
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 0);
    assert_silent(&mut records).await;
    let [left, right] = first.split();
    kinesis.set_child_shards(false);
    mislist(&kinesis, &left, 1);
    left.put("1");
    right.put("1");
    for _ in 0..2 {
        assert_eq!(number(&next(&mut records).await), 1);
    }
    assert_silent(&mut records).await;
    let leases = leases(&store).await;
    for shard in orders.shards() {
        let start = leases[&shard.id()].start.as_ref().unwrap();
        let records = shard.sequence_numbers();
        assert!(*start <= records[0], "{}: {start}", shard.id());
    }
}

/// A reader that stops after its first record has stored the starts that identify the shards to the
/// next reader.
#[tokio::test(start_paused = true)]
async fn start_of_a_new_shard_is_stored_before_its_first_record() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let store = MemoryStore::new();
    let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 0);
    let leases = leases(&store).await;
    assert!(leases[&orders.shard(0).id()].start.is_some(), "{leases:?}");
    // From then on, one listing per interval is enough.
    assert_eq!(calls(&kinesis, "ListShards").len(), 2);
    assert_silent(&mut records).await;
    assert_eq!(calls(&kinesis, "ListShards").len(), 4);
}

/// The position of a lost shard belongs to another stream. It is replaced only by a start that
/// several listings show.
#[tokio::test(start_paused = true)]
async fn lost_shard_is_not_replaced_by_a_wrong_start() {
    let store = MemoryStore::new();
    let (kinesis, again) = recreate_stream(&store).await;
    let failing = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = failing.records();
    assert!(records.next().await.unwrap().is_err());
    assert_silent(&mut records).await;
    drop(records);
    failing.close().await.unwrap();
    mislist(&kinesis, &again.shard(0), 1);
    let builder = consumer(&kinesis).store(store).on_trimmed(OnTrimmed::TrimHorizon);
    let consumer = builder.discovery_interval(Duration::from_secs(5)).build().unwrap();
    let mut events = consumer.events();
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 1);
    assert_silent(&mut records).await;
    let mut gaps = 0;
    while let Ok(Some(event)) = timeout(Duration::from_secs(1), events.next()).await {
        gaps += usize::from(matches!(event, Event::Gap { .. }));
    }
    assert_eq!(gaps, 1, "expected one gap");
}
