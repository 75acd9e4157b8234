//! Readers that lag by a day or more and are overtaken by retention.

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::Outcome;
use kinestream::{OnTrimmed, SequenceNumber};
use tokio::time::{Instant, sleep, timeout};

use crate::losses::retention::{HOUR, gaps, numbers};
use crate::{calls, consumer, next, number, orders};

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
async fn calls_while_behind(source: usize, lag: Duration, lookup: Outcome) -> (usize, Duration) {
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
    let (first, began) = (kinesis.call_count(), Instant::now());
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

/// The last read record and the oldest retained one arrived 55 s apart. The retention period is
/// lowered just after a reader has looked it up.
#[tokio::test(start_paused = true)]
async fn retention_period_lowered_between_two_close_records_is_noticed() {
    for source in 0..2 {
        for accepted in [false, true] {
            let (kinesis, orders) = orders(1);
            kinesis.set_trimmed_numbers_accepted(accepted);
            kinesis.set_event_records(2);
            kinesis.set_retention(48 * HOUR);
            let oldest = kinesis.now() - 30 * HOUR - Duration::from_secs(25);
            for (number, second) in [0, 1, 19, 20, 21, 22, 23, 75, 76].into_iter().enumerate() {
                orders.shard(0).put_at(oldest + Duration::from_secs(second), number.to_string());
            }
            let builder = consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon);
            let builder = builder.prefetch(0).limit(2);
            let builder = if source == 0 { builder } else { builder.fan_out("billing") };
            let reader = builder.build().unwrap();
            let mut events = reader.events();
            let mut records = reader.records();
            numbers(&mut records, 0..4).await;
            kinesis.set_retention(30 * HOUR);
            let number = number(&next(&mut records).await);
            let last = orders.shard(0).sequence_numbers()[3].clone();
            let case = format!("source {source}, accepted: {accepted}");
            assert_eq!((number, gaps(&mut events)), (7, vec![Some(last)]), "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fan_out_reader_near_a_whole_hour_looks_the_period_up_once_a_second() {
    let (calls, time) = calls_while_behind(1, 100 * HOUR, Outcome::Served).await;
    assert!(calls as u64 <= time.as_secs() + 5, "{calls} calls in {time:?}");
    assert!(time < Duration::from_secs(110), "100 events in {time:?}");
}

#[tokio::test(start_paused = true)]
async fn fan_out_reader_checks_once_a_minute_while_the_period_is_unknown() {
    for lag in [100 * HOUR, 100 * HOUR + HOUR / 2] {
        let denied = crate::denied();
        let (calls, time) = calls_while_behind(1, lag, denied).await;
        assert!(calls <= 4, "{calls} calls");
        assert!(time < Duration::from_secs(12), "{time:?}");
    }
}

/// A response arrives that holds only the last read record, and the caller does not poll while
/// retention overtakes the reader. The limit is one record, or a response has room for only one.
#[tokio::test(start_paused = true)]
async fn reader_overtaken_after_a_response_without_new_records_reports_the_loss() {
    for (limit, length) in [(1, 0), (2, 6 << 20)] {
        for accepted in [false, true] {
            let (kinesis, orders) = orders(1);
            kinesis.set_trimmed_numbers_accepted(accepted);
            kinesis.set_retention(24 * HOUR);
            let oldest = kinesis.now() - 24 * HOUR + Duration::from_secs(60);
            for number in 0..24 {
                let arrival = oldest + Duration::from_secs(50 * number);
                let data = format!("{}{number}", "0".repeat(length));
                orders.shard(0).put_at(arrival, data);
            }
            let builder = consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon);
            let reader = builder.prefetch(0).limit(limit).build().unwrap();
            let mut events = reader.events();
            let mut records = reader.records();
            let (mut expected, mut skips) = (0, 0);
            for wait in [100, 600_000].repeat(5) {
                let wait = Duration::from_millis(wait);
                if let Ok(record) = timeout(wait, records.next()).await {
                    let number = number(&record.unwrap().unwrap());
                    skips += usize::from(number != expected);
                    expected = number + 1;
                }
                sleep(Duration::from_secs(100)).await;
            }
            assert!(skips > 1, "expected retention to overtake the reader");
            let case = format!("limit {limit}, accepted: {accepted}");
            // Further records may be trimmed after a report.
            let gaps = gaps(&mut events).len();
            assert!((skips..=2 * skips).contains(&gaps), "{case}: {gaps} gaps, {skips} skips");
        }
    }
}

/// The first response of each iterator has room for only the last read record, and the next calls
/// fail while records are trimmed.
#[tokio::test(start_paused = true)]
async fn reader_overtaken_while_calls_fail_reports_the_loss() {
    for accepted in [false, true] {
        let (kinesis, orders) = orders(1);
        kinesis.set_trimmed_numbers_accepted(accepted);
        kinesis.set_retention(24 * HOUR);
        let oldest = kinesis.now() - 24 * HOUR + Duration::from_secs(60);
        for number in 0..24 {
            let data = format!("{}{number}", "0".repeat(6 << 20));
            orders.shard(0).put_at(oldest + Duration::from_secs(50 * number), data);
        }
        let mut answered: Option<Instant> = None;
        kinesis.on_call(move |call| match call.operation.as_str() {
            "GetShardIterator" => {
                answered = None;
                Outcome::Served
            }
            "GetRecords" => {
                let waited = call.at - *answered.get_or_insert(call.at);
                let fails = (1..120).contains(&waited.as_secs());
                let failed = Outcome::failed(500, "InternalFailureException", "");
                if fails { failed } else { Outcome::Served }
            }
            _ => Outcome::Served,
        });
        let reader = consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon).prefetch(0);
        let reader = reader.build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        let (mut expected, mut skips) = (0, 0);
        while let Ok(record) = timeout(Duration::from_secs(300), records.next()).await {
            let number = number(&record.unwrap().unwrap());
            skips += usize::from(number != expected);
            expected = number + 1;
        }
        let gaps = gaps(&mut events).len();
        assert!(gaps > 1, "expected retention to overtake the reader");
        assert!(gaps >= skips, "accepted: {accepted}: {gaps} gaps, {skips} skips");
    }
}

/// The retention period is lowered, and the shard retains no record: the next event of the
/// subscription has no records.
#[tokio::test(start_paused = true)]
async fn fan_out_reader_overtaken_before_an_empty_event_reports_the_loss() {
    for (accepted, is_closed) in [(false, false), (true, false), (false, true), (true, true)] {
        let (kinesis, orders) = orders(1);
        kinesis.set_trimmed_numbers_accepted(accepted);
        kinesis.set_event_records(1);
        kinesis.set_retention(48 * HOUR);
        let oldest = kinesis.now() - 29 * HOUR - HOUR / 2;
        for number in 0..20 {
            orders.shard(0).put_at(oldest + Duration::from_secs(number), number.to_string());
        }
        let builder = consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon).prefetch(0);
        let reader = builder.fan_out("billing").build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        numbers(&mut records, 0..10).await;
        let child = is_closed.then(|| orders.shard(0).split()[0].clone());
        kinesis.set_retention(28 * HOUR);
        let mut last = 9;
        while let Ok(record) = timeout(Duration::from_secs(60), records.next()).await {
            last = number(&record.unwrap().unwrap());
        }
        assert!(last < 19, "expected retention to overtake the reader");
        child.unwrap_or_else(|| orders.shard(0)).put("20");
        numbers(&mut records, 20..21).await;
        let last = orders.shard(0).sequence_numbers()[last].clone();
        let case = format!("accepted: {accepted}, closed: {is_closed}");
        assert_eq!(gaps(&mut events), [Some(last)], "{case}");
    }
}

