//! Shards with gaps of hours between records: a subscription sends events without records before it
//! reaches the next record, and retention may overtake the reader during that time.

use std::time::Duration;

use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::testing::{Kinesis, Outcome, Stream};
use kinestream::{
    Checkpoint, CheckpointStore, Consumer, ConsumerBuilder, ErrorKind, Events, MemoryStore,
    OnTrimmed, Records, SequenceNumber,
};
use tokio::time::{Instant, sleep, timeout};

use crate::losses::retention::{HOUR, gaps, numbers, stop_after};
use crate::{calls, consumer, next, number, orders};

/// Creates a shard with three records of the given ages in hours, in a stream that retains records
/// for 48 h. A subscription sends events without records for `approach` seconds before each of the
/// second and the third record. Without `first_number`, unused sequence numbers lie between those
/// of the records.
pub(crate) fn sparse_shard(
    approach: u64,
    first_number: Option<u64>,
    ages: [u32; 3],
) -> (Kinesis, Stream) {
    let (kinesis, orders) = orders(1);
    kinesis.set_retention(48 * HOUR);
    kinesis.set_approach(Duration::from_secs(approach));
    if let Some(first) = first_number {
        orders.number_from(first);
    }
    for (number, age) in ages.into_iter().enumerate() {
        orders.shard(0).put_at(kinesis.now() - age * HOUR, number.to_string());
    }
    (kinesis, orders)
}

/// Sets the outcome of every lookup of the retention period.
fn set_period_lookup_outcome(kinesis: &Kinesis, outcome: Outcome) {
    kinesis.on_call(move |call| match call.operation.as_str() {
        "DescribeStreamSummary" => outcome.clone(),
        _ => Outcome::Served,
    });
}

/// Starts an enhanced fan-out reader and receives the first record.
async fn start_fan_out_reader(
    kinesis: &Kinesis,
    on_trimmed: OnTrimmed,
) -> (Consumer, Events, Records) {
    let builder = consumer(kinesis).on_trimmed(on_trimmed).fan_out("billing");
    let reader = builder.build().unwrap();
    let (events, mut records) = (reader.events(), reader.records());
    numbers(&mut records, 0..1).await;
    (reader, events, records)
}

/// Returns the number of the next record, which must arrive within `time` and without an error.
async fn number_within(time: Duration, records: &mut Records, case: &str) -> usize {
    let record = timeout(time, records.next()).await;
    let record = record.unwrap_or_else(|_| panic!("no record within {time:?}: {case}"));
    number(&record.unwrap().unwrap())
}

/// Lowers the retention period after `early`, so that only record 2 is retained, and reads up to
/// record 2. Each record must arrive `within` the given time, and the loss must be reported once.
async fn overtake_and_read(
    (early, within): (Duration, Duration),
    kinesis: &Kinesis,
    (events, records): (&mut Events, &mut Records),
    case: &str,
) {
    let before = timeout(early, records.next()).await;
    kinesis.set_retention(24 * HOUR);
    let mut read: Vec<usize> =
        before.iter().flatten().map(|read| number(read.as_ref().unwrap())).collect();
    while read.last() != Some(&2) {
        read.push(number_within(within, records, case).await);
    }
    let found = gaps(events).len();
    // If record 1 was delivered before it was trimmed, no record was skipped, and a report is not
    // required.
    let may_be_lost = read == [1, 2] && found == 0;
    assert!(found == 1 || may_be_lost, "{read:?}, {found}: {case}");
}

/// The next record arrived hours after the previous one. A subscription sends events without
/// records for up to seven minutes before it, and lives for five minutes.
#[tokio::test(start_paused = true)]
async fn fan_out_reader_near_the_trim_horizon_reads_the_record_after_a_gap() {
    for (approach, first) in [(7, None), (60, None), (240, None), (420, None), (240, Some(1000))] {
        let (kinesis, _orders) = sparse_shard(approach, first, [47, 40, 30]);
        let approach = Duration::from_secs(approach);
        let reader = consumer(&kinesis).fan_out("billing").build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        let (time, case) = (6 * approach + Duration::from_secs(60), format!("{first:?}"));
        for expected in 0..3 {
            let found = number_within(time, &mut records, &case).await;
            assert_eq!(found, expected, "{approach:?}");
        }
        let subscriptions = calls(&kinesis, "SubscribeToShard").len();
        assert!(subscriptions <= 20, "{subscriptions} for {approach:?}");
        assert_eq!(gaps(&mut events), [], "{approach:?}");
    }
}

