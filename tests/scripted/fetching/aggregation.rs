//! Aggregated records: several user records in one Kinesis record.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::testing::{Kinesis, Outcome, Shard, aggregate};
use kinestream::{
    CheckpointOn, CheckpointStore, ErrorKind, MemoryStore, Record, Records, SequenceNumber,
};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::store::recording_store::RecordingStore;
use crate::{assert_silent, calls, consumer, next, number, orders};

/// Puts one aggregated record with these numbers as its user records.
fn put(shard: &Shard, numbers: std::ops::Range<usize>) -> SequenceNumber {
    shard.put(packed(numbers))
}

fn packed(numbers: std::ops::Range<usize>) -> Vec<u8> {
    aggregate(numbers.map(|number| (format!("key-{}", number % 3), number.to_string())))
}

fn part(number: &SequenceNumber, part: u64) -> String {
    format!("AFTER_SEQUENCE_NUMBER:{number}:{part}")
}

async fn numbers(records: &mut Records, count: usize) -> Vec<usize> {
    let mut read = Vec::new();
    while read.len() < count {
        let record = next(records).await;
        record.ack();
        read.push(number(&record));
    }
    read
}

#[derive(Deserialize)]
struct Vector {
    by: String,
    what: String,
    records: Vec<(String, Option<String>, String)>,
    packed: String,
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = (0..hex.len()).step_by(2);
    pairs.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn aggregates_of_other_producers_are_deaggregated() {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../../vectors/aggregated.json")).unwrap();
    for Vector { by, what, records, packed } in vectors {
        let (kinesis, orders) = orders(1);
        let whole = orders.shard(0).put(bytes(&packed));
        let mut read = consumer(&kinesis).build().unwrap().records();
        for (place, (key, _, data)) in records.iter().enumerate() {
            let record = next(&mut read).await;
            assert_eq!(record.partition_key(), Some(&key[..]), "{by}: {what}");
            assert_eq!(record.data(), bytes(data), "{by}: {what}");
            assert_eq!(record.sequence_number(), &whole);
            assert_eq!(record.sub_sequence_number(), place as u64);
        }
        assert_silent(&mut read).await;
    }
}

#[tokio::test(start_paused = true)]
async fn aggregated_and_plain_records_are_delivered_in_order() {
    let (kinesis, orders) = orders(1);
    let shard = orders.shard(0);
    shard.put("0");
    put(&shard, 1..4);
    put(&shard, 4..5);
    shard.put("5");
    put(&shard, 6..300);
    for limit in [1, 10_000] {
        let mut records = consumer(&kinesis).limit(limit).build().unwrap().records();
        assert_eq!(numbers(&mut records, 300).await, (0..300).collect::<Vec<_>>());
        assert_silent(&mut records).await;
    }
}

#[tokio::test(start_paused = true)]
async fn restart_resumes_inside_an_aggregate() {
    for checkpoint_on in [CheckpointOn::Pull, CheckpointOn::Ack] {
        let (kinesis, orders) = orders(1);
        let shard = orders.shard(0);
        let whole = put(&shard, 0..5);
        let next_one = put(&shard, 5..7);
        let store = RecordingStore::default();
        let build = || {
            consumer(&kinesis).store(store.clone()).checkpoint_on(checkpoint_on).build().unwrap()
        };
        let mut position = None;
        for first in 0..7 {
            let reader = build();
            let mut records = reader.records();
            assert_eq!(numbers(&mut records, 1).await, [first], "{position:?}");
            drop(records);
            reader.close().await.unwrap();
            position = store.position(0).await;
            let expected = match first {
                4 => format!("AFTER_SEQUENCE_NUMBER:{whole}"),
                6 => format!("AFTER_SEQUENCE_NUMBER:{next_one}"),
                _ if first < 4 => part(&whole, first as u64),
                _ => part(&next_one, first as u64 - 5),
            };
            assert_eq!(position.as_ref(), Some(&expected));
        }
        assert_silent(&mut build().records()).await;
    }
}

/// Returns a new store with the saved position of the shard, which is all that outlives a process.
async fn store_after_crash(store: &RecordingStore) -> MemoryStore {
    let checkpoint = store.position(0).await.unwrap().parse().unwrap();
    let store_after_crash = MemoryStore::new();
    let saved = [("shardId-000000000000".parse().unwrap(), checkpoint)];
    store_after_crash.save(&Scope::new("default", "orders"), &saved).await.unwrap();
    store_after_crash
}

#[tokio::test(start_paused = true)]
async fn crash_inside_an_aggregate_resumes_after_the_saved_user_record() {
    for (checkpoint_on, fan_out) in [
        (CheckpointOn::Pull, false),
        (CheckpointOn::Ack, false),
        (CheckpointOn::Pull, true),
        (CheckpointOn::Ack, true),
    ] {
        let (kinesis, orders) = orders(1);
        let whole = put(&orders.shard(0), 0..5);
        orders.shard(0).put("5");
        let build = || {
            let builder = consumer(&kinesis).checkpoint_on(checkpoint_on);
            if fan_out { builder.fan_out("billing") } else { builder }
        };
        let store = RecordingStore::default();
        let mut records = build().store(store.clone()).build().unwrap().records();
        // With `Pull`, the poll for the next record acknowledges the previous one.
        for expected in 0..3 {
            let record = next(&mut records).await;
            assert_eq!(number(&record), expected);
            if checkpoint_on == CheckpointOn::Ack {
                record.ack();
            }
        }
        let held = next(&mut records).await;
        sleep(Duration::from_secs(2)).await;
        assert_eq!(store.position(0).await, Some(part(&whole, 2)), "{checkpoint_on:?}");
        let store_after_crash = store_after_crash(&store).await;
        drop((records, held));
        let mut records = build().store(store_after_crash).build().unwrap().records();
        assert_eq!(numbers(&mut records, 3).await, [3, 4, 5], "{checkpoint_on:?}, {fan_out}");
        assert_silent(&mut records).await;
    }
}

#[tokio::test(start_paused = true)]
async fn out_of_order_acks_of_user_records_advance_over_the_acknowledged_prefix() {
    let (kinesis, orders) = orders(1);
    let whole = put(&orders.shard(0), 0..4);
    let last = orders.shard(0).put("4");
    let store = RecordingStore::default();
    let reader =
        consumer(&kinesis).store(store.clone()).checkpoint_on(CheckpointOn::Ack).build().unwrap();
    let mut records = reader.records();
    let mut held: Vec<Record> = Vec::new();
    for _ in 0..5 {
        held.push(next(&mut records).await);
    }
    for (index, expected) in [
        (3, None),
        (0, Some(part(&whole, 0))),
        (2, Some(part(&whole, 0))),
        (1, Some(format!("AFTER_SEQUENCE_NUMBER:{whole}"))),
        (4, Some(format!("AFTER_SEQUENCE_NUMBER:{last}"))),
    ] {
        held[index].ack();
        sleep(Duration::from_secs(2)).await;
        let stored = store.position(0).await.filter(|stored| stored != "TRIM_HORIZON");
        assert_eq!(stored, expected, "after the ack of {index}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_user_record_counts_as_in_flight() {
    let (kinesis, orders) = orders(1);
    put(&orders.shard(0), 0..10);
    let reader =
        consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).max_in_flight(3).build().unwrap();
    let mut records = reader.records();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(next(&mut records).await);
    }
    let waiting = timeout(Duration::from_secs(5), records.next()).await;
    assert!(waiting.is_err());
    held[1].ack();
    assert_eq!(number(&next(&mut records).await), 3);
}

#[tokio::test(start_paused = true)]
async fn user_records_of_another_shard_are_left_out() {
    let (kinesis, orders) = orders(2);
    // The same aggregate in both shards, as if it were put again after a reshard, and a plain
    // record.
    let all = packed(0..3);
    for shard in orders.shards() {
        shard.put(all.clone());
        shard.put("10");
    }
    let mut read: Vec<Vec<usize>> = vec![Vec::new(); 2];
    let mut records = consumer(&kinesis).build().unwrap().records();
    while read.iter().any(|read| !read.contains(&10)) {
        let record = next(&mut records).await;
        record.ack();
        read[crate::shard_of(&record)].push(number(&record));
    }
    let mut together: Vec<usize> = read.concat();
    together.sort_unstable();
    assert_eq!(together, [0, 1, 2, 10, 10], "expected each user record once: {read:?}");
    assert!(calls(&kinesis, "ListShards").len() < 3, "expected one listing for all shards");
}

#[tokio::test(start_paused = true)]
async fn aggregate_in_both_children_is_delivered_once() {
    let (kinesis, orders) = orders(1);
    let [left, right] = orders.shard(0).split();
    for child in [&left, &right] {
        child.put(packed(0..3));
    }
    let mut records = consumer(&kinesis).build().unwrap().records();
    let mut read = numbers(&mut records, 3).await;
    read.sort_unstable();
    assert_eq!(read, [0, 1, 2]);
    assert_silent(&mut records).await;
}

#[tokio::test(start_paused = true)]
async fn failing_listing_delays_user_records_without_loss() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let mut records = consumer(&kinesis).build().unwrap().records();
    assert_eq!(numbers(&mut records, 1).await, [0]);
    let [left, right] = orders.shard(0).split();
    left.put(packed(0..3));
    right.put(packed(0..3));
    kinesis.next_calls("ListShards", 4, Outcome::failed(500, "InternalFailureException", ""));
    let mut read = numbers(&mut records, 3).await;
    read.sort_unstable();
    assert_eq!(read, [0, 1, 2]);
    assert_silent(&mut records).await;
}

