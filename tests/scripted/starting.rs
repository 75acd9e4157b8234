//! Where reading begins.

use std::time::Duration;

use futures::StreamExt;
use kinestream::{MemoryStore, StartingPosition};
use tokio::time::{sleep, timeout};

use crate::support::kinesis::{Action, Kinesis};
use crate::{assert_silent, consumer, next, number};

#[tokio::test(start_paused = true)]
async fn latest_is_pinned_before_the_first_read() {
    let kinesis = Kinesis::with_shards(2);
    kinesis.put(0, "0");
    let [left, right] = kinesis.orders(|orders, now| orders.split(0, now));
    kinesis.put(left, "1");
    sleep(Duration::from_secs(2)).await;
    let store = MemoryStore::new();
    let latest = || {
        consumer(&kinesis)
            .starting_position(StartingPosition::Latest)
            .store(store.clone())
            .build()
            .unwrap()
    };
    // The first reader never gets to read: it is throttled, and then it is dropped.
    kinesis.fail_next(
        "GetRecords",
        Action::Fail { status: 500, code: "InternalFailureException", message: "" },
        usize::MAX,
    );
    let first = latest();
    assert!(timeout(Duration::from_secs(20), first.records().next()).await.is_err());
    drop(first);
    kinesis.put(left, "2");
    kinesis.put(right, "3");
    kinesis.on_call(|_| Action::Serve);
    let second = latest();
    let mut records = second.records();
    let mut read = [number(&next(&mut records).await), number(&next(&mut records).await)];
    read.sort_unstable();
    assert_eq!(read, [2, 3]);
    assert_silent(&mut records).await;
    assert_eq!(kinesis.violations(), [""; 0]);
    assert!(
        kinesis.calls("GetRecords").iter().all(|call| call.shard != Some(0)),
        "a shard that was closed before the start holds nothing to read"
    );
}

/// The clocks of the hosts that take records in are not the same: a record may bear a time from
/// before the start, and yet come after it.
#[tokio::test(start_paused = true)]
async fn latest_takes_what_comes_later_whatever_time_it_bears() {
    let kinesis = Kinesis::with_shards(1);
    kinesis.put(0, "0");
    sleep(Duration::from_secs(60)).await;
    let consumer = consumer(&kinesis).starting_position(StartingPosition::Latest).build().unwrap();
    let mut records = consumer.records();
    assert_silent(&mut records).await;
    kinesis.orders(|orders, now| orders.put(0, "1".into(), now - 90_000));
    assert_eq!(number(&next(&mut records).await), 1);
}
