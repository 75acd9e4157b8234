//! Callers that stop, as reported by events, the status and the health.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::testing::Outcome;
use kinestream::{CheckpointOn, Event, Health, InFlightLimit};
use tokio::time::{sleep, timeout};

use crate::store::recording_store::RecordingStore;
use crate::{assert_silent, consumer, next, number, orders};

const SECOND: Duration = Duration::from_secs(1);

fn stalls(events: &mut kinestream::Events) -> Vec<Event> {
    let all = std::iter::from_fn(|| events.next().now_or_never().flatten());
    all.filter(|event| matches!(event, Event::Stalled { .. })).collect()
}

fn about(time: Option<Duration>, seconds: u64) -> bool {
    time.is_some_and(|time| time.abs_diff(Duration::from_secs(seconds)) <= 2 * SECOND)
}

/// Two records stay without an `ack()`, as if a `filter` had dropped them.
#[tokio::test(start_paused = true)]
async fn stall_at_the_in_flight_limit_is_reported_once_until_the_shard_moves() {
    let (kinesis, orders) = orders(2);
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).max_in_flight(2);
    let consumer = builder.build().unwrap();
    let (mut records, mut events) = (consumer.records(), consumer.events());
    for place in 0..6 {
        orders.shard(0).put(place.to_string());
    }
    let first = next(&mut records).await;
    let second = next(&mut records).await;
    assert!(timeout(29 * SECOND, records.next()).await.is_err());
    assert_eq!(stalls(&mut events), []);
    // The stall is noticed without another poll.
    sleep(3 * SECOND).await;
    let reported = stalls(&mut events);
    let [Event::Stalled { shard_id, limit: InFlightLimit::Records, unacknowledged: 2, oldest }] =
        &reported[..]
    else {
        panic!("{reported:?}")
    };
    assert_eq!(*shard_id, orders.shard(0).id());
    assert!(about(Some(*oldest), 30), "{oldest:?}");
    assert_silent(&mut records).await;
    assert_eq!(stalls(&mut events), [], "expected one event for the stall");

    let status = consumer.status().await.unwrap();
    let stuck = &status.shards[&orders.shard(0).id()];
    assert_eq!((stuck.unacknowledged, stuck.held_by), (Some(2), Some(InFlightLimit::Records)));
    assert!(about(stuck.oldest_unacknowledged, 92), "{stuck:?}");
    let behind = stuck.millis_behind_latest.unwrap();
    assert!(
        (90_000..95_000).contains(&behind),
        "expected the lag of fetched and undelivered records: {behind}"
    );
    let other = &status.shards[&orders.shard(1).id()];
    assert_eq!((other.unacknowledged, other.millis_behind_latest), (Some(0), Some(0)));
    assert_eq!((other.oldest_unacknowledged, other.held_by), (None, None));

    second.ack();
    let third = next(&mut records).await;
    sleep(32 * SECOND).await;
    assert_eq!(stalls(&mut events).len(), 1, "expected another event after the shard has moved");
    first.ack();
    third.ack();
    for _ in 3..6 {
        next(&mut records).await.ack();
    }
    assert_silent(&mut records).await;
    assert_eq!(stalls(&mut events), []);
    let status = consumer.status().await.unwrap();
    let read = &status.shards[&orders.shard(0).id()];
    assert_eq!((read.unacknowledged, read.millis_behind_latest), (Some(0), Some(0)));
}

#[tokio::test(start_paused = true)]
async fn stall_at_the_limit_of_bytes_names_the_limit() {
    let (kinesis, orders) = orders(1);
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).max_in_flight_bytes(1000);
    let consumer = builder.build().unwrap();
    let (mut records, mut events) = (consumer.records(), consumer.events());
    for place in 0..4 {
        orders.shard(0).put(format!("{place:0>400}"));
    }
    let (first, second) = (next(&mut records).await, next(&mut records).await);
    assert!(timeout(32 * SECOND, records.next()).await.is_err());
    let reported = stalls(&mut events);
    let [Event::Stalled { limit: InFlightLimit::Bytes, unacknowledged: 2, .. }] = &reported[..]
    else {
        panic!("{reported:?}")
    };
    let status = consumer.status().await.unwrap();
    let held_by =
        |status: &kinestream::ApplicationStatus| status.shards[&orders.shard(0).id()].held_by;
    assert_eq!(held_by(&status), Some(InFlightLimit::Bytes));
    first.ack();
    second.ack();
    for _ in 2..4 {
        next(&mut records).await.ack();
    }
    assert_silent(&mut records).await;
    assert_eq!(held_by(&consumer.status().await.unwrap()), None);
    assert_eq!(stalls(&mut events), []);
}

