//! Records that are trimmed before they are read: every loss is reported, and only real losses are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use futures::{FutureExt, StreamExt};
use kinestream::testing::{Kinesis, Outcome, Stream, WrongListing};
use kinestream::{
    CheckpointOn, Consumer, ConsumerBuilder, ErrorKind, Event, Events, OnTrimmed, Records,
    SequenceNumber, ShardPosition, StartingPosition,
};
use tokio::time::{sleep, timeout};

use crate::store::recording_store::RecordingStore;
use crate::{assert_silent, consumer, next, number, orders};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn sources(kinesis: &Kinesis) -> [ConsumerBuilder; 2] {
    let rarely = Duration::from_secs(60);
    let builder = consumer(kinesis).interval(rarely).discovery_interval(HOUR);
    [builder.clone(), builder.fan_out("billing")]
}

pub(crate) fn gaps(events: &mut Events) -> Vec<Option<SequenceNumber>> {
    let mut gaps = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        if let Event::Gap { after, .. } = event {
            gaps.push(after);
        }
    }
    gaps
}

pub(crate) async fn numbers(records: &mut Records, numbers: std::ops::Range<usize>) {
    for expected in numbers {
        assert_eq!(number(&next(records).await), expected);
    }
}

/// Starts a reader and receives three records.
pub(crate) async fn start_and_read_three(
    orders: &Stream,
    builder: ConsumerBuilder,
) -> (Consumer, Records) {
    for number in 0..3 {
        orders.shard(0).put(number.to_string());
    }
    let reader = builder.build().unwrap();
    let mut records = reader.records();
    numbers(&mut records, 0..3).await;
    (reader, records)
}

/// Polls a reader for `time` without a record, and stops it. The poll acknowledges its last record.
pub(crate) async fn stop_after(time: Duration, reader: Consumer, mut records: Records) {
    let quiet = timeout(time, records.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    drop(records);
    reader.close().await.unwrap();
}

/// Reads and stores three records, then puts four and trims the first two of them. Returns the
/// sequence number of the last read record.
async fn read_three_and_lose_two(
    kinesis: &Kinesis,
    orders: &Stream,
    builder: ConsumerBuilder,
) -> SequenceNumber {
    let (reader, records) = start_and_read_three(orders, builder).await;
    stop_after(Duration::from_secs(5), reader, records).await;
    for number in 3..7 {
        orders.shard(0).put(number.to_string());
    }
    orders.shard(0).trim(5);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(kinesis.violations(), [""; 0]);
    orders.shard(0).sequence_numbers()[2].clone()
}

#[tokio::test(start_paused = true)]
async fn trimmed_number_is_reported_whether_rejected_or_accepted() {
    for accepted in [false, true] {
        for policy in [OnTrimmed::Fail, OnTrimmed::TrimHorizon] {
            let (kinesis, orders) = orders(1);
            kinesis.set_trimmed_numbers_accepted(accepted);
            let store = RecordingStore::default();
            let builder = consumer(&kinesis).store(store.clone()).on_trimmed(policy);
            let last = read_three_and_lose_two(&kinesis, &orders, builder.clone()).await;
            let reader = builder.build().unwrap();
            let mut events = reader.events();
            let mut records = reader.records();
            if policy == OnTrimmed::Fail {
                let error = timeout(HOUR, records.next()).await.unwrap().unwrap().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Trimmed, "accepted: {accepted}");
                assert_silent(&mut records).await;
            } else {
                numbers(&mut records, 5..7).await;
                assert_eq!(gaps(&mut events), [Some(last)], "accepted: {accepted}");
            }
        }
    }
}

/// One listing wrongly shows that the shard starts at or after the named record. The next one is
/// correct.
#[tokio::test(start_paused = true)]
async fn trimmed_number_is_reported_despite_a_wrong_start_in_one_listing() {
    let (kinesis, orders) = orders(1);
    kinesis.set_trimmed_numbers_accepted(true);
    let numbers: Vec<_> = (0..5).map(|number| orders.shard(0).put(number.to_string())).collect();
    orders.shard(0).trim(3);
    kinesis.next_calls("ListShards", 1, Outcome::Served);
    let wrong = WrongListing::OtherStart(orders.shard(0).id());
    kinesis.next_calls("ListShards", 1, Outcome::Mislisted(wrong));
    let named = ShardPosition::AtSequenceNumber(numbers[1].clone());
    let reader =
        consumer(&kinesis).starting_position_for(orders.shard(0).id(), named).build().unwrap();
    let error = timeout(HOUR, reader.records().next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Trimmed);
}

