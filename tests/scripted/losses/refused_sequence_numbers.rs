//! Sequence numbers that Kinesis rejects although their records are retained.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::Event;
use kinestream::testing::Outcome;
use tokio::time::sleep;

use crate::losses::retention::{HOUR, numbers, read_three_of_five, sources};
use crate::store::recording_store::RecordingStore;
use crate::{consumer, orders};

pub(crate) fn refused() -> Outcome {
    let message = "The sequence number is not that of a record of the shard";
    Outcome::failed(400, "InvalidArgumentException", message)
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
