//! Records that are trimmed before they are read: every loss is reported, and only real losses are.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::testing::{Kinesis, Outcome, Stream, WrongListing};
use kinestream::{
    Consumer, ConsumerBuilder, ErrorKind, Event, Events, OnTrimmed, Records, SequenceNumber,
    ShardPosition, StartingPosition,
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
pub(crate) async fn read_three_and_lose_two(
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
