//! The scenarios that a server must support for the consumer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use futures::{StreamExt, TryStreamExt};
use kinestream::{
    Consumer, ConsumerBuilder, ErrorKind, MemoryStore, Record, ShardPosition, StartingPosition,
};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::ferrokinesis_server::{create_stream, wait_until_active};

/// The distance between times that must be distinguished. ferrokinesis keeps arrival times in
/// seconds, and the `Date` of a response, from which its clock is read, has seconds as well.
pub(crate) const A_SECOND: Duration = Duration::from_millis(2100);
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn consumer(client: &Client, stream: &str, store: &MemoryStore) -> ConsumerBuilder {
    Consumer::builder(client.clone(), stream)
        .starting_position(StartingPosition::TrimHorizon)
        .interval(Duration::from_millis(200))
        .discovery_interval(Duration::from_secs(1))
        .store(store.clone())
}

/// The way in which shards are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Polling,
    FanOut,
}

impl Source {
    pub(crate) fn consumer(
        self,
        client: &Client,
        stream: &str,
        store: &MemoryStore,
    ) -> ConsumerBuilder {
        let builder = consumer(client, stream, store);
        if self == Self::FanOut { builder.fan_out("billing") } else { builder }
    }
}

/// Puts these records one after another, spread over 50 partition keys.
pub(crate) async fn put(client: &Client, stream: &str, numbers: std::ops::Range<u32>) {
    for number in numbers {
        client
            .put_record()
            .stream_name(stream)
            .partition_key(format!("key-{}", number % 50))
            .data(Blob::new(number.to_string()))
            .send()
            .await
            .expect("failed to put a record");
    }
}

pub(crate) fn number(record: &Record) -> u32 {
    std::str::from_utf8(record.data()).unwrap().parse().unwrap()
}

/// Reads and acknowledges `count` records, and closes the consumer.
async fn read(consumer: &Consumer, count: usize) -> Vec<Record> {
    let records = consumer.records().take(count).inspect_ok(Record::ack).try_collect();
    let read: Vec<Record> = timeout(PATIENCE, records)
        .await
        .expect("expected the records within 60 s")
        .expect("expected no error");
    consumer.close().await.expect("expected the checkpoints to be saved");
    read
}

