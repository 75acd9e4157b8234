//! Starting positions: the latest record and times.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use kinestream::{MemoryStore, StartingPosition};
use tokio::time::{sleep, timeout};

use crate::{assert_silent, calls, consumer, next, number, orders};
use kinestream::testing::{Kinesis, Outcome, WallClock};

#[tokio::test(start_paused = true)]
async fn latest_is_stored_before_the_first_read() {
    let (kinesis, orders) = orders(2);
    orders.shard(0).put("0");
    let [left, right] = orders.shard(0).split();
    left.put("1");
    // Longer ago than the clocks of shards and records may differ.
    sleep(Duration::from_secs(6 * 60)).await;
    let store = MemoryStore::new();
    let latest = || {
        consumer(&kinesis)
            .starting_position(StartingPosition::Latest)
            .store(store.clone())
            .build()
            .unwrap()
    };
    // All reads of the first reader fail until it is dropped.
    kinesis.next_calls(
        "GetRecords",
        usize::MAX,
        Outcome::failed(500, "InternalFailureException", ""),
    );
    let first = latest();
    assert!(timeout(Duration::from_secs(20), first.records().next()).await.is_err());
    drop(first);
    left.put("2");
    right.put("3");
    kinesis.on_call(|_| Outcome::Served);
    let second = latest();
    let mut records = second.records();
    let mut read = [number(&next(&mut records).await), number(&next(&mut records).await)];
    read.sort_unstable();
    assert_eq!(read, [2, 3]);
    assert_silent(&mut records).await;
    assert_eq!(kinesis.violations(), [""; 0]);
    assert!(
        calls(&kinesis, "GetRecords")
            .iter()
            .all(|call| call.shard_id != Some(orders.shard(0).id())),
        "expected no read of a shard that was closed before the start"
    );
}

#[tokio::test(start_paused = true)]
async fn latest_after_a_crash_before_the_first_listing_reads_from_the_first_poll() {
    let (kinesis, orders) = orders(1);
    let clock = WallClock::at(kinesis.now());
    orders.shard(0).put("0");
    // Longer than the clock of a worker may be ahead.
    sleep(Duration::from_secs(10 * 60)).await;
    let store = MemoryStore::new();
    let latest = |worker: &str| {
        let builder = consumer(&kinesis).worker_id(worker).store(store.clone()).wall_clock(&clock);
        builder.starting_position(StartingPosition::Latest).build().unwrap()
    };
    kinesis.next_calls("ListShards", usize::MAX, Outcome::throttled());
    for life in 1..4 {
        let crashing = latest(&format!("life-{life}"));
        let mut records = crashing.records();
        let _temporary = timeout(Duration::from_secs(20), async {
            while let Some(next) = records.next().await {
                assert!(next.unwrap_err().is_temporary());
            }
        })
        .await;
        orders.shard(0).put(life.to_string());
        drop((records, crashing));
        // The tolerance for differing host clocks must not be the reason that the records are read.
        sleep(Duration::from_secs(10 * 60)).await;
    }
    kinesis.on_call(|_| Outcome::Served);
    let survivor = latest("survivor");
    let mut records = survivor.records();
    for expected in 1..4 {
        assert_eq!(number(&next(&mut records).await), expected);
    }
    assert_silent(&mut records).await;
}

#[tokio::test(start_paused = true)]
async fn latest_after_a_delayed_first_listing_is_the_first_poll_by_the_clock_of_kinesis() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    sleep(Duration::from_secs(60)).await;
    let consumer = consumer(&kinesis).starting_position(StartingPosition::Latest).build().unwrap();
    let mut records = consumer.records();
    kinesis.next_calls("ListShards", 3, Outcome::throttled());
    assert!(timeout(Duration::from_millis(10), records.next()).await.is_err());
    orders.shard(0).put("1");
    assert_eq!(
        number(&next(&mut records).await),
        1,
        "expected the record put after the worker's first poll"
    );
}

/// The clocks of the hosts that accept records differ: a record that is put after the start may
/// have an earlier arrival time.
#[tokio::test(start_paused = true)]
async fn latest_reads_later_records_with_earlier_arrival_times() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    sleep(Duration::from_secs(60)).await;
    let consumer = consumer(&kinesis).starting_position(StartingPosition::Latest).build().unwrap();
    let mut records = consumer.records();
    assert_silent(&mut records).await;
    orders.shard(0).put_at(kinesis.now() - Duration::from_secs(90), "1");
    assert_eq!(number(&next(&mut records).await), 1);
}

/// Stores keep whole milliseconds from 1970 on: a time is rounded down, and one before 1970 is
/// stored as 1970.
#[tokio::test(start_paused = true)]
async fn time_between_milliseconds_or_before_1970_skips_no_record_after_a_restart() {
    let (kinesis, orders) = orders(1);
    let noon = kinesis.now();
    let millisecond = Duration::from_millis(1);
    for (number, arrival) in [noon - millisecond, noon, noon + millisecond].into_iter().enumerate()
    {
        orders.shard(0).put_at(arrival, number.to_string());
    }
    sleep(Duration::from_secs(2)).await;
    for (time, oldest) in [
        (noon + Duration::from_nanos(1), 2),
        (noon + Duration::from_nanos(999_999), 2),
        (UNIX_EPOCH - Duration::from_secs(1), 0),
    ] {
        let store = MemoryStore::new();
        let position = StartingPosition::AtTimestamp(time);
        let builder = consumer(&kinesis).starting_position(position).store(store.clone());
        // The first consumer stores the position and reads nothing.
        let ours = Outcome::failed(500, "InternalFailureException", "internal failure");
        kinesis.next_calls("GetRecords", usize::MAX, ours);
        let first = builder.clone().build().unwrap();
        assert!(timeout(Duration::from_secs(20), first.records().next()).await.is_err());
        drop(first);
        kinesis.on_call(|_| Outcome::Served);
        for store in [store, MemoryStore::new()] {
            let consumer = builder.clone().store(store).build().unwrap();
            let mut records = consumer.records();
            let first = number(&next(&mut records).await);
            assert!(
                first <= oldest,
                "{time:?}: expected to start at record {oldest} or earlier, not at {first}"
            );
            for expected in first + 1..3 {
                assert_eq!(number(&next(&mut records).await), expected, "{time:?}");
            }
        }
    }
}

/// The arrival time of the record is from a host with a clock four minutes ahead, and is not before
/// the starting time. Its shard was closed before the starting time.
#[tokio::test(start_paused = true)]
async fn record_with_an_arrival_time_after_the_end_of_its_shard_is_read() {
    for by_seek in [false, true] {
        let kinesis = Kinesis::at(SystemTime::now() - Duration::from_secs(3600));
        let orders = kinesis.create_stream("orders", 1);
        sleep(Duration::from_secs(60)).await;
        orders.shard(0).put_at(kinesis.now() + Duration::from_secs(240), "0");
        let [left, _right] = orders.shard(0).split();
        sleep(Duration::from_secs(200)).await;
        let since = StartingPosition::AtTimestamp(kinesis.now());
        sleep(Duration::from_secs(5)).await;
        left.put("1");
        let consumer = if by_seek {
            let consumer = consumer(&kinesis).build().unwrap();
            consumer.seek(since).await.unwrap();
            consumer
        } else {
            consumer(&kinesis).starting_position(since).build().unwrap()
        };
        let mut records = consumer.records();
        for expected in [0, 1] {
            assert_eq!(number(&next(&mut records).await), expected, "by seek: {by_seek}");
        }
    }
}