/// The last record of a quiet shard is old, and is trimmed after the reader has caught up.
#[tokio::test(start_paused = true)]
async fn fan_out_reader_of_a_quiet_shard_with_an_old_record_catches_up() {
    for accepted in [false, true] {
        let (kinesis, orders) = orders(1);
        kinesis.set_trimmed_numbers_accepted(accepted);
        kinesis.set_retention(48 * HOUR);
        orders.shard(0).put_at(kinesis.now() - 47 * HOUR, "0");
        let reader = consumer(&kinesis).fan_out("billing").build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        numbers(&mut records, 0..1).await;
        let quiet = timeout(Duration::from_secs(600), records.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        let subscriptions = calls(&kinesis, "SubscribeToShard").len();
        assert!(subscriptions <= 4, "{subscriptions} subscriptions in ten minutes");
        let quiet = timeout(2 * HOUR, records.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        orders.shard(0).put("1");
        numbers(&mut records, 1..2).await;
        assert_eq!(gaps(&mut events), [], "accepted: {accepted}");
    }
}

/// The byte limit delays the next call for longer than an iterator near the trim horizon is used.
#[tokio::test(start_paused = true)]
async fn large_records_near_the_trim_horizon_are_read() {
    let (kinesis, orders) = orders(1);
    kinesis.set_retention(25 * HOUR);
    let oldest = kinesis.now() - 24 * HOUR;
    for number in 0..5_u64 {
        let data = format!("{}{number}", "0".repeat(6 << 20));
        orders.shard(0).put_at(oldest + Duration::from_secs(number), data);
    }
    let reader = consumer(&kinesis).build().unwrap();
    let mut events = reader.events();
    let mut records = reader.records();
    numbers(&mut records, 0..5).await;
    assert_eq!(gaps(&mut events), []);
    assert_eq!(kinesis.violations(), [""; 0]);
}