/// A caller that is slow but not stuck is not reported.
#[tokio::test(start_paused = true)]
async fn caller_that_acknowledges_slowly_is_not_stalled() {
    let (kinesis, orders) = orders(1);
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).max_in_flight(3);
    let consumer = builder.build().unwrap();
    let (mut records, mut events) = (consumer.records(), consumer.events());
    for place in 0..20 {
        orders.shard(0).put(place.to_string());
    }
    for _ in 0..20 {
        let record = next(&mut records).await;
        sleep(20 * SECOND).await;
        let health = consumer.health();
        assert!(health.is_live() && health.is_ready(), "{health:?}");
        assert!(about(health.oldest_unacknowledged, 20), "{health:?}");
        record.ack();
    }
    assert_eq!(stalls(&mut events), []);
}

fn ready_and_live(health: &Health) -> (bool, bool) {
    (health.is_ready(), health.is_live())
}

#[tokio::test(start_paused = true)]
async fn health_is_ready_from_the_first_table_and_live_while_idle() {
    let (kinesis, orders) = orders(2);
    let store = RecordingStore::slow(2 * SECOND);
    let consumer = consumer(&kinesis).store(store).build().unwrap();
    let health = consumer.health();
    assert_eq!(
        ready_and_live(&health),
        (false, true),
        "expected live and not ready before the first poll: {health:?}"
    );
    assert_eq!((health.since_poll, health.since_renewal, health.since_fetch), (None, None, None));
    let mut records = consumer.records();
    assert!(timeout(SECOND, records.next()).await.is_err());
    let health = consumer.health();
    assert_eq!(
        ready_and_live(&health),
        (false, true),
        "expected live and not ready before the worker has joined: {health:?}"
    );
    // There is no record for the caller for an hour.
    assert!(timeout(3600 * SECOND, records.next()).await.is_err());
    let health = consumer.health();
    assert_eq!(
        ready_and_live(&health),
        (true, true),
        "expected ready and live with an idle stream: {health:?}"
    );
    assert_eq!(health.leases_held, 2);
    assert_eq!((health.oldest_unacknowledged, health.silent_for), (None, None));
    assert!(health.since_renewal.unwrap() <= 5 * SECOND, "{health:?}");
    assert!(health.since_fetch.unwrap() <= 2 * SECOND, "{health:?}");
    assert_eq!(health.checkpoint_age, None);
    orders.shard(0).put("0");
    next(&mut records).await;
    consumer.close().await.unwrap();
    let health = consumer.health();
    assert_eq!(
        ready_and_live(&health),
        (false, true),
        "expected live and not ready after a close: {health:?}"
    );
    assert_eq!(health.leases_held, 0);
}

#[tokio::test(start_paused = true)]
async fn health_shows_a_hanging_handler() {
    // The handler hangs before or after it acknowledges its record, without the next poll.
    for mode in [CheckpointOn::Pull, CheckpointOn::Ack] {
        for acks in [false, true] {
            let (kinesis, orders) = orders(1);
            let consumer = consumer(&kinesis).checkpoint_on(mode).build().unwrap();
            let mut records = consumer.records();
            orders.shard(0).put("0");
            let record = next(&mut records).await;
            if acks {
                record.ack();
            }
            sleep(50 * SECOND).await;
            assert_eq!(ready_and_live(&consumer.health()), (true, true), "{mode:?}");
            sleep(20 * SECOND).await;
            assert_eq!(ready_and_live(&consumer.health()), (false, true), "{mode:?}");
            sleep(240 * SECOND).await;
            let health = consumer.health();
            assert_eq!(ready_and_live(&health), (false, false), "{mode:?} {health:?}");
            assert!(health.is_live_within(3600 * SECOND));
            assert!(about(health.silent_for, 310), "{health:?}");
            let held = health.oldest_unacknowledged;
            assert!(if acks { held.is_none() } else { about(held, 310) }, "{health:?}");
            // The handler continues.
            record.ack();
            orders.shard(0).put("1");
            assert_eq!(number(&next(&mut records).await), 1);
            assert_eq!(ready_and_live(&consumer.health()), (true, true), "{mode:?}");
        }
    }
}

/// The caller was waiting when the record arrived, and polls no further, as in a `select!` with
/// another branch that hangs.
#[tokio::test(start_paused = true)]
async fn health_shows_a_caller_that_does_not_take_its_record() {
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    assert_silent(&mut records).await;
    orders.shard(0).put("0");
    sleep(310 * SECOND).await;
    let health = consumer.health();
    assert_eq!(ready_and_live(&health), (false, false), "{health:?}");
    let status = consumer.status().await.unwrap();
    let behind = status.shards[&orders.shard(0).id()].millis_behind_latest.unwrap();
    assert!(behind > 300_000, "{behind}");
}