/// The reader runs, and its caller does not poll for longer than the retention period.
#[tokio::test(start_paused = true)]
async fn overtaken_reader_reports_the_loss() {
    for accepted in [false, true] {
        let (kinesis, orders) = orders(1);
        kinesis.set_trimmed_numbers_accepted(accepted);
        kinesis.set_retention(24 * HOUR);
        orders.shard(0).put("0");
        let builder = consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon).prefetch(0);
        let reader = builder.build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        numbers(&mut records, 0..1).await;
        sleep(HOUR).await;
        orders.shard(0).put("1");
        sleep(25 * HOUR).await;
        let last = orders.shard(0).put("2");
        assert_eq!(next(&mut records).await.sequence_number(), &last);
        assert_eq!(gaps(&mut events).len(), 1, "accepted: {accepted}");
    }
}

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

/// Without any record, only the stored time shows that records may be lost.
#[tokio::test(start_paused = true)]
async fn caught_up_position_out_of_retention_is_reported() {
    for (away, expected) in [(20 * HOUR, 0), (30 * HOUR, 1)] {
        let (kinesis, orders) = orders(1);
        kinesis.set_retention(24 * HOUR);
        let store = RecordingStore::default();
        let builder = consumer(&kinesis).store(store.clone()).on_trimmed(OnTrimmed::TrimHorizon);
        let reader = builder.clone().build().unwrap();
        let records = reader.records();
        stop_after(HOUR, reader, records).await;
        let stored = store.position(0).await.unwrap();
        assert!(stored.starts_with("CAUGHT_UP:"), "{stored}");
        sleep(away).await;
        orders.shard(0).put("1");
        let reader = builder.build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        numbers(&mut records, 1..2).await;
        assert_eq!(gaps(&mut events).len(), expected, "away for {away:?}");
    }
}

/// Records are trimmed while they are read, faster than the caller reads them.
#[tokio::test(start_paused = true)]
async fn reader_overtaken_between_two_fetches_reports_the_loss() {
    for accepted in [false, true] {
        let (kinesis, orders) = orders(1);
        kinesis.set_trimmed_numbers_accepted(accepted);
        kinesis.set_retention(24 * HOUR);
        let oldest = kinesis.now() - 24 * HOUR + Duration::from_secs(60);
        for second in 0..600 {
            let arrival = oldest + Duration::from_secs(second);
            orders.shard(0).put_at(arrival, second.to_string());
        }
        let builder = consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon).prefetch(0).limit(2);
        let reader = builder.build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        let mut expected = 0;
        let mut skipped = 0;
        for _ in 0..5 {
            let number = number(&next(&mut records).await);
            skipped += usize::from(number != expected);
            expected = number + 1;
            sleep(Duration::from_secs(100)).await;
        }
        assert!(skipped > 0, "expected retention to overtake the reader");
        assert_eq!(gaps(&mut events).len(), skipped, "accepted: {accepted}");
    }
}

/// The state of the reader's retention period lookup while retention overtakes the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Summary {
    /// The period ends at the position.
    Known,
    Denied,
    Throttled,
    /// The period has just been lowered.
    Lowered,
}

/// Reads two records that are more than a day old, and then the next four are trimmed. Returns the
/// number of the next record, the reported gaps, and the sequence number of the last read record.
async fn overtaken_while_behind(
    source: usize,
    accepted: bool,
    summary: Summary,
) -> (usize, Vec<Option<SequenceNumber>>, SequenceNumber) {
    let (kinesis, orders) = orders(1);
    kinesis.set_trimmed_numbers_accepted(accepted);
    kinesis.set_event_records(2);
    kinesis.set_retention(if summary == Summary::Lowered { 48 } else { 30 } * HOUR);
    let oldest = kinesis.now() - 30 * HOUR + Duration::from_secs(300);
    for number in 0..10 {
        let later = if number < 6 || summary != Summary::Lowered { Duration::ZERO } else { HOUR };
        let arrival = oldest + Duration::from_secs(number) + later;
        orders.shard(0).put_at(arrival, number.to_string());
    }
    let builder = consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon).prefetch(0).limit(2);
    let builder = if source == 0 { builder } else { builder.fan_out("billing") };
    let reader = builder.build().unwrap();
    let mut events = reader.events();
    let mut records = reader.records();
    numbers(&mut records, 0..2).await;
    let mut throttled = 0;
    kinesis.on_call(move |call| match (call.operation.as_str(), summary) {
        ("DescribeStreamSummary", Summary::Denied) => crate::denied(),
        ("DescribeStreamSummary", Summary::Throttled) if throttled < 3 => {
            throttled += 1;
            Outcome::failed(400, "LimitExceededException", "too many")
        }
        _ => Outcome::Served,
    });
    match summary {
        Summary::Lowered => kinesis.set_retention(29 * HOUR),
        _ => orders.shard(0).trim(6),
    }
    let number = number(&next(&mut records).await);
    (number, gaps(&mut events), orders.shard(0).sequence_numbers()[1].clone())
}

