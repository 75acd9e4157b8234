//! Responses that are well formed and wrong: a shard ends only with proof.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::testing::{Interruption, Kinesis, Outcome, WrongListing};
use kinestream::{
    ConsumerBuilder, Error, ErrorKind, Event, OnTrimmed, Records, ShardId, ShardState, WireFormat,
};
use tokio::time::{Instant, sleep, timeout};

use crate::store::recording_store::RecordingStore;
use crate::{calls, consumer, next, number, orders};

const SECOND: Duration = Duration::from_secs(1);

fn empty() -> Outcome {
    Outcome::Garbled { status: 200, body: "{}".into() }
}

/// Returns the builder of a polling consumer and that of one with enhanced fan-out.
fn sources(kinesis: &Kinesis) -> [ConsumerBuilder; 2] {
    [consumer(kinesis), consumer(kinesis).fan_out("billing")]
}

/// Returns the operation of a source, and an outcome that ends the shard without proof.
fn unproven(source: usize) -> (&'static str, Outcome) {
    match source {
        0 => ("GetRecords", Outcome::without(["NextShardIterator", "ChildShards"])),
        _ => ("SubscribeToShard", Outcome::without(["ContinuationSequenceNumber", "ChildShards"])),
    }
}

async fn numbers(records: &mut Records, numbers: std::ops::Range<usize>) {
    for expected in numbers {
        assert_eq!(number(&next(records).await), expected);
    }
}

/// Returns the next error, which must arrive within ten minutes and before any record.
async fn error(records: &mut Records) -> Error {
    let next = timeout(600 * SECOND, records.next()).await.expect("an error within ten minutes");
    next.expect("an open stream").expect_err("no record")
}