/// One of several shard streams is not polled.
#[tokio::test(start_paused = true)]
async fn health_shows_a_shard_stream_that_is_not_polled() {
    let (kinesis, orders) = orders(2);
    let consumer = consumer(&kinesis).build().unwrap();
    let mut shards = consumer.shards();
    let (mut first, second) =
        (shards.next().await.unwrap().unwrap(), shards.next().await.unwrap().unwrap());
    let reading = tokio::spawn(async move { while first.next().await.is_some() {} });
    for place in 0..310 {
        orders.shard(0).put(place.to_string());
        sleep(SECOND).await;
    }
    let health = consumer.health();
    assert_eq!(ready_and_live(&health), (false, false), "{health:?}");
    drop(second);
    let mut again = shards.next().await.unwrap().unwrap();
    assert!(again.next().now_or_never().is_none());
    assert_eq!(ready_and_live(&consumer.health()), (true, true), "{:?}", consumer.health());
    reading.abort();
}

#[tokio::test(start_paused = true)]
async fn health_shows_unsaved_checkpoints_and_failing_fetches() {
    let (kinesis, orders) = orders(1);
    let store = RecordingStore::default();
    let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = consumer.records();
    orders.shard(0).put("0");
    next(&mut records).await;
    store.set_down(true);
    assert!(timeout(20 * SECOND, records.next()).await.is_err());
    let health = consumer.health();
    assert!(about(health.checkpoint_age, 20), "{health:?}");
    store.set_down(false);
    assert_silent(&mut records).await;
    assert_eq!(consumer.health().checkpoint_age, None);
    kinesis.next_calls("GetRecords", 100, Outcome::failed(500, "InternalFailure", ""));
    assert!(timeout(5 * SECOND, records.next()).await.is_err());
    assert!(about(consumer.health().since_fetch, 4), "{:?}", consumer.health());
}

#[test]
fn health_shows_a_runtime_that_has_shut_down() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap()
    };
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    let first = runtime();
    first.block_on(async {
        orders.shard(0).put("0");
        next(&mut records).await;
    });
    assert_eq!(ready_and_live(&consumer.health()), (true, true));
    drop(first);
    let health = consumer.health();
    assert_eq!(ready_and_live(&health), (false, false), "{health:?}");
    drop(records);
    let second = runtime();
    second.block_on(async {
        let mut records = consumer.records();
        next(&mut records).await;
        assert_eq!(
            ready_and_live(&consumer.health()),
            (true, true),
            "expected ready and live with a new stream on a new runtime"
        );
    });
}

#[tokio::test(start_paused = true)]
async fn ended_shard_stream_that_is_kept_leaves_the_consumer_live() {
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).build().unwrap();
    let mut shards = consumer.shards();
    let mut first = shards.next().await.unwrap().unwrap();
    orders.shard(0).put("0");
    orders.shard(0).split();
    while let Some(record) = first.next().await {
        record.unwrap();
    }
    tokio::spawn(async move {
        while let Some(shard) = shards.next().await {
            let mut shard = shard.unwrap();
            tokio::spawn(async move { while let Some(_record) = shard.next().await {} });
        }
    });
    sleep(600 * SECOND).await;
    let health = consumer.health();
    assert!(health.is_live() && health.is_ready(), "{health:?}");
    drop(first);
}

/// Children wait for an unacknowledged record of their parent, which is read to its end.
#[tokio::test(start_paused = true)]
async fn unacknowledged_record_of_an_ended_shard_is_shown() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let consumer = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).build().unwrap();
    let mut records = consumer.records();
    let record = next(&mut records).await;
    let [left, _right] = orders.shard(0).split();
    left.put("1");
    assert!(timeout(100 * SECOND, records.next()).await.is_err());
    let status = consumer.status().await.unwrap();
    let parent = &status.shards[&orders.shard(0).id()];
    assert_eq!(parent.unacknowledged, Some(1));
    assert!(about(parent.oldest_unacknowledged, 100), "{parent:?}");
    let health = consumer.health();
    assert!(about(health.oldest_unacknowledged, 100), "{health:?}");
    record.ack();
    let child = next(&mut records).await;
    assert_eq!(number(&child), 1);
    child.ack();
    assert_eq!(consumer.health().oldest_unacknowledged, None);
}