/// Records after the last read one are trimmed while the subscription sends events without records,
/// for a time shorter or longer than the life of a subscription.
#[tokio::test(start_paused = true)]
async fn fan_out_reader_overtaken_during_empty_events_reports_the_loss() {
    for (approach, first) in [(120, None), (120, Some(1000)), (420, None)] {
        for seconds in (30..800).step_by(90) {
            for accepted in [false, true] {
                let (kinesis, _orders) = sparse_shard(approach, first, [40, 30, 10]);
                kinesis.set_trimmed_numbers_accepted(accepted);
                let begun = start_fan_out_reader(&kinesis, OnTrimmed::TrimHorizon).await;
                let (_reader, mut events, mut records) = begun;
                let case = format!("{approach} s, {first:?}, {seconds} s, accepted: {accepted}");
                let times = (Duration::from_secs(seconds), Duration::from_secs(6 * approach));
                overtake_and_read(times, &kinesis, (&mut events, &mut records), &case).await;
            }
        }
    }
}

/// Records after the last read one are trimmed, and each new subscription sends events without
/// records before the oldest retained record.
#[tokio::test(start_paused = true)]
async fn empty_events_before_the_oldest_record_do_not_clear_the_failure() {
    for accepted in [false, true] {
        let (kinesis, _orders) = sparse_shard(60, None, [40, 30, 10]);
        kinesis.set_trimmed_numbers_accepted(accepted);
        let (reader, _events, mut records) = start_fan_out_reader(&kinesis, OnTrimmed::Fail).await;
        kinesis.set_retention(24 * HOUR);
        let error = records.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Trimmed, "{error}");
        for _ in 0..60 {
            let repeated = timeout(Duration::from_secs(30), records.next()).await;
            assert!(repeated.is_err(), "accepted: {accepted}, {repeated:?}");
            let status = reader.status().await.unwrap();
            let status = status.shards.values().next().unwrap();
            let kind = status.failure.as_ref().map(|failure| failure.kind);
            assert_eq!(kind, Some(ErrorKind::Trimmed), "accepted: {accepted}, {status:?}");
        }
    }
}

/// Retention overtakes a reader that has fetched only its last record since it started.
#[tokio::test(start_paused = true)]
async fn restarted_reader_overtaken_during_empty_events_reports_the_loss() {
    for first in [None, Some(1000)] {
        for seconds in (20..200).step_by(30) {
            let (kinesis, _orders) = sparse_shard(120, first, [40, 30, 10]);
            let builder = consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon);
            let builder = builder.fan_out("billing").store(MemoryStore::new());
            let reader = builder.clone().build().unwrap();
            let mut records = reader.records();
            numbers(&mut records, 0..1).await;
            stop_after(Duration::from_millis(1), reader, records).await;
            let reader = builder.build().unwrap();
            let (mut events, mut records) = (reader.events(), reader.records());
            let case = format!("{first:?}, {seconds} s");
            let times = (Duration::from_secs(seconds), Duration::from_secs(600));
            overtake_and_read(times, &kinesis, (&mut events, &mut records), &case).await;
        }
    }
}

/// Lookups of the retention period fail, so the reader cannot determine whether the last record is
/// retained.
#[tokio::test(start_paused = true)]
async fn period_lookup_that_keeps_failing_is_reported() {
    for policy in [OnTrimmed::Fail, OnTrimmed::Latest] {
        for first in [None, Some(1000)] {
            let (kinesis, _orders) = sparse_shard(60, first, [47, 40, 30]);
            let (_reader, mut events, mut records) = start_fan_out_reader(&kinesis, policy).await;
            set_period_lookup_outcome(
                &kinesis,
                Outcome::failed(500, "InternalFailureException", "no"),
            );
            let error = timeout(Duration::from_secs(900), records.next()).await;
            let error = error.expect("an error in time").unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            kinesis.on_call(|_| Outcome::Served);
            numbers(&mut records, 1..3).await;
            assert_eq!(gaps(&mut events), [], "{policy:?}, {first:?}");
        }
    }
}

/// No response proves that nothing was lost after a position between two records: the retention
/// period is unknown, or `Latest` may have skipped records. Events without records may last longer
/// than a subscription lives.
#[tokio::test(start_paused = true)]
async fn record_after_a_gap_is_read_when_a_loss_cannot_be_ruled_out() {
    for (policy, is_denied) in
        [(OnTrimmed::Latest, false), (OnTrimmed::Latest, true), (OnTrimmed::Fail, true)]
    {
        for approach in [240, 420, 1000] {
            let (kinesis, _orders) = sparse_shard(approach, None, [47, 40, 30]);
            let (_reader, mut events, mut records) = start_fan_out_reader(&kinesis, policy).await;
            let case = format!("{policy:?}, denied: {is_denied}, {approach} s");
            if is_denied {
                set_period_lookup_outcome(&kinesis, crate::denied());
            }
            for expected in 1..3 {
                let time = Duration::from_secs(6 * approach);
                assert_eq!(number_within(time, &mut records, &case).await, expected, "{case}");
            }
            let subscriptions = calls(&kinesis, "SubscribeToShard").len() as u64;
            assert!(subscriptions <= 20 + approach / 10, "{subscriptions}: {case}");
            assert_eq!(gaps(&mut events), [], "{case}");
        }
    }
}