#[tokio::test(start_paused = true)]
async fn empty_response_does_not_end_an_open_shard() {
    for times in [1, 2, 5] {
        let (kinesis, orders) = orders(1);
        let store = RecordingStore::default();
        // A response that is not CBOR would be requested again by JSON.
        let builder = consumer(&kinesis).wire_format(WireFormat::Json);
        let consumer = builder.store(store.clone()).build().unwrap();
        let mut events = consumer.events();
        let mut records = consumer.records();
        orders.shard(0).put("0");
        numbers(&mut records, 0..1).await;
        kinesis.next_calls("GetRecords", times, empty());
        orders.shard(0).put("1");
        numbers(&mut records, 1..2).await;
        sleep(5 * SECOND).await;
        assert!(store.position(0).await.unwrap().starts_with("AFTER_SEQUENCE_NUMBER:"));
        let mut retried = 0;
        while let Some(Some(event)) = events.next().now_or_never() {
            assert!(!matches!(event, Event::ShardEnded { .. }), "{event:?}");
            retried += usize::from(matches!(event, Event::Retried { .. }));
        }
        assert_eq!(retried, times);
        assert_eq!(kinesis.violations(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn response_without_next_position_does_not_end_an_open_shard() {
    for source in 0..2 {
        let (kinesis, orders) = orders(1);
        let (operation, outcome) = unproven(source);
        let consumer = sources(&kinesis)[source].clone().build().unwrap();
        let mut records = consumer.records();
        for number in 0..4 {
            orders.shard(0).put(number.to_string());
        }
        kinesis.next_calls(operation, 3, outcome);
        numbers(&mut records, 0..4).await;
        sleep(30 * SECOND).await;
        orders.shard(0).put("4");
        numbers(&mut records, 4..5).await;
        assert_eq!(kinesis.violations(), [""; 0], "{operation}");
    }
}

#[tokio::test(start_paused = true)]
async fn shard_with_persistent_unproven_end_is_released_reported_once_and_retried() {
    for source in 0..2 {
        let (kinesis, orders) = orders(1);
        let (operation, outcome) = unproven(source);
        kinesis.next_calls(operation, 10_000, outcome);
        let consumer = sources(&kinesis)[source].clone().build().unwrap();
        let mut records = consumer.records();
        let began = Instant::now();
        let failure = error(&mut records).await;
        assert_eq!(failure.kind(), ErrorKind::Rejected);
        assert_eq!(failure.shard_id().map(ShardId::as_str), Some("shardId-000000000000"));
        assert!(began.elapsed() >= 60 * SECOND, "{:?}", began.elapsed());
        let id = orders.shard(0).id();
        let status = async || consumer.status().await.unwrap().shards.remove(&id).unwrap();
        sleep(SECOND).await;
        assert_eq!(status().await.owner, None, "expected the lease to be released");
        for _ in 0..60 {
            let quiet = timeout(10 * SECOND, records.next()).await;
            assert!(quiet.is_err(), "reported once: {quiet:?}");
            let shard = status().await;
            assert_eq!(shard.state, ShardState::Failed);
            assert_eq!(shard.failure.map(|failure| failure.kind), Some(ErrorKind::Rejected));
        }
        let before = calls(&kinesis, operation).len();
        assert!(before < 200, "{before} calls of {operation} in eleven minutes");
        kinesis.on_call(|_| Outcome::Served);
        let quiet = timeout(420 * SECOND, records.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        assert_eq!(
            status().await.state,
            ShardState::Reading,
            "expected empty responses to clear the failure"
        );
        orders.shard(0).put("0");
        numbers(&mut records, 0..1).await;
    }
}

/// Only a listing can prove the end, and listings stay denied or incomplete.
#[tokio::test(start_paused = true)]
async fn closed_shard_is_released_and_reported_while_its_listing_fails() {
    let denied = crate::denied();
    let incomplete = Outcome::Garbled { status: 200, body: "{}".to_owned() };
    for source in 0..2 {
        for failing in [&denied, &incomplete] {
            let (kinesis, orders) = orders(1);
            kinesis.set_child_shards(false);
            let consumer = sources(&kinesis)[source].clone().build().unwrap();
            let mut records = consumer.records();
            let quiet = timeout(10 * SECOND, records.next()).await;
            assert!(quiet.is_err(), "{quiet:?}");
            let failing = failing.clone();
            kinesis.on_call(move |call| match &*call.operation {
                "ListShards" => failing.clone(),
                _ => Outcome::Served,
            });
            orders.shard(0).split()[0].put("0");
            let (id, mut is_released) = (orders.shard(0).id(), false);
            for _ in 0..180 {
                if let Ok(next) = timeout(SECOND, records.next()).await {
                    let error = next.unwrap().unwrap_err();
                    assert!(error.to_string().contains("ListShards"), "{error}");
                }
                let status = consumer.status().await.unwrap().shards.remove(&id).unwrap();
                is_released |= status.owner.is_none() && status.failure.is_some();
            }
            assert!(is_released, "source {source}");
            kinesis.on_call(|_| Outcome::Served);
            let record = timeout(600 * SECOND, records.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(number(&record), 0);
        }
    }
}

/// Records still arrive, so the lease is kept.
#[tokio::test(start_paused = true)]
async fn shard_is_read_on_while_responses_lack_the_next_position() {
    let (kinesis, orders) = orders(1);
    let (operation, outcome) = unproven(0);
    kinesis.next_calls(operation, 10_000, outcome);
    for number in 0..300 {
        orders.shard(0).put(number.to_string());
    }
    // Each response holds the last record of the previous response and one new record.
    let consumer = consumer(&kinesis).limit(2).build().unwrap();
    let mut events = consumer.events();
    let mut records = consumer.records();
    let (mut read, mut kinds) = (0, Vec::new());
    while read < 300 {
        match timeout(600 * SECOND, records.next()).await.unwrap().unwrap() {
            Ok(record) => {
                assert_eq!(number(&record), read);
                read += 1;
            }
            Err(error) => kinds.push(error.kind()),
        }
    }
    assert_eq!(kinds, [ErrorKind::Rejected], "reported once");
    while let Some(Some(event)) = events.next().now_or_never() {
        assert!(!matches!(event, Event::ShardFailed { .. }), "{event:?}");
    }
}

/// Sets of members that an incomplete response lacks.
const MISSING_MEMBERS: [&[&str]; 5] = [
    &["NextShardIterator", "ContinuationSequenceNumber", "ChildShards"],
    &["NextShardIterator", "ContinuationSequenceNumber", "ChildShards", "MillisBehindLatest"],
    &[
        "NextShardIterator",
        "ContinuationSequenceNumber",
        "ChildShards",
        "MillisBehindLatest",
        "Records",
    ],
    &["Records"],
    &["Records", "MillisBehindLatest"],
];

const READS: [&str; 2] = ["GetRecords", "SubscribeToShard"];

/// Incomplete responses for a closed shard skip none of its records.
#[tokio::test(start_paused = true)]
async fn closed_shard_with_unread_records_is_read_to_its_end() {
    for (source, operation) in READS.into_iter().enumerate() {
        for missing in MISSING_MEMBERS {
            for times in 0..4 {
                let (kinesis, orders) = orders(1);
                kinesis.set_child_shards(false);
                for number in 0..6 {
                    orders.shard(0).put(number.to_string());
                }
                let [left, _right] = orders.shard(0).split();
                left.put("6");
                let wrong = Outcome::without(missing.iter().copied());
                kinesis.next_calls(operation, times, wrong);
                let builder = sources(&kinesis)[source].clone();
                let consumer = builder.limit(2).discovery_interval(SECOND).build().unwrap();
                let mut records = consumer.records();
                numbers(&mut records, 0..7).await;
            }
        }
    }
}

/// Records missing from a response are fetched again, and none is reported as lost.
#[tokio::test(start_paused = true)]
async fn incomplete_response_loses_no_record_of_an_open_shard() {
    for (source, operation) in READS.into_iter().enumerate() {
        for missing in MISSING_MEMBERS {
            for times in 1..4 {
                let (kinesis, orders) = orders(1);
                let store = RecordingStore::default();
                let builder = sources(&kinesis)[source].clone().store(store);
                orders.shard(0).put("0");
                let consumer = builder.clone().build().unwrap();
                let mut records = consumer.records();
                numbers(&mut records, 0..1).await;
                // The poll for the next record acknowledges this one.
                let waiting = timeout(5 * SECOND, records.next()).await;
                assert!(waiting.is_err(), "{waiting:?}");
                drop(records);
                consumer.close().await.unwrap();
                for number in 1..4 {
                    orders.shard(0).put(number.to_string());
                }
                sleep(10 * SECOND).await;
                let wrong = Outcome::without(missing.iter().copied());
                kinesis.next_calls(operation, times, wrong);
                let mut records = builder.build().unwrap().records();
                numbers(&mut records, 1..4).await;
                assert_eq!(kinesis.violations(), [""; 0]);
            }
        }
    }
}

/// With a limit of one, each response holds only the record that the position is after, and proves
/// nothing about the next record.
#[tokio::test(start_paused = true)]
async fn closed_shard_is_read_to_its_end_when_responses_repeat_read_records() {
    let (kinesis, orders) = orders(1);
    for number in 0..3 {
        orders.shard(0).put(number.to_string());
    }
    let [left, _right] = orders.shard(0).split();
    left.put("3");
    let (operation, wrong) = unproven(0);
    kinesis.next_calls(operation, 60, wrong);
    let builder = consumer(&kinesis).limit(1).discovery_interval(SECOND);
    let mut records = builder.build().unwrap().records();
    numbers(&mut records, 0..4).await;
}

#[tokio::test(start_paused = true)]
async fn shard_that_is_briefly_not_found_is_retried() {
    for source in 0..2 {
        for operation in ["GetShardIterator", "GetRecords", "SubscribeToShard"] {
            let (kinesis, orders) = orders(1);
            let began = Instant::now();
            let named = operation.to_owned();
            kinesis.on_call(move |call| {
                if call.operation == named && began.elapsed() < 20 * SECOND {
                    return Outcome::failed(400, "ResourceNotFoundException", "not found");
                }
                Outcome::Served
            });
            orders.shard(0).put("0");
            let mut records = sources(&kinesis)[source].clone().build().unwrap().records();
            numbers(&mut records, 0..1).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn listed_shard_that_is_not_found_is_reported_once_and_retried() {
    let (kinesis, orders) = orders(1);
    kinesis.next_calls(
        "GetRecords",
        1000,
        Outcome::failed(400, "ResourceNotFoundException", "not found"),
    );
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    assert_eq!(error(&mut records).await.kind(), ErrorKind::NotFound);
    let quiet = timeout(600 * SECOND, records.next()).await;
    assert!(quiet.is_err(), "reported once: {quiet:?}");
    kinesis.on_call(|_| Outcome::Served);
    orders.shard(0).put("0");
    numbers(&mut records, 0..1).await;
}

/// For less than a discovery interval, listings lack the shard, and calls for it fail with
/// `ResourceNotFoundException`. The shard returns to the listings before the calls find it, or after.
#[tokio::test(start_paused = true)]
async fn shard_that_is_briefly_missing_loses_no_record() {
    for (source, listed_after) in [(0, 75), (0, 150), (1, 75), (1, 150)] {
        for policy in [OnTrimmed::Fail, OnTrimmed::TrimHorizon] {
            let (kinesis, orders) = orders(1);
            for number in 0..4 {
                orders.shard(0).put(number.to_string());
            }
            let builder = sources(&kinesis)[source].clone().on_trimmed(policy).limit(1);
            let builder = builder.prefetch(0).discovery_interval(600 * SECOND);
            kinesis.set_event_records(1);
            let consumer = builder.build().unwrap();
            let mut events = consumer.events();
            let mut records = consumer.records();
            numbers(&mut records, 0..1).await;
            orders.shard(0).split();
            let (began, shard) = (Instant::now(), orders.shard(0).id());
            kinesis.on_call(move |call| match call.operation.as_str() {
                "ListShards" if began.elapsed() < listed_after * SECOND => {
                    Outcome::Mislisted(WrongListing::Without(shard.clone()))
                }
                "GetRecords" | "GetShardIterator" | "SubscribeToShard"
                    if began.elapsed() < 100 * SECOND =>
                {
                    Outcome::failed(400, "ResourceNotFoundException", "not found")
                }
                _ => Outcome::Served,
            });
            orders.shard(0).interrupt(&Interruption::Resets);
            numbers(&mut records, 1..4).await;
            while let Some(Some(event)) = events.next().now_or_never() {
                let case = format!("source {source}, listed after {listed_after} s");
                assert!(!matches!(event, Event::Gap { .. }), "{case}: {event:?}");
            }
        }
    }
}

/// Reads the first record of a shard and then lets the shard expire with unread records.
async fn expire_while_read(
    source: usize,
    on_trimmed: OnTrimmed,
) -> (Kinesis, kinestream::Consumer, Records) {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let builder = sources(&kinesis)[source].clone().on_trimmed(on_trimmed).limit(1).prefetch(0);
    let consumer = builder.build().unwrap();
    let mut records = consumer.records();
    numbers(&mut records, 0..1).await;
    // With enhanced fan-out, the reader learns of this record at once.
    orders.shard(0).put("1");
    let [left, _right] = orders.shard(0).split();
    left.put("2");
    orders.shard(0).trim(2);
    orders.shard(0).expire();
    (kinesis, consumer, records)
}

#[tokio::test(start_paused = true)]
async fn shard_that_expires_while_read_follows_on_trimmed() {
    for source in 0..2 {
        let (_kinesis, _consumer, mut records) = expire_while_read(source, OnTrimmed::Fail).await;
        let failure = error(&mut records).await;
        assert_eq!(failure.kind(), ErrorKind::Trimmed, "{failure}");
        for policy in [OnTrimmed::TrimHorizon, OnTrimmed::Latest] {
            let (_kinesis, consumer, mut records) = expire_while_read(source, policy).await;
            let mut events = consumer.events();
            numbers(&mut records, 2..3).await;
            let mut gaps = 0;
            while let Some(Some(event)) = events.next().now_or_never() {
                gaps += usize::from(matches!(event, Event::Gap { .. }));
            }
            assert_eq!(gaps, 1, "source {source}");
        }
    }
}

/// The records before the invalid one are delivered, and none after it is skipped.
#[tokio::test(start_paused = true)]
async fn record_with_invalid_sequence_number_is_fetched_again() {
    let (kinesis, orders) = orders(1);
    let first = orders.shard(0).put("0");
    let record = |place: &str, data| {
        format!(r#"{{"SequenceNumber":"{place}","Data":"{data}","PartitionKey":"k"}}"#)
    };
    let answer = |records: &[String]| Outcome::Garbled {
        status: 200,
        body: format!(r#"{{"Records":[{}],"NextShardIterator":"next"}}"#, records.join(",")),
    };
    let invalid = record("two", "MQ==");
    let mixed = answer(&[record(first.as_str(), "MA=="), invalid.clone()]);
    kinesis.next_calls("GetRecords", 1, mixed);
    let consumer = consumer(&kinesis).build().unwrap();
    let mut events = consumer.events();
    let mut records = consumer.records();
    numbers(&mut records, 0..1).await;
    orders.shard(0).put("1");
    numbers(&mut records, 1..2).await;
    let mut retried = 0;
    while let Some(Some(event)) = events.next().now_or_never() {
        retried += usize::from(matches!(event, Event::Retried { .. }));
    }
    assert_eq!(retried, 1);
    // A persistent failure is reported once.
    kinesis.next_calls("GetRecords", 10_000, answer(&[invalid]));
    let failure = error(&mut records).await;
    assert_eq!(failure.kind(), ErrorKind::Rejected);
    kinesis.on_call(|_| Outcome::Served);
    orders.shard(0).put("2");
    numbers(&mut records, 2..3).await;
}
