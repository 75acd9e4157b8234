//! Detection of lost records with misleading responses and failing calls.

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Kinesis, Outcome, Stream};
use kinestream::{ConsumerBuilder, OnTrimmed, SequenceNumber};
use tokio::time::{Instant, sleep, timeout};

use crate::losses::retention::{HOUR, gaps, numbers, start_and_read_three, stop_after};
use crate::store::recording_store::RecordingStore;
use crate::{consumer, next, number, orders};

fn answer(lag: u32) -> Outcome {
    let body = format!(r#"{{"Records":[],"NextShardIterator":"next","MillisBehindLatest":{lag}}}"#);
    Outcome::Garbled { status: 200, body }
}

/// Reads three records. The server withholds two more until the shard is stored as caught up, and
/// then the first three are trimmed. Returns the sequence number of the last read record.
async fn withhold_records(
    kinesis: &Kinesis,
    orders: &Stream,
    builder: &ConsumerBuilder,
) -> SequenceNumber {
    let (reader, records) = start_and_read_three(orders, builder.clone()).await;
    kinesis.on_call(|call| match call.operation.as_str() {
        "GetRecords" => answer(0),
        _ => Outcome::Served,
    });
    for number in 3..5 {
        orders.shard(0).put(number.to_string());
    }
    stop_after(HOUR / 2, reader, records).await;
    kinesis.on_call(|_| Outcome::Served);
    orders.shard(0).trim(3);
    orders.shard(0).sequence_numbers()[2].clone()
}

#[tokio::test(start_paused = true)]
async fn withheld_records_that_latest_skips_are_reported() {
    for accepted in [false, true] {
        let (kinesis, orders) = orders(1);
        kinesis.set_trimmed_numbers_accepted(accepted);
        let store = RecordingStore::default();
        let builder = consumer(&kinesis).store(store.clone()).on_trimmed(OnTrimmed::Latest);
        let last = withhold_records(&kinesis, &orders, &builder).await;
        assert!(store.position(0).await.unwrap().starts_with("CAUGHT_UP:"));
        let reader = builder.build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        let quiet = timeout(Duration::from_secs(20), records.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        orders.shard(0).put("5");
        numbers(&mut records, 5..6).await;
        assert_eq!(gaps(&mut events), [Some(last)], "accepted: {accepted}");
    }
}

#[tokio::test(start_paused = true)]
async fn withheld_records_are_read_with_the_other_policies() {
    for accepted in [false, true] {
        for policy in [OnTrimmed::Fail, OnTrimmed::TrimHorizon] {
            let (kinesis, orders) = orders(1);
            kinesis.set_trimmed_numbers_accepted(accepted);
            let builder = consumer(&kinesis).store(RecordingStore::default()).on_trimmed(policy);
            withhold_records(&kinesis, &orders, &builder).await;
            let reader = builder.build().unwrap();
            let mut events = reader.events();
            let mut records = reader.records();
            numbers(&mut records, 3..5).await;
            assert_eq!(gaps(&mut events), [], "accepted: {accepted}, {policy:?}");
        }
    }
}

/// Stores an empty shard as caught up, puts a record, and waits for 30 hours.
async fn away_for_30_hours(
    kinesis: &Kinesis,
    orders: &Stream,
    builder: &ConsumerBuilder,
    data: &[u8],
) {
    kinesis.set_retention(168 * HOUR);
    let reader = builder.clone().build().unwrap();
    let records = reader.records();
    stop_after(HOUR, reader, records).await;
    orders.shard(0).put(data);
    sleep(30 * HOUR).await;
}

/// The first and the last failed call are more than 60 s apart, with a success between them.
#[tokio::test(start_paused = true)]
async fn loss_check_that_fails_again_after_a_success_is_no_error() {
    const FAILS_FOR: Duration = Duration::from_secs(20);
    let (kinesis, orders) = orders(1);
    let builder = consumer(&kinesis).store(RecordingStore::default());
    away_for_30_hours(&kinesis, &orders, &builder, b"0").await;
    let mut failing_since = [None; 2];
    let mut checks: Vec<Instant> = Vec::new();
    let mut expired = 0;
    kinesis.on_call(move |call| match call.operation.as_str() {
        "DescribeStreamSummary" => {
            let since = failing_since[checks.len().min(1)].get_or_insert_with(Instant::now);
            if since.elapsed() < FAILS_FOR {
                return Outcome::failed(400, "LimitExceededException", "too many");
            }
            checks.push(Instant::now());
            Outcome::Served
        }
        // A new placement is checked again, with a new call if the last lookup is old.
        "GetRecords"
            if expired < checks.len() && (expired > 0 || checks[0].elapsed() > 4 * FAILS_FOR) =>
        {
            expired += 1;
            Outcome::failed(400, "ExpiredIteratorException", "expired")
        }
        "GetRecords" if checks.len() < 2 => answer(5_000_000),
        _ => Outcome::Served,
    });
    let reader = builder.build().unwrap();
    let mut records = reader.records();
    numbers(&mut records, 0..1).await;
}

#[tokio::test(start_paused = true)]
async fn response_that_awaits_the_loss_check_counts_by_its_bytes() {
    let (kinesis, orders) = orders(1);
    let builder = consumer(&kinesis).store(RecordingStore::default());
    away_for_30_hours(&kinesis, &orders, &builder, &vec![0; 1 << 20]).await;
    (0..7).for_each(|_| drop(orders.shard(0).put(vec![0; 1 << 20])));
    let too_many = Outcome::failed(400, "LimitExceededException", "too many");
    kinesis.next_calls("DescribeStreamSummary", 3, too_many);
    let reader = builder.build().unwrap();
    let mut records = reader.records();
    for _ in 0..8 {
        next(&mut records).await;
    }
    assert_eq!(kinesis.violations(), [""; 0]);
}

/// Only a record shows whether records were lost. It arrives after 30 empty responses in a row, and
/// some lookups of the retention period fail.
#[tokio::test(start_paused = true)]
async fn intermittent_lookup_failures_do_not_block_the_next_record() {
    let (kinesis, orders) = orders(1);
    kinesis.set_trimmed_numbers_accepted(true);
    let builder =
        consumer(&kinesis).store(RecordingStore::default()).on_trimmed(OnTrimmed::TrimHorizon);
    let (reader, records) = start_and_read_three(&orders, builder.clone()).await;
    stop_after(HOUR, reader, records).await;
    sleep(30 * HOUR).await;
    orders.shard(0).put("3");
    let began = Instant::now();
    let mut answers = 0;
    kinesis.on_call(move |call| match call.operation.as_str() {
        "DescribeStreamSummary" if began.elapsed().as_secs() % 20 >= 14 => Outcome::throttled(),
        "GetShardIterator" if answers < 30 => {
            answers = 0;
            Outcome::Served
        }
        "GetRecords" if answers < 30 => {
            answers += 1;
            answer(5_000_000)
        }
        // Kinesis does not know the iterator of those responses.
        "GetRecords" if answers == 30 => {
            answers += 1;
            Outcome::failed(400, "ExpiredIteratorException", "expired")
        }
        _ => Outcome::Served,
    });
    let reader = builder.build().unwrap();
    let mut events = reader.events();
    let mut records = reader.records();
    let record = timeout(Duration::from_secs(600), records.next()).await;
    let record = record.expect("a record in time").unwrap().unwrap();
    assert_eq!((number(&record), gaps(&mut events)), (3, vec![]));
}
