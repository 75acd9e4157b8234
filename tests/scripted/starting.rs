//! Where reading begins.

use std::time::Duration;

use futures::StreamExt;
use kinestream::{MemoryStore, StartingPosition};
use tokio::time::{sleep, timeout};

use crate::{assert_silent, calls, consumer, next, number, orders};
use kinestream::testing::Outcome;

#[tokio::test(start_paused = true)]
async fn latest_is_pinned_before_the_first_read() {
    let (kinesis, orders) = orders(2);
    orders.shard(0).put("0");
    let [left, right] = orders.shard(0).split();
    left.put("1");
    // Longer ago than the clocks of shards and records may differ.
    sleep(Duration::from_secs(5)).await;
    let store = MemoryStore::new();
    let latest = || {
        consumer(&kinesis)
            .starting_position(StartingPosition::Latest)
            .store(store.clone())
            .build()
            .unwrap()
    };
    // The first reader never gets to read: it is throttled, and then it is dropped.
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
        "a shard that was closed before the start holds nothing to read"
    );
}

/// The clocks of the hosts that take records in are not the same: a record may bear a time from
/// before the start, and yet come after it.
#[tokio::test(start_paused = true)]
async fn latest_takes_what_comes_later_whatever_time_it_bears() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    sleep(Duration::from_secs(60)).await;
    let consumer = consumer(&kinesis).starting_position(StartingPosition::Latest).build().unwrap();
    let mut records = consumer.records();
    assert_silent(&mut records).await;
    orders.shard(0).put_at(kinesis.now() - Duration::from_secs(90), "1");
    assert_eq!(number(&next(&mut records).await), 1);
}
