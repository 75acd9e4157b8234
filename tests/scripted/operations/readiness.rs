//! Readiness and liveness in the situations of a rolling update and of an outage. A caller that
//! hangs is covered by `delivery::stalls`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, future};
use kinestream::testing::{Call, Kinesis, Outcome};
use kinestream::{CheckpointOn, Consumer, ConsumerBuilder, RecordStreamExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::fleet::fleets::Fleet;
use crate::store::faulty_store::FaultyStore;
use crate::store::recording_store::RecordingStore;
use crate::{consumer, denied, orders};

const SECOND: Duration = Duration::from_secs(1);

/// Starts a caller that takes a millisecond for each record and ignores errors.
fn read(builder: ConsumerBuilder) -> Consumer {
    let consumer = builder.build().unwrap();
    let mut records = consumer.records();
    tokio::spawn(async move {
        while let Some(_record) = records.next().await {
            sleep(Duration::from_millis(1)).await;
        }
    });
    consumer
}

fn ready_and_live(consumer: &Consumer) -> (bool, bool) {
    let health = consumer.health();
    (health.is_ready(), health.is_live())
}

/// Collects the health of a consumer at each moment at which it is not ready.
fn watch(consumer: &Consumer) -> JoinHandle<Vec<String>> {
    let consumer = consumer.clone();
    tokio::spawn(async move {
        let (mut unready, until) = (Vec::new(), Instant::now() + 60 * SECOND);
        while Instant::now() < until {
            let health = consumer.health();
            if !health.is_ready() || !health.is_live() {
                unready.push(format!("{health:?}"));
            }
            sleep(Duration::from_millis(50)).await;
        }
        unready
    })
}

#[tokio::test(start_paused = true)]
async fn worker_is_ready_while_another_one_leaves() {
    // With one shard, the worker that stays has none before.
    for shards in [1, 4] {
        for closes in [true, false] {
            let fleet = Fleet::new(shards);
            let _puts = fleet.put_continuously(Duration::from_millis(200));
            let leaving = fleet.start("a");
            sleep(20 * SECOND).await;
            let staying = fleet.start("b");
            sleep(20 * SECOND).await;
            assert_eq!(ready_and_live(&staying.consumer), (true, true));
            let watching = watch(&staying.consumer);
            sleep(SECOND).await;
            if closes {
                leaving.consumer.close().await.unwrap();
                assert_eq!(ready_and_live(&leaving.consumer), (false, true));
            } else {
                leaving.reading.abort();
            }
            assert_eq!(watching.await.unwrap(), [""; 0], "{shards} shards, closes: {closes}");
            fleet.assert_shares(&[("b", shards)]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn worker_is_ready_while_another_one_joins() {
    for (shards, shares) in [(1, &[("a", 1)][..]), (4, &[("a", 2), ("b", 2)])] {
        let fleet = Fleet::new(shards);
        let _puts = fleet.put_continuously(Duration::from_millis(200));
        let first = fleet.start("a");
        sleep(20 * SECOND).await;
        let watching = watch(&first.consumer);
        sleep(SECOND).await;
        let second = fleet.start("b");
        sleep(20 * SECOND).await;
        let watching_second = watch(&second.consumer);
        assert_eq!(watching.await.unwrap(), [""; 0], "{shards} shards");
        assert_eq!(watching_second.await.unwrap(), [""; 0], "{shards} shards");
        fleet.assert_shares(shares).await;
    }
}

/// One handler hangs, and the caller handles the records of other keys.
#[tokio::test(start_paused = true)]
async fn record_that_is_never_acknowledged_makes_a_consumer_unready() {
    for on in [CheckpointOn::Pull, CheckpointOn::Ack] {
        let (kinesis, orders) = orders(1);
        let consumer = consumer(&kinesis).checkpoint_on(on).build().unwrap();
        let handled = consumer.records().buffer_by_key(4, async |record| {
            if record.data() == b"0" {
                future::pending::<()>().await;
            }
            record.ack();
            Ok::<_, kinestream::Error>(())
        });
        let reading = tokio::spawn(handled.try_for_each(future::ok));
        for number in 0..320 {
            orders.shard(0).put_as(&format!("customer-{number}"), number.to_string());
            sleep(SECOND).await;
            let expected = match number {
                20..50 => (true, true),
                70..290 => (false, true),
                310.. => (false, false),
                _ => continue,
            };
            let health = consumer.health();
            assert_eq!((health.is_ready(), health.is_live()), expected, "{on:?}: {health:?}");
            assert_eq!(health.silent_for, None, "{on:?}: the caller polls on");
        }
        reading.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn store_without_leases_that_is_away_beyond_its_limit_makes_a_consumer_unready() {
    let (kinesis, orders) = orders(1);
    let store = RecordingStore::default();
    let consumer = read(consumer(&kinesis).store(store.clone()).max_unflushed(30 * SECOND));
    orders.shard(0).put("0");
    sleep(5 * SECOND).await;
    store.set_down(true);
    orders.shard(0).put("1");
    sleep(25 * SECOND).await;
    assert_eq!(ready_and_live(&consumer), (true, true), "within max_unflushed");
    assert!(!consumer.health().is_delivery_paused);
    sleep(40 * SECOND).await;
    assert_eq!(ready_and_live(&consumer), (false, true), "beyond max_unflushed");
    assert!(consumer.health().is_delivery_paused);
    store.set_down(false);
    sleep(60 * SECOND).await;
    assert_eq!(ready_and_live(&consumer), (true, true), "after the outage");
}

#[tokio::test(start_paused = true)]
async fn store_with_leases_that_is_away_beyond_the_lease_makes_a_consumer_unready() {
    let (kinesis, _orders) = orders(1);
    let store = FaultyStore::default();
    let lease = 10 * SECOND;
    let consumer = read(consumer(&kinesis).store(store.clone()).lease_duration(lease));
    sleep(20 * SECOND).await;
    assert_eq!(ready_and_live(&consumer), (true, true));
    store.fails.store(true, Ordering::SeqCst);
    sleep(6 * SECOND).await;
    assert_eq!(ready_and_live(&consumer), (true, true), "within lease_duration");
    sleep(8 * SECOND).await;
    assert_eq!(ready_and_live(&consumer), (false, true), "beyond lease_duration");
    sleep(8 * SECOND).await;
    assert_eq!(ready_and_live(&consumer), (false, false), "beyond twice lease_duration");
    store.fails.store(false, Ordering::SeqCst);
    sleep(30 * SECOND).await;
    assert_eq!(ready_and_live(&consumer), (true, true), "after the outage");
}

/// Fails the calls that match.
fn fail(kinesis: &Kinesis, outcome: Outcome, is_failed: impl Fn(&Call) -> bool + Send + 'static) {
    kinesis.on_call(move |call| if is_failed(call) { outcome.clone() } else { Outcome::Served });
}

#[tokio::test(start_paused = true)]
async fn consumer_is_unready_after_a_minute_without_a_successful_fetch() {
    let (internal, throttled) = (Outcome::failed(500, "InternalFailure", ""), Outcome::throttled());
    for outcome in [internal, throttled, Outcome::Refused, Outcome::Hangs] {
        // The listings fail as well, or succeed.
        for all in [true, false] {
            let (kinesis, _orders) = orders(2);
            let consumer = read(consumer(&kinesis));
            sleep(20 * SECOND).await;
            assert_eq!(ready_and_live(&consumer), (true, true));
            fail(&kinesis, outcome.clone(), move |call| all || call.operation == "GetRecords");
            sleep(55 * SECOND).await;
            assert_eq!(ready_and_live(&consumer), (true, true), "{outcome:?}");
            sleep(45 * SECOND).await;
            for _ in 0..100 {
                let health = consumer.health();
                assert!(!health.is_ready() && health.is_live(), "{outcome:?}: {health:?}");
                sleep(10 * SECOND).await;
            }
            fail(&kinesis, Outcome::Served, |_| false);
            // Failed shards are read again within 5 min.
            sleep(400 * SECOND).await;
            assert_eq!(ready_and_live(&consumer), (true, true), "{outcome:?}");
            assert_eq!(consumer.health().failing_for, None);
        }
    }
}

/// The first pod with a wrong role stops a rolling update.
#[tokio::test(start_paused = true)]
async fn consumer_that_has_never_fetched_is_unready_from_the_first_failure() {
    for operation in ["ListShards", "GetShardIterator", "GetRecords"] {
        let (kinesis, _orders) = orders(1);
        fail(&kinesis, denied(), move |call| call.operation == operation);
        let consumer = read(consumer(&kinesis));
        sleep(5 * SECOND).await;
        for _ in 0..100 {
            let health = consumer.health();
            assert!(!health.is_ready() && health.is_live(), "{operation}: {health:?}");
            sleep(10 * SECOND).await;
        }
        fail(&kinesis, Outcome::Served, |_| false);
        sleep(400 * SECOND).await;
        assert_eq!(ready_and_live(&consumer), (true, true), "{operation}");
    }
}

#[tokio::test(start_paused = true)]
async fn consumer_that_reads_some_of_its_shards_is_ready() {
    let (kinesis, orders) = orders(2);
    let failing = orders.shard(1).id();
    fail(&kinesis, denied(), move |call| call.shard_id.as_ref() == Some(&failing));
    let consumer = read(consumer(&kinesis));
    sleep(20 * SECOND).await;
    let unready = watch(&consumer).await.unwrap();
    assert_eq!(unready, [""; 0]);
}

/// The caller is busy with fetched records for minutes, so no other shard needs to fetch.
#[tokio::test(start_paused = true)]
async fn consumer_with_fetched_records_is_ready_while_another_shard_fails() {
    let (kinesis, orders) = orders(2);
    for number in 0..100 {
        orders.shard(0).put(number.to_string());
    }
    let consumer = consumer(&kinesis).limit(20).checkpoint_on(CheckpointOn::Ack).build().unwrap();
    let mut records = consumer.records();
    for number in 0..40 {
        records.next().await.unwrap().unwrap().ack();
        if number == 0 {
            let failing = orders.shard(1).id();
            fail(&kinesis, Outcome::throttled(), move |call| {
                call.shard_id.as_ref() == Some(&failing)
            });
        }
        sleep(20 * SECOND).await;
        let health = consumer.health();
        assert!(health.is_ready(), "record {number}: {health:?}");
    }
}

/// A worker whose only shard has failed, and is read by another worker since.
#[tokio::test(start_paused = true)]
async fn worker_without_a_shard_forgets_failures_after_ten_minutes() {
    let fleet = Fleet::new(1);
    let (failing, _errors) = fleet.start_signed("a");
    sleep(20 * SECOND).await;
    let _other = fleet.start_signed("b");
    sleep(20 * SECOND).await;
    fleet.assert_shares(&[("a", 1)]).await;
    let is_failed =
        |call: &Call| call.operation == "GetRecords" && call.access_key_id.as_deref() == Some("a");
    fail(&fleet.kinesis, denied(), is_failed);
    sleep(300 * SECOND).await;
    fleet.assert_shares(&[("b", 1)]).await;
    assert_eq!(ready_and_live(&failing), (false, true));
    sleep(600 * SECOND).await;
    assert_eq!(ready_and_live(&failing), (true, true));
}

#[tokio::test(start_paused = true)]
async fn worker_id_is_that_of_the_status() {
    let fleet = Fleet::new(1);
    let consumer = read(fleet.builder("pod-1"));
    sleep(5 * SECOND).await;
    assert_eq!(consumer.worker_id(), "pod-1");
    assert_eq!(consumer.status().await.unwrap().workers, [consumer.worker_id()]);
    let default = crate::consumer(&fleet.kinesis).build().unwrap();
    let other = crate::consumer(&fleet.kinesis).build().unwrap();
    assert_ne!(default.worker_id(), other.worker_id());
    assert!(default.worker_id().contains(&std::process::id().to_string()));
}
