//! Sequence numbers that Kinesis rejects although their records are retained.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::testing::{Kinesis, Outcome, Stream};
use kinestream::{CheckpointOn, ConsumerBuilder, Event, OnTrimmed};
use tokio::time::{sleep, timeout};

use crate::losses::retention::{HOUR, gaps, numbers, sources};
use crate::store::recording_store::RecordingStore;
use crate::{consumer, next, number, orders};

pub(crate) fn refused() -> Outcome {
    let message = "The sequence number is not that of a record of the shard";
    Outcome::failed(400, "InvalidArgumentException", message)
}

/// Puts five records, and reads and stores three of them.
async fn read_three_of_five(kinesis: &Kinesis, orders: &Stream, builder: &ConsumerBuilder) {
    for number in 0..5 {
        orders.shard(0).put(number.to_string());
    }
    let reader = builder.clone().checkpoint_on(CheckpointOn::Ack).build().unwrap();
    let mut records = reader.records();
    for expected in 0..3 {
        let record = next(&mut records).await;
        assert_eq!(number(&record), expected);
        record.ack();
    }
    reader.close().await.unwrap();
    drop(records);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(kinesis.violations(), [""; 0]);
}

/// The oldest record is withheld until it is reported as lost.
#[tokio::test(start_paused = true)]
async fn false_loss_delivers_no_record_twice() {
    let (kinesis, orders) = orders(1);
    let builder =
        consumer(&kinesis).store(RecordingStore::default()).on_trimmed(OnTrimmed::TrimHorizon);
    read_three_of_five(&kinesis, &orders, &builder).await;
    let empty = r#"{"Records":[],"NextShardIterator":"next","MillisBehindLatest":0}"#;
    let is_concluded = Arc::new(AtomicBool::new(false));
    kinesis.on_call({
        let is_concluded = Arc::clone(&is_concluded);
        move |call| match call.operation.as_str() {
            "GetRecords" if !is_concluded.load(Ordering::Relaxed) => {
                Outcome::Garbled { status: 200, body: empty.to_owned() }
            }
            _ => Outcome::Served,
        }
    });
    let reader = builder.build().unwrap();
    let mut events = reader.events();
    let mut records = reader.records();
    let mut reported = Vec::new();
    while reported.is_empty() {
        let quiet = timeout(Duration::from_millis(50), records.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        reported = gaps(&mut events);
    }
    is_concluded.store(true, Ordering::Relaxed);
    numbers(&mut records, 3..5).await;
    reported.extend(gaps(&mut events));
    assert_eq!(reported.len(), 1, "expected one reported loss");
}

#[tokio::test(start_paused = true)]
async fn rejected_number_of_a_retained_record_is_no_loss() {
    let refused = "The sequence number is not that of a record of the shard";
    for policy in [OnTrimmed::Fail, OnTrimmed::TrimHorizon, OnTrimmed::Latest] {
        for (source, operation) in
            [(0, "GetShardIterator"), (0, "GetRecords"), (1, "SubscribeToShard")]
        {
            for times in 1..5 {
                let (kinesis, orders) = orders(1);
                let builder = sources(&kinesis)[source].clone().on_trimmed(policy);
                let builder = builder.store(RecordingStore::default());
                read_three_of_five(&kinesis, &orders, &builder).await;
                let mut left = times;
                kinesis.on_call(move |call| {
                    if call.operation == operation && left > 0 {
                        left -= 1;
                        return Outcome::failed(400, "InvalidArgumentException", refused);
                    }
                    Outcome::Served
                });
                let reader = builder.build().unwrap();
                let mut events = reader.events();
                let mut records = reader.records();
                numbers(&mut records, 3..5).await;
                assert_eq!(gaps(&mut events), [], "{policy:?}, {operation}, {times} refusals");
            }
        }
    }
}

/// Each placement at the oldest retained record brings enough finished records to remove the doubt
/// about the end of the shard, if they counted.
#[tokio::test(start_paused = true)]
async fn closed_shard_with_a_rejected_number_is_read_to_an_end_without_children() {
    for (source, operation) in ["GetShardIterator", "SubscribeToShard"].into_iter().enumerate() {
        let (kinesis, orders) = orders(1);
        kinesis.set_child_shards(false);
        kinesis.set_event_records(1);
        let builder = sources(&kinesis)[source].clone().store(RecordingStore::default()).limit(1);
        read_three_of_five(&kinesis, &orders, &builder).await;
        orders.shard(0).split()[0].put("5");
        let parent = orders.shard(0).id();
        // Each time the shard is read again, Kinesis rejects the number, returns the oldest record,
        // rejects the number again, and starts at the oldest record.
        let mut placements = 0;
        kinesis.on_call(move |call| {
            if call.operation != operation || call.shard_id.as_ref() != Some(&parent) {
                return Outcome::Served;
            }
            placements += 1;
            if placements % 2 == 1 { refused() } else { Outcome::Served }
        });
        let reader = builder.build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        numbers(&mut records, 3..6).await;
        let mut retried = 0;
        while let Some(Some(event)) = events.next().now_or_never() {
            retried += usize::from(matches!(event, Event::Retried { .. }));
        }
        assert!(
            retried >= 2,
            "source {source}: expected an event for each of two rejections, got {retried}"
        );
    }
}

/// Each iterator expires after two responses of one record each.
#[tokio::test(start_paused = true)]
async fn rejected_number_with_expiring_iterators_loses_no_record() {
    let (kinesis, orders) = orders(1);
    let builder = consumer(&kinesis).store(RecordingStore::default()).limit(1);
    let oldest = kinesis.now() - 5 * HOUR;
    for number in 0..25 {
        let arrival = oldest + Duration::from_secs(number * 600);
        orders.shard(0).put_at(arrival, number.to_string());
    }
    let reader = builder.clone().build().unwrap();
    let mut records = reader.records();
    numbers(&mut records, 0..20).await;
    drop(records);
    reader.close().await.unwrap();
    sleep(Duration::from_secs(10)).await;
    let (mut placements, mut answers) = (0, 0);
    kinesis.on_call(move |call| match call.operation.as_str() {
        "GetShardIterator" => {
            (placements, answers) = (placements + 1, 0);
            if placements == 1 || placements == 3 { refused() } else { Outcome::Served }
        }
        "GetRecords" => {
            answers += 1;
            if answers > 2 {
                return Outcome::failed(400, "ExpiredIteratorException", "expired");
            }
            Outcome::Served
        }
        _ => Outcome::Served,
    });
    let reader = builder.build().unwrap();
    let mut records = reader.records();
    // The last record was not finished.
    numbers(&mut records, 19..25).await;
}