#[tokio::test(start_paused = true)]
async fn shards_with_unknown_hash_keys_are_released_and_reported_once() {
    let (kinesis, orders) = orders(20);
    let reader = consumer(&kinesis).build().unwrap();
    let mut records = reader.records();
    assert_silent(&mut records).await;
    kinesis.on_call(|call| match &*call.operation {
        "ListShards" => crate::denied(),
        _ => Outcome::Served,
    });
    let parents = orders.open_shards();
    let children: Vec<Shard> = parents.iter().flat_map(Shard::split).collect();
    for child in &children {
        put(child, 0..3);
    }
    let (mut errors, mut released) = (Vec::new(), BTreeSet::new());
    for _ in 0..120 {
        if let Ok(next) = timeout(Duration::from_secs(1), records.next()).await {
            errors.push(next.unwrap().unwrap_err());
            continue;
        }
        let shards = reader.status().await.unwrap().shards.into_iter();
        let free = shards.filter(|(_, shard)| shard.owner.is_none() && shard.failure.is_some());
        released.extend(free.map(|(id, _)| id));
    }
    assert_eq!(released.len(), children.len(), "expected each child to be released: {errors:?}");
    // One error of the worker, which lists the shards, and one of a shard for all shards.
    assert!(errors.iter().all(|error| error.kind() == ErrorKind::Denied), "{errors:?}");
    assert!(errors.len() <= 2, "{errors:?}");
    kinesis.on_call(|_| Outcome::Served);
    // Each of the three user records belongs to one of the shards.
    let mut read = numbers(&mut records, 3).await;
    read.sort_unstable();
    assert_eq!(read, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn aggregate_is_delivered_unchanged_without_deaggregation() {
    let (kinesis, orders) = orders(1);
    let whole = put(&orders.shard(0), 0..5);
    let store = MemoryStore::new();
    let reader = consumer(&kinesis).store(store.clone()).build().unwrap();
    assert_eq!(numbers(&mut reader.records(), 2).await, [0, 1]);
    reader.close().await.unwrap();
    // Two of its user records are finished, but not the whole record.
    let reader = consumer(&kinesis).store(store).deaggregate(false).build().unwrap();
    let mut records = reader.records();
    let record = next(&mut records).await;
    assert_eq!(record.data(), packed(0..5));
    assert_eq!((record.sequence_number(), record.sub_sequence_number()), (&whole, 0));
    assert_silent(&mut records).await;
}

#[tokio::test(start_paused = true)]
async fn corrupt_aggregate_is_delivered_as_a_plain_record() {
    let (kinesis, orders) = orders(1);
    let mut broken = packed(0..5);
    *broken.last_mut().unwrap() ^= 1;
    orders.shard(0).put(broken.clone());
    put(&orders.shard(0), 5..6);
    let mut records = consumer(&kinesis).build().unwrap().records();
    assert_eq!(next(&mut records).await.data(), broken);
    assert_eq!(numbers(&mut records, 1).await, [5]);
}

/// None of the aggregates has a user record for the shard, and they are more than a recursive
/// function could skip without a stack overflow.
#[tokio::test(start_paused = true)]
async fn thousands_of_aggregates_of_another_shard_are_skipped() {
    let (kinesis, orders) = orders(2);
    let other = |kinesis: &Kinesis| {
        let mut keys = (0..).map(|number| number.to_string());
        // A key of the first shard, so that the second shard owns none of the user records.
        let scratch = kinesis.create_stream("scratch", 2);
        keys.find(|key| {
            scratch.put(key, "");
            !scratch.shard(0).sequence_numbers().is_empty()
        })
    };
    let key = other(&kinesis).unwrap();
    let shard = orders.shard(1);
    let nothing = aggregate([(key, "nothing")]);
    for _ in 0..5000 {
        shard.put(nothing.clone());
    }
    let last = shard.put("7");
    for _ in 0..5000 {
        shard.put(nothing.clone());
    }
    let store = RecordingStore::default();
    let reader = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = reader.records();
    assert_eq!(numbers(&mut records, 1).await, [7]);
    assert_silent(&mut records).await;
    assert_eq!(store.position(1).await, Some(format!("AFTER_SEQUENCE_NUMBER:{last}")));
}