#[tokio::test(start_paused = true)]
async fn lagging_reader_reports_the_loss_with_or_without_the_period() {
    for source in 0..2 {
        for accepted in [false, true] {
            for summary in [Summary::Known, Summary::Denied, Summary::Throttled, Summary::Lowered] {
                let (number, gaps, last) = overtaken_while_behind(source, accepted, summary).await;
                let case = format!("source {source}, accepted: {accepted}, {summary:?}");
                assert_eq!((number, gaps), (6, vec![Some(last)]), "{case}");
            }
        }
    }
}

/// Returns the number of calls and the time that a reader with this lag needs for 200 records of a
/// stream that retains records for a week. Its lookups of the retention period have the outcome
/// `lookup`.
pub(crate) async fn calls_while_behind(
    source: usize,
    lag: Duration,
    lookup: Outcome,
) -> (usize, Duration) {
    let (kinesis, orders) = orders(1);
    kinesis.set_retention(168 * HOUR);
    kinesis.set_event_records(2);
    let oldest = kinesis.now() - lag;
    for number in 0..200 {
        orders.shard(0).put_at(oldest + Duration::from_secs(number), number.to_string());
    }
    let builder = consumer(&kinesis).limit(2);
    let builder = if source == 0 { builder } else { builder.fan_out("billing") };
    let reader = builder.build().unwrap();
    let mut records = reader.records();
    numbers(&mut records, 0..1).await;
    let (first, began) = (kinesis.call_count(), tokio::time::Instant::now());
    kinesis.next_calls("DescribeStreamSummary", usize::MAX, lookup);
    numbers(&mut records, 1..200).await;
    (kinesis.calls_from(first).len(), began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn loss_check_costs_calls_only_from_a_lag_of_one_day() {
    let (less, _) = calls_while_behind(0, 23 * HOUR, Outcome::Served).await;
    // Not within minutes of a whole hour, at which a lowered period may end.
    let far = 100 * HOUR + HOUR / 2;
    let (more, _) = calls_while_behind(0, far, Outcome::Served).await;
    assert!(less <= 101, "{less} calls");
    assert!(
        more <= 4 * 101,
        "{more} calls: one iterator per response, with the last read record first"
    );
    for lag in [23 * HOUR, far] {
        let (calls, time) = calls_while_behind(1, lag, Outcome::Served).await;
        assert!(calls <= 3, "{calls} calls at a lag of {lag:?}");
        assert!(time < Duration::from_secs(2), "{time:?} at a lag of {lag:?}");
    }
}

/// Puts five records, and reads and stores three of them.
pub(crate) async fn read_three_of_five(
    kinesis: &Kinesis,
    orders: &Stream,
    builder: &ConsumerBuilder,
) {
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

/// The decision of `Latest` to skip records holds for later starts, until a record is finished.
#[tokio::test(start_paused = true)]
async fn records_after_those_skipped_by_latest_are_read_after_a_restart() {
    for source in 0..2 {
        for accepted in [false, true] {
            for away in [0, 1, 30] {
                let (kinesis, orders) = orders(1);
                kinesis.set_trimmed_numbers_accepted(accepted);
                kinesis.set_retention(48 * HOUR);
                let builder = sources(&kinesis)[source].clone().on_trimmed(OnTrimmed::Latest);
                let builder = builder.store(RecordingStore::default());
                let last = read_three_and_lose_two(&kinesis, &orders, builder.clone()).await;
                sleep(HOUR).await;
                let case = format!("source {source}, accepted: {accepted}, away for {away} h");
                // The skipped records are retained for another 48 hours, and a restart reports them
                // again. With enhanced fan-out, the stored position is after them.
                let left_out = |is_kept: bool| Vec::from_iter(is_kept.then(|| Some(last.clone())));
                for expected in [left_out(true), left_out(source == 0)] {
                    let reader = builder.clone().build().unwrap();
                    let mut events = reader.events();
                    let mut records = reader.records();
                    let quiet = timeout(Duration::from_secs(300), records.next()).await;
                    assert!(quiet.is_err(), "{case}: {quiet:?}");
                    assert_eq!(gaps(&mut events), expected, "{case}");
                    drop(records);
                    reader.close().await.unwrap();
                    sleep(away * HOUR).await;
                }
                orders.shard(0).put("7");
                let reader = builder.build().unwrap();
                let mut events = reader.events();
                let mut records = reader.records();
                numbers(&mut records, 7..8).await;
                assert_eq!(gaps(&mut events), left_out(source == 0 && away < 30), "{case}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn second_loss_is_reported_after_the_first() {
    for source in 0..2 {
        for accepted in [false, true] {
            for policy in [OnTrimmed::TrimHorizon, OnTrimmed::Latest] {
                let (kinesis, orders) = orders(1);
                kinesis.set_trimmed_numbers_accepted(accepted);
                kinesis.set_retention(24 * HOUR);
                let builder = sources(&kinesis)[source].clone().on_trimmed(policy);
                let builder = builder.store(RecordingStore::default());
                let last = read_three_and_lose_two(&kinesis, &orders, builder.clone()).await;
                orders.shard(0).trim(7);
                let mut read = Vec::new();
                for _start in 0..2 {
                    let reader = builder.clone().build().unwrap();
                    let mut events = reader.events();
                    let mut records = reader.records();
                    if let Ok(Some(Ok(record))) =
                        timeout(Duration::from_secs(300), records.next()).await
                    {
                        read.push(number(&record));
                    }
                    let case = format!("source {source}, accepted: {accepted}, {policy:?}");
                    // With enhanced fan-out, the position advances while the shard is quiet.
                    let reported = gaps(&mut events);
                    assert_eq!(reported.len(), 1, "{case}");
                    assert!(reported[0] >= Some(last.clone()), "{case}: {reported:?}");
                    drop(records);
                    reader.close().await.unwrap();
                    orders.shard(0).put("7");
                    sleep(30 * HOUR).await;
                    orders.shard(0).put("8");
                    sleep(HOUR).await;
                }
                let oldest = if policy == OnTrimmed::Latest { vec![] } else { vec![8] };
                assert_eq!(read, oldest);
            }
        }
    }
}

/// The lookup that shows whether records were lost keeps failing.
#[tokio::test(start_paused = true)]
async fn shard_with_a_failing_loss_check_is_released_reported_once_and_retried() {
    let (kinesis, orders) = orders(1);
    kinesis.set_retention(168 * HOUR);
    let builder = consumer(&kinesis).store(kinestream::MemoryStore::new());
    let reader = builder.clone().build().unwrap();
    let mut records = reader.records();
    orders.shard(0).put("0");
    numbers(&mut records, 0..1).await;
    stop_after(HOUR, reader, records).await;
    orders.shard(0).put("1");
    orders.shard(0).trim(1);
    sleep(30 * HOUR).await;
    kinesis.on_call(|call| match call.operation.as_str() {
        "DescribeStreamSummary" => Outcome::failed(400, "LimitExceededException", "too many"),
        _ => Outcome::Served,
    });
    let reader = builder.build().unwrap();
    let mut records = reader.records();
    let began = tokio::time::Instant::now();
    let error = timeout(HOUR, records.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("kinesis:DescribeStreamSummary"), "{error}");
    assert!(began.elapsed() >= Duration::from_secs(60));
    sleep(Duration::from_secs(1)).await;
    let status = reader.status().await.unwrap();
    assert_eq!(
        status.shards[&orders.shard(0).id()].owner,
        None,
        "expected the lease to be released"
    );
    let quiet = timeout(HOUR, records.next()).await;
    assert!(quiet.is_err(), "reported once: {quiet:?}");
    kinesis.on_call(|_| Outcome::Served);
    numbers(&mut records, 1..2).await;
}

#[tokio::test(start_paused = true)]
async fn seek_to_a_time_out_of_retention_is_reported() {
    let kinesis = Kinesis::at(std::time::SystemTime::now() - 2 * HOUR);
    kinesis.set_retention(24 * HOUR);
    let orders = kinesis.create_stream("orders", 1);
    let store = kinestream::MemoryStore::new();
    let start = StartingPosition::AtTimestamp(kinesis.now());
    let build =
        || consumer(&kinesis).starting_position(start).store(store.clone()).build().unwrap();
    sleep(Duration::from_secs(1)).await;
    build().seek(StartingPosition::Latest).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    orders.shard(0).put("0");
    sleep(30 * HOUR).await;
    orders.shard(0).put("1");
    let mut records = build().records();
    let error = records.next().await.unwrap().expect_err("record 0 is lost");
    assert_eq!(error.kind(), ErrorKind::Trimmed);
}