pub(crate) fn numbers(records: &[Record]) -> Vec<u32> {
    let mut numbers: Vec<u32> = records.iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// Checks that records are in order within each shard, and within each partition key across shards.
pub(crate) fn assert_in_order(records: &[Record]) {
    let mut shards = BTreeMap::new();
    let mut keys = BTreeMap::new();
    for record in records {
        let sequence = record.sequence_number();
        if let Some(before) = shards.insert(record.shard_id(), sequence) {
            assert!(before < sequence, "expected ascending order, got {before} before {sequence}");
        }
        let number = number(record);
        if let Some(before) = keys.insert(record.partition_key(), number) {
            assert!(before < number, "expected ascending order, got {before} before {number}");
        }
    }
}

pub(crate) async fn open_shards(
    client: &Client,
    stream: &str,
) -> Vec<aws_sdk_kinesis::types::Shard> {
    let listed =
        client.list_shards().stream_name(stream).send().await.expect("failed to list the shards");
    let open = |shard: &aws_sdk_kinesis::types::Shard| {
        shard.sequence_number_range().is_none_or(|range| range.ending_sequence_number().is_none())
    };
    let mut shards: Vec<_> = listed.shards().iter().filter(|shard| open(shard)).cloned().collect();
    let start = |shard: &aws_sdk_kinesis::types::Shard| {
        shard.hash_key_range().unwrap().starting_hash_key().parse::<u128>().unwrap()
    };
    shards.sort_by_key(start);
    shards
}

pub(crate) async fn split_first(client: &Client, stream: &str) {
    let shard = open_shards(client, stream).await.remove(0);
    let range = shard.hash_key_range().unwrap();
    let [start, end] = [range.starting_hash_key(), range.ending_hash_key()]
        .map(|key| key.parse::<u128>().unwrap());
    client
        .split_shard()
        .stream_name(stream)
        .shard_to_split(shard.shard_id())
        .new_starting_hash_key((start + (end - start) / 2).to_string())
        .send()
        .await
        .expect("failed to split the shard");
    wait_until_active(client, stream).await.expect("expected an active stream after the split");
}

pub(crate) async fn merge_first_two(client: &Client, stream: &str) {
    let shards = open_shards(client, stream).await;
    client
        .merge_shards()
        .stream_name(stream)
        .shard_to_merge(shards[0].shard_id())
        .adjacent_shard_to_merge(shards[1].shard_id())
        .send()
        .await
        .expect("failed to merge the shards");
    wait_until_active(client, stream).await.expect("expected an active stream after the merge");
}

pub(crate) async fn resharded_stream_is_read_in_order_across_restarts(client: &Client, by: Source) {
    let stream = "scenario-of-resharding";
    create_stream(client, stream, 2).await.unwrap();
    let store = MemoryStore::new();

    put(client, stream, 0..50).await;
    let mut all = read(&by.consumer(client, stream, &store).build().unwrap(), 30).await;

    // Two generations of resharding without a consumer.
    split_first(client, stream).await;
    put(client, stream, 50..100).await;
    merge_first_two(client, stream).await;
    put(client, stream, 100..150).await;
    all.extend(read(&by.consumer(client, stream, &store).build().unwrap(), 90).await);

    // One generation while a consumer reads.
    let reader = by.consumer(client, stream, &store).build().unwrap();
    let reading = tokio::spawn(async move { read(&reader, 80).await });
    split_first(client, stream).await;
    put(client, stream, 150..200).await;
    all.extend(reading.await.unwrap());

    assert_eq!(numbers(&all), (0..200).collect::<Vec<_>>(), "expected each record once");
    assert_in_order(&all);
}

pub(crate) async fn latest_reads_only_later_records(client: &Client) {
    let stream = "scenario-of-latest";
    create_stream(client, stream, 2).await.unwrap();
    let store = MemoryStore::new();
    let latest = || {
        consumer(client, stream, &store)
            .starting_position(StartingPosition::Latest)
            .build()
            .unwrap()
    };
    put(client, stream, 0..20).await;
    tokio::time::sleep(A_SECOND).await;
    // The first consumer stops before it has read a record.
    let first = latest();
    let mut records = first.records();
    assert!(timeout(Duration::from_secs(2), records.next()).await.is_err());
    drop(records);
    first.close().await.unwrap();
    // The next consumer reads the records that were put in between.
    put(client, stream, 20..40).await;
    assert_eq!(numbers(&read(&latest(), 20).await), (20..40).collect::<Vec<_>>());
}

pub(crate) async fn latest_after_split_skips_parent(client: &Client) {
    let stream = "scenario-of-a-late-start";
    create_stream(client, stream, 1).await.unwrap();
    put(client, stream, 0..20).await;
    split_first(client, stream).await;
    tokio::time::sleep(A_SECOND).await;
    let store = MemoryStore::new();
    let consumer = consumer(client, stream, &store)
        .starting_position(StartingPosition::Latest)
        .build()
        .unwrap();
    let reading = tokio::spawn(async move { read(&consumer, 20).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    put(client, stream, 20..40).await;
    assert_eq!(numbers(&reading.await.unwrap()), (20..40).collect::<Vec<_>>());
}

pub(crate) async fn starting_position_delivers_records_from_there(client: &Client) {
    let stream = "scenario-of-positions";
    create_stream(client, stream, 1).await.unwrap();
    put(client, stream, 0..10).await;
    tokio::time::sleep(A_SECOND).await;
    let middle = SystemTime::now();
    tokio::time::sleep(A_SECOND).await;
    put(client, stream, 10..20).await;

    let begin = |position: Option<ShardPosition>, start| {
        let builder = consumer(client, stream, &MemoryStore::new()).starting_position(start);
        let shard = "shardId-000000000000".parse().unwrap();
        match position {
            Some(position) => builder.starting_position_for(shard, position),
            None => builder,
        }
        .build()
        .unwrap()
    };
    let all = read(&begin(None, StartingPosition::TrimHorizon), 20).await;
    assert_eq!(numbers(&all), (0..20).collect::<Vec<_>>());
    let later = read(&begin(None, StartingPosition::AtTimestamp(middle)), 10).await;
    assert_eq!(numbers(&later), (10..20).collect::<Vec<_>>());
    let at = ShardPosition::AtSequenceNumber(all[5].sequence_number().clone());
    assert_eq!(
        numbers(&read(&begin(Some(at), StartingPosition::Latest), 15).await),
        (5..20).collect::<Vec<_>>()
    );
    let after = ShardPosition::AfterSequenceNumber(all[5].sequence_number().clone());
    assert_eq!(
        numbers(&read(&begin(Some(after), StartingPosition::Latest), 14).await),
        (6..20).collect::<Vec<_>>()
    );
}

pub(crate) async fn unknown_stream_is_reported_and_ends(client: &Client) {
    let consumer = consumer(client, "no-such-stream", &MemoryStore::new()).build().unwrap();
    let mut records = consumer.records();
    let error = timeout(PATIENCE, records.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = error.to_string();
    assert!(
        text.starts_with(
            "stream no-such-stream: ListShards failed: no such stream or shard; check"
        ),
        "{text}"
    );
    assert!(timeout(PATIENCE, records.next()).await.unwrap().is_none());
    assert!(records.next().await.is_none());
}

pub(crate) async fn task_per_shard_reads_all_records(client: &Client) {
    let stream = "scenario-of-tasks";
    create_stream(client, stream, 3).await.unwrap();
    put(client, stream, 0..30).await;
    split_first(client, stream).await;
    put(client, stream, 30..60).await;

    let consumer = consumer(client, stream, &MemoryStore::new()).build().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reading = consumer.shards().try_for_each({
        let (seen, consumer) = (&seen, &consumer);
        move |mut shard| {
            let (seen, consumer) = (Arc::clone(seen), consumer.clone());
            async move {
                tokio::spawn(async move {
                    while let Some(record) = shard.next().await {
                        let mut seen = seen.lock().await;
                        seen.push(record.unwrap());
                        if seen.len() == 60 {
                            consumer.close().await.unwrap();
                        }
                    }
                });
                Ok(())
            }
        }
    });
    timeout(PATIENCE, reading).await.unwrap().unwrap();
    let seen = seen.lock().await;
    assert_eq!(numbers(&seen), (0..60).collect::<Vec<_>>());
    assert_in_order(&seen);
}

/// Expects a client for a port without a listener.
pub(crate) async fn refused_connection_is_reported_with_remedy(client: &Client) {
    let consumer = consumer(client, "orders", &MemoryStore::new()).build().unwrap();
    let error = timeout(PATIENCE, consumer.records().next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(
        error.to_string(),
        "stream orders: ListShards failed: no connection to Kinesis; check the endpoint, \
         the region and the network"
    );
}