/// The retention period is looked up for one shard, and lowered before the loss check of another
/// shard, which was caught up 31 hours ago.
#[tokio::test(start_paused = true)]
async fn loss_check_uses_the_current_retention_period() {
    for is_pushed in [false, true] {
        let (kinesis, orders) = orders(2);
        kinesis.set_trimmed_numbers_accepted(true);
        kinesis.set_retention(48 * HOUR);
        let (mut stored, until) = (Vec::new(), kinesis.now() - 31 * HOUR);
        for shard in [0, 1].map(|shard| orders.shard(shard)) {
            for (number, age) in [40, 30, 10].into_iter().enumerate() {
                shard.put_at(kinesis.now() - age * HOUR, number.to_string());
            }
            let after = Some(shard.sequence_numbers()[0].clone());
            stored.push((shard.id(), Checkpoint::CaughtUp { after, until }));
            shard.trim(1);
        }
        let store = MemoryStore::new();
        store.save(&Scope::new("default", "orders"), &stored).await.unwrap();
        let (late, began) = (orders.shard(1).id(), Instant::now());
        kinesis.on_call(move |call| {
            let places = ["SubscribeToShard", "GetShardIterator"];
            let is_placement = places.contains(&call.operation.as_str());
            let is_late = call.shard_id.as_ref() == Some(&late);
            if is_placement && is_late && began.elapsed() < Duration::from_secs(20) {
                return Outcome::throttled();
            }
            Outcome::Served
        });
        let builder = consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon).store(store);
        let builder = if is_pushed { builder.fan_out("billing") } else { builder };
        let reader = builder.build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        numbers(&mut records, 1..3).await;
        sleep(Duration::from_secs(10)).await;
        kinesis.set_retention(24 * HOUR);
        assert_eq!(number(&next(&mut records).await), 2);
        let last = orders.shard(1).sequence_numbers()[0].clone();
        assert_eq!(gaps(&mut events), [Some(last)], "pushed: {is_pushed}");
    }
}

/// Stores a position in the gap after the first record, with a sequence number that no record has.
pub(crate) async fn stored_in_gap(
    kinesis: &Kinesis,
    orders: &Stream,
    hours_ago: u32,
) -> MemoryStore {
    let first = orders.shard(0).sequence_numbers()[0].to_string();
    let behind = first[..first.len() - 1].to_owned() + "1";
    stored_after(behind.parse().unwrap(), kinesis, orders, hours_ago).await
}

/// Stores the shard as caught up after this sequence number.
pub(crate) async fn stored_after(
    number: SequenceNumber,
    kinesis: &Kinesis,
    orders: &Stream,
    hours_ago: u32,
) -> MemoryStore {
    let until = kinesis.now() - hours_ago * HOUR;
    let position = Checkpoint::CaughtUp { after: Some(number), until };
    let store = MemoryStore::new();
    let positions = [(orders.shard(0).id(), position)];
    store.save(&Scope::new("default", "orders"), &positions).await.unwrap();
    store
}

/// The oldest record proves that nothing was lost. Then every placement (`GetShardIterator` or
/// `SubscribeToShard`) fails until records are trimmed.
#[tokio::test(start_paused = true)]
async fn loss_after_the_check_of_the_oldest_record_is_reported() {
    for placement in ["GetShardIterator", "SubscribeToShard"] {
        for accepted in [false, true] {
            let (kinesis, orders) = sparse_shard(0, None, [47, 40, 30]);
            kinesis.set_trimmed_numbers_accepted(accepted);
            let store = stored_in_gap(&kinesis, &orders, 46).await;
            let builder = consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon).store(store);
            let is_pushed = placement == "SubscribeToShard";
            let builder = if is_pushed { builder.fan_out("billing") } else { builder };
            let (mut placements, mut summaries) = (0, 0);
            let began = Instant::now();
            kinesis.on_call(move |call| match call.operation.as_str() {
                "DescribeStreamSummary" => {
                    summaries += 1;
                    // Enhanced fan-out takes the stream ARN from the first response.
                    if is_pushed && summaries == 1 { Outcome::Served } else { crate::denied() }
                }
                operation if operation == placement => {
                    placements += 1;
                    let is_down = placements > 2 && began.elapsed() < Duration::from_secs(120);
                    if is_down { Outcome::Lost } else { Outcome::Served }
                }
                _ => Outcome::Served,
            });
            let reader = builder.build().unwrap();
            let mut events = reader.events();
            let mut records = reader.records();
            let early = timeout(Duration::from_secs(60), records.next()).await;
            assert!(early.is_err(), "{early:?}");
            orders.shard(0).trim(2);
            numbers(&mut records, 2..3).await;
            assert_eq!(gaps(&mut events).len(), 1, "{placement}, accepted: {accepted}");
        }
    }
}

