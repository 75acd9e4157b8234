//! Shards without new records for longer than the retention period: a loss is reported only where
//! records arrived.

use std::time::{Duration, UNIX_EPOCH};

use futures::StreamExt;
use kinestream::testing::{Kinesis, Outcome, Stream};
use kinestream::{Checkpoint, OnTrimmed, StartingPosition};
use tokio::time::{sleep, timeout};

use crate::losses::retention::{HOUR, gaps, numbers, sources, stop_after};
use crate::store::recording_store::RecordingStore;
use crate::{consumer, orders};

/// Nothing is lost if nothing arrived.
#[tokio::test(start_paused = true)]
async fn quiet_shard_is_not_reported_as_trimmed() {
    for source in 0..2 {
        for accepted in [false, true] {
            let (kinesis, orders) = orders(1);
            kinesis.set_trimmed_numbers_accepted(accepted);
            kinesis.set_retention(24 * HOUR);
            let store = RecordingStore::default();
            let builder = sources(&kinesis)[source].clone().store(store.clone());
            let reader = builder.clone().build().unwrap();
            let mut events = reader.events();
            let mut records = reader.records();
            orders.shard(0).put("0");
            numbers(&mut records, 0..1).await;
            // The stream is polled all the time, and quiet for longer than the retention period.
            let quiet = timeout(26 * HOUR, records.next()).await;
            assert!(quiet.is_err(), "source {source}, accepted {accepted}: {quiet:?}");
            assert_eq!(gaps(&mut events), []);
            let stored = store.position(0).await.unwrap();
            assert!(stored.starts_with("CAUGHT_UP:"), "{stored}");
            drop(records);
            reader.close().await.unwrap();
            // Records that arrive while no reader runs are read within retention.
            sleep(2 * HOUR).await;
            orders.shard(0).put("1");
            sleep(20 * HOUR).await;
            let reader = builder.clone().build().unwrap();
            let mut records = reader.records();
            numbers(&mut records, 1..2).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn empty_responses_after_a_restart_are_no_loss() {
    let empty = r#"{"Records":[],"NextShardIterator":"next","MillisBehindLatest":0}"#;
    for policy in [OnTrimmed::Fail, OnTrimmed::TrimHorizon, OnTrimmed::Latest] {
        for wrong in 0..5 {
            let (kinesis, orders) = orders(1);
            let builder = consumer(&kinesis).store(RecordingStore::default()).on_trimmed(policy);
            let reader = builder.clone().build().unwrap();
            let mut records = reader.records();
            (0..3).for_each(|record: u32| drop(orders.shard(0).put(record.to_string())));
            numbers(&mut records, 0..3).await;
            drop(records);
            reader.close().await.unwrap();
            (3..5).for_each(|record: u32| drop(orders.shard(0).put(record.to_string())));
            let answer = Outcome::Garbled { status: 200, body: empty.to_owned() };
            kinesis.next_calls("GetRecords", wrong, answer);
            let reader = builder.build().unwrap();
            let mut events = reader.events();
            let mut records = reader.records();
            // The last record was not finished.
            numbers(&mut records, 2..5).await;
            assert_eq!(gaps(&mut events), [], "{policy:?}, {wrong} empty answers");
        }
    }
}

/// Reads a record, polls a quiet shard for a while, stops for 30 hours, and reads on. Returns the
/// number of reported gaps.
async fn returns_after_30_hours(kinesis: &Kinesis, orders: &Stream, accepted: bool) -> usize {
    kinesis.set_trimmed_numbers_accepted(accepted);
    let builder =
        consumer(kinesis).store(RecordingStore::default()).on_trimmed(OnTrimmed::TrimHorizon);
    let builder = builder.interval(Duration::from_secs(60)).discovery_interval(HOUR);
    let reader = builder.clone().build().unwrap();
    let mut records = reader.records();
    orders.shard(0).put("0");
    numbers(&mut records, 0..1).await;
    // Longer than any of the retention periods.
    stop_after(50 * HOUR, reader, records).await;
    let first = kinesis.call_count();
    sleep(30 * HOUR).await;
    orders.shard(0).put("1");
    let reader = builder.build().unwrap();
    let mut events = reader.events();
    let mut records = reader.records();
    numbers(&mut records, 1..2).await;
    let calls = kinesis.calls_from(first);
    let summaries = calls.iter().filter(|call| call.operation == "DescribeStreamSummary");
    let count = summaries.count();
    assert!((1..=2).contains(&count), "expected one lookup for each placement: {count}");
    gaps(&mut events).len()
}

#[tokio::test(start_paused = true)]
async fn quiet_shard_is_checked_against_the_retention_period_of_the_stream() {
    for accepted in [false, true] {
        let (kinesis, orders) = orders(1);
        kinesis.set_retention(48 * HOUR);
        let gaps = returns_after_30_hours(&kinesis, &orders, accepted).await;
        assert_eq!(gaps, 0, "accepted: {accepted}, expected no gap: 30 hours are within two days");
        let (kinesis, orders) = crate::orders(1);
        kinesis.set_retention(24 * HOUR);
        let gaps = returns_after_30_hours(&kinesis, &orders, accepted).await;
        assert_eq!(gaps, 1, "accepted: {accepted}, expected a gap: records of 6 hours may be lost");
    }
}

/// The permission to look up the period is optional. Without it, the shortest retention period
/// applies.
#[tokio::test(start_paused = true)]
async fn denied_period_lookup_falls_back_to_24_hours() {
    let (kinesis, orders) = orders(1);
    kinesis.set_retention(48 * HOUR);
    kinesis.on_call(|call| match call.operation.as_str() {
        "DescribeStreamSummary" => crate::denied(),
        _ => Outcome::Served,
    });
    assert_eq!(returns_after_30_hours(&kinesis, &orders, true).await, 1);
}

/// The lookup is retried, and no loss is reported until the period is known.
#[tokio::test(start_paused = true)]
async fn summary_without_a_retention_period_is_no_loss() {
    for summary in ["{}", r#"{"StreamDescriptionSummary":{"StreamName":"orders"}}"#] {
        let (kinesis, orders) = orders(1);
        kinesis.set_retention(168 * HOUR);
        let builder = consumer(&kinesis).store(RecordingStore::default());
        let builder = builder.interval(Duration::from_secs(60)).discovery_interval(HOUR);
        let reader = builder.clone().build().unwrap();
        let records = reader.records();
        stop_after(HOUR, reader, records).await;
        orders.shard(0).put("0");
        sleep(30 * HOUR).await;
        let wrong = Outcome::Garbled { status: 200, body: summary.to_owned() };
        kinesis.next_calls("DescribeStreamSummary", 2, wrong);
        let reader = builder.build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        numbers(&mut records, 0..1).await;
        assert_eq!(gaps(&mut events), []);
    }
}

/// All responses but one are empty and behind the tip.
#[tokio::test(start_paused = true)]
async fn single_response_at_the_tip_does_not_move_the_start_of_a_lagging_shard() {
    let (kinesis, _orders) = orders(1);
    let began = tokio::time::Instant::now();
    let mut has_been_at_tip = false;
    kinesis.on_call(move |call| {
        if call.operation != "GetRecords" {
            return Outcome::Served;
        }
        let is_tip = began.elapsed() > Duration::from_secs(90) && !has_been_at_tip;
        has_been_at_tip |= is_tip;
        let lag = if is_tip { 0 } else { 5_000_000 };
        let body =
            format!(r#"{{"Records":[],"NextShardIterator":"next","MillisBehindLatest":{lag}}}"#);
        Outcome::Garbled { status: 200, body }
    });
    let store = RecordingStore::default();
    let start = StartingPosition::AtTimestamp(kinesis.now() - HOUR);
    let builder = consumer(&kinesis).store(store.clone()).starting_position(start);
    let reader = builder.build().unwrap();
    let mut records = reader.records();
    let quiet = timeout(Duration::from_secs(180), records.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let stored = store.position(0).await;
    assert!(stored.as_ref().is_none_or(|at| !at.starts_with("CAUGHT_UP:")), "{stored:?}");
}

#[tokio::test(start_paused = true)]
async fn quiet_shard_is_stored_rarely() {
    let (kinesis, orders) = orders(1);
    let store = RecordingStore::default();
    let reader = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = reader.records();
    orders.shard(0).put("0");
    numbers(&mut records, 0..1).await;
    let quiet = timeout(50 * Duration::from_secs(1), records.next()).await;
    assert!(quiet.is_err());
    assert!(store.position(0).await.unwrap().starts_with("AFTER_SEQUENCE_NUMBER:"));
    let before = store.saves().len();
    let quiet = timeout(HOUR, records.next()).await;
    assert!(quiet.is_err());
    let saves = store.saves().len() - before;
    assert!((5..8).contains(&saves), "{saves} saves in an hour");
}

/// Stores the starting position as a time, and starts again after that time has left retention. No
/// record is finished before. Returns the number of reported gaps.
async fn gaps_after_stored_start(start: StartingPosition, is_denied: bool) -> usize {
    let (kinesis, orders) = orders(1);
    kinesis.set_retention(24 * HOUR);
    kinesis.on_call(move |call| match call.operation.as_str() {
        "DescribeStreamSummary" if is_denied => crate::denied(),
        _ => Outcome::Served,
    });
    let builder = consumer(&kinesis).store(RecordingStore::default()).starting_position(start);
    let builder = builder.on_trimmed(OnTrimmed::TrimHorizon);
    let reader = builder.clone().build().unwrap();
    let records = reader.records();
    stop_after(Duration::from_secs(10), reader, records).await;
    orders.shard(0).put("lost");
    sleep(30 * HOUR).await;
    orders.shard(0).put("1");
    let reader = builder.build().unwrap();
    let mut events = reader.events();
    let mut records = reader.records();
    numbers(&mut records, 1..2).await;
    gaps(&mut events).len()
}

#[tokio::test(start_paused = true)]
async fn stored_start_out_of_retention_is_reported() {
    assert_eq!(gaps_after_stored_start(StartingPosition::Latest, false).await, 1);
    assert_eq!(
        gaps_after_stored_start(StartingPosition::Latest, true).await,
        0,
        "expected no gap: the period is unknown"
    );
    let week_before = UNIX_EPOCH + 24 * HOUR;
    let start = StartingPosition::AtTimestamp(week_before);
    assert_eq!(
        gaps_after_stored_start(start, false).await,
        1,
        "expected a gap: a later record is lost"
    );
    assert_eq!(
        gaps_after_stored_start(start, true).await,
        0,
        "expected no gap: the period is unknown"
    );
}

/// Returns the gaps that a reader reports which starts when its position is so old. No record was read
/// before.
async fn gaps_at_age(age: Duration) -> usize {
    let (kinesis, orders) = orders(1);
    kinesis.set_retention(24 * HOUR);
    let store = RecordingStore::default();
    let builder = consumer(&kinesis).store(store.clone()).on_trimmed(OnTrimmed::TrimHorizon);
    let reader = builder.clone().build().unwrap();
    let records = reader.records();
    stop_after(HOUR, reader, records).await;
    let stored: Checkpoint = store.position(0).await.unwrap().parse().unwrap();
    let Checkpoint::CaughtUp { until, .. } = stored else { panic!("{stored}") };
    sleep((until + age).duration_since(kinesis.now()).unwrap()).await;
    orders.shard(0).put("1");
    let reader = builder.build().unwrap();
    let mut events = reader.events();
    let mut records = reader.records();
    numbers(&mut records, 1..2).await;
    gaps(&mut events).len()
}

/// Without any record, only the stored time shows that records may be lost.
#[tokio::test(start_paused = true)]
async fn caught_up_position_out_of_retention_is_reported() {
    for (age, expected) in [(20 * HOUR, 0), (30 * HOUR, 1)] {
        assert_eq!(gaps_at_age(age).await, expected, "after {age:?}");
    }
}

/// Arrival times come from hosts with clocks that differ by up to five minutes. A record that arrived
/// just after the stored time may have an earlier arrival time, and then it has left retention.
#[tokio::test(start_paused = true)]
async fn position_within_five_minutes_of_the_retention_period_is_reported() {
    for (minutes, expected) in [(54, 0), (56, 1)] {
        let age = 23 * HOUR + minutes * Duration::from_secs(60);
        assert_eq!(gaps_at_age(age).await, expected, "after {age:?}");
    }
}