/// Reads two records by enhanced fan-out, stops, and returns the builder of the next reader.
async fn read_two_and_stop(kinesis: &Kinesis) -> ConsumerBuilder {
    let builder = consumer(kinesis).fan_out("billing").store(MemoryStore::new());
    let reader = builder.clone().build().unwrap();
    let mut records = reader.records();
    for expected in 0..2 {
        assert_eq!(number_within(HOUR, &mut records, "before the stop").await, expected);
    }
    stop_after(Duration::from_millis(1), reader, records).await;
    builder
}

/// Rejects the `SubscribeToShard` calls with the given ordinals, and asserts that the next reader
/// still delivers record 2 and reports no loss.
async fn assert_refusals_lose_nothing(
    refusals: [usize; 2],
    kinesis: &Kinesis,
    builder: ConsumerBuilder,
    case: &str,
) {
    let mut placements = 0;
    kinesis.on_call(move |call| {
        placements += usize::from(call.operation == "SubscribeToShard");
        let is_refused = call.operation == "SubscribeToShard" && refusals.contains(&placements);
        if is_refused {
            crate::losses::refused_sequence_numbers::refused()
        } else {
            Outcome::Served
        }
    });
    let reader = builder.build().unwrap();
    let mut events = reader.events();
    let mut records = reader.records();
    assert_eq!(number_within(HOUR, &mut records, case).await, 2, "{case}");
    assert_eq!(gaps(&mut events), [], "{case}");
}

/// Kinesis rejects the sequence number of a retained record, and events without records precede the
/// oldest record for longer than a subscription lives.
#[tokio::test(start_paused = true)]
async fn rejected_number_before_a_long_gap_to_the_oldest_record_loses_nothing() {
    let (kinesis, orders) = sparse_shard(420, None, [49, 47, 40]);
    kinesis.set_retention(50 * HOUR);
    let builder = read_two_and_stop(&kinesis).await;
    orders.shard(0).trim(1);
    // Rejected at first, and again after the oldest record was received.
    assert_refusals_lose_nothing([1, 4], &kinesis, builder, "after the stop").await;
}

/// A loss is reported, and later placements find the same oldest record. The retention period is
/// unknown.
#[tokio::test(start_paused = true)]
async fn loss_is_reported_once_while_the_oldest_record_stays_the_same() {
    for approach in [60, 240, 420] {
        for accepted in [false, true] {
            let (kinesis, orders) = sparse_shard(approach, None, [40, 30, 10]);
            kinesis.set_trimmed_numbers_accepted(accepted);
            let begun = start_fan_out_reader(&kinesis, OnTrimmed::TrimHorizon).await;
            let (_reader, mut events, mut records) = begun;
            set_period_lookup_outcome(&kinesis, crate::denied());
            orders.shard(0).trim(1);
            let case = format!("{approach} s, accepted: {accepted}");
            for expected in 1..3 {
                assert_eq!(number_within(HOUR, &mut records, &case).await, expected, "{case}");
            }
            assert_eq!(gaps(&mut events).len(), 1, "{case}");
        }
    }
}

/// Kinesis rejects the sequence number of the last finished record, although it and the record
/// before it are retained. Events without records between the two last for longer than a
/// subscription lives.
#[tokio::test(start_paused = true)]
async fn rejected_number_after_a_long_gap_loses_nothing() {
    for approach in [100, 420] {
        let (kinesis, _orders) = sparse_shard(approach, None, [49, 47, 40]);
        kinesis.set_retention(55 * HOUR);
        let builder = read_two_and_stop(&kinesis).await;
        // The number of record 1 is rejected at first, and again after the oldest record was
        // received.
        assert_refusals_lose_nothing(
            [1, 3],
            &kinesis,
            builder,
            &format!("an approach of {approach} s"),
        )
        .await;
    }
}
