//! Polling of streams by wakers that poll inline, and on more than one runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::{CheckpointOn, CheckpointStore, ErrorKind, MemoryStore, Record, ShardId};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use crate::fleet::fleets::Fleet;
use crate::inline::Inline;
use crate::{consumer, next, number, orders};

const SECOND: Duration = Duration::from_secs(1);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Runs a test in its own thread, since one that deadlocks never returns. Panics after 60 s.
pub(crate) fn without_deadlock<F: Future<Output = ()>>(
    scenario: impl FnOnce() -> F + Send + 'static,
) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        runtime().block_on(scenario());
        done.send(()).unwrap();
    });
    match ended.recv_timeout(60 * SECOND) {
        Err(mpsc::RecvTimeoutError::Timeout) => {
            panic!("the test has deadlocked: it has not finished within 60 s")
        }
        _ => thread.join().unwrap(),
    }
}

/// Reads all records with a waker that polls inline, and acknowledges each if `acks` is true.
fn read_inline(mut records: kinestream::Records, acks: bool) -> (Arc<Inline>, Arc<Mutex<usize>>) {
    let seen = Arc::new(Mutex::new(0));
    let count = Arc::clone(&seen);
    let inline = Inline::start(async move {
        while let Some(record) = records.next().await {
            let Ok(record) = record else { continue };
            *count.lock().unwrap() += 1;
            if acks {
                record.ack();
            }
        }
        // Dropped inside the last wake.
        drop(records);
    });
    (inline, seen)
}

#[test]
fn inline_waker_reads_through_saves_and_close() {
    for mode in [CheckpointOn::Pull, CheckpointOn::Ack] {
        for interval in [Duration::ZERO, SECOND] {
            without_deadlock(move || async move {
                let (kinesis, orders) = orders(2);
                let builder = consumer(&kinesis).checkpoint_on(mode).max_in_flight(3);
                let builder = builder.checkpoint_interval(interval);
                let consumer = builder.poll_timeout(Some(5 * SECOND)).build().unwrap();
                let (inline, seen) = read_inline(consumer.records(), mode == CheckpointOn::Ack);
                for place in 0..50 {
                    orders.shard(place % 2).put(place.to_string());
                    sleep(SECOND / 4).await;
                }
                sleep(60 * SECOND).await;
                assert_eq!(*seen.lock().unwrap(), 50);
                consumer.close().await.unwrap();
                assert!(inline.has_ended(), "expected the stream to end with the close");
            });
        }
    }
}

#[test]
fn inline_waker_reads_through_store_outages_and_handoffs() {
    without_deadlock(|| async {
        let fleet = Fleet::new(2);
        let store = crate::store::recording_store::RecordingStore::default();
        let builder = consumer(&fleet.kinesis).store(store.clone());
        let alone = builder.max_unflushed(2 * SECOND).build().unwrap();
        let (_inline, seen) = read_inline(alone.records(), false);
        for place in 0..20 {
            store.set_down(place % 8 > 3);
            fleet.orders.shard(place % 2).put(place.to_string());
            sleep(SECOND).await;
        }
        store.set_down(false);
        sleep(60 * SECOND).await;
        assert_eq!(*seen.lock().unwrap(), 20);
        alone.close().await.unwrap();

        let first = fleet.builder("a").build().unwrap();
        let (_first, seen) = read_inline(first.records(), false);
        sleep(20 * SECOND).await;
        let second = fleet.builder("b").build().unwrap();
        let (inline, others) = read_inline(second.records(), false);
        sleep(20 * SECOND).await;
        fleet.orders.shard(0).put("20");
        fleet.orders.shard(1).put("21");
        sleep(20 * SECOND).await;
        assert_eq!(*seen.lock().unwrap() + *others.lock().unwrap(), 22);
        second.close().await.unwrap();
        assert!(inline.has_ended());
        first.close().await.unwrap();
    });
}

/// An ack in another task wakes the stream that waits at its in-flight limit.
#[test]
fn inline_waker_resumes_when_a_record_is_acknowledged() {
    without_deadlock(|| async {
        let (kinesis, orders) = orders(1);
        let consumer =
            consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).max_in_flight(1).build().unwrap();
        let mut records = consumer.records();
        let held = Arc::new(Mutex::new(Vec::<Record>::new()));
        let kept = Arc::clone(&held);
        let _inline = Inline::start(async move {
            while let Some(Ok(record)) = records.next().await {
                kept.lock().unwrap().push(record);
            }
        });
        for place in 0..10 {
            orders.shard(0).put(place.to_string());
        }
        sleep(5 * SECOND).await;
        for place in 0..10 {
            let record = held.lock().unwrap().pop().expect("the next record after an ack");
            assert_eq!(number(&record), place);
            record.ack();
            sleep(SECOND).await;
        }
    });
}

#[test]
fn stream_ends_with_an_error_after_its_runtime_has_shut_down() {
    for polled_first in [false, true] {
        let (kinesis, orders) = orders(2);
        let store = MemoryStore::new();
        let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
        let mut records = consumer.records();
        let first = runtime();
        first.block_on(async {
            if polled_first {
                orders.shard(0).put("0");
                assert_eq!(number(&next(&mut records).await), 0);
            } else {
                assert!(timeout(Duration::ZERO, records.next()).await.is_err());
            }
        });
        drop(first);
        let second = runtime();
        second.block_on(async {
            orders.shard(1).put("1");
            let next_of = async |records: &mut kinestream::Records| {
                timeout(60 * SECOND, records.next()).await.expect("an item within 60 s")
            };
            let error = next_of(&mut records).await.expect("an error").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::RuntimeShutdown, "{error}");
            assert!(error.to_string().contains("orders"), "{error}");
            assert!(next_of(&mut records).await.is_none(), "expected one error");
            drop(records);
            // A new stream of the same consumer reads on.
            let mut records = consumer.records();
            let mut numbers = Vec::new();
            while !numbers.contains(&1) {
                numbers.push(number(&next(&mut records).await));
            }
            consumer.close().await.unwrap();
            let stored = store.load(&Scope::new("default", "orders")).await.unwrap();
            assert!(stored.contains_key(&orders.shard(1).id()));
        });
    }
}

#[test]
fn shard_stream_ends_with_an_error_after_its_runtime_has_shut_down() {
    let (kinesis, orders) = orders(1);
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).max_in_flight(1);
    let consumer = builder.build().unwrap();
    let mut shards = consumer.shards();
    let first = runtime();
    let (mut shard, held) = first.block_on(async {
        orders.shard(0).put("0");
        orders.shard(0).put("1");
        let mut shard = shards.next().await.unwrap().unwrap();
        let held = shard.next().await.unwrap().unwrap();
        assert!(
            timeout(SECOND, shard.next()).await.is_err(),
            "expected the in-flight limit to pause the shard"
        );
        (shard, held)
    });
    let second = runtime();
    second.block_on(async {
        let reading = tokio::spawn(async move {
            let error = shard.next().await.unwrap().unwrap_err();
            assert!(shard.next().await.is_none());
            error
        });
        sleep(SECOND).await;
        first.shutdown_background();
        let error =
            timeout(60 * SECOND, reading).await.expect("a wake of the waiting stream").unwrap();
        assert_eq!(error.kind(), ErrorKind::RuntimeShutdown);
        assert_eq!(error.shard_id().map(ShardId::as_str), Some("shardId-000000000000"));
        let error = timeout(60 * SECOND, shards.next()).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RuntimeShutdown);
        assert!(shards.next().await.is_none());
        drop(held);
    });
}

/// After the documented panic, the stream can still be polled within a runtime.
#[test]
fn stream_polled_outside_of_a_runtime_can_be_polled_inside_one_later() {
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    let outside = catch_unwind(AssertUnwindSafe(|| records.next().now_or_never().is_some()));
    assert!(outside.is_err());
    runtime().block_on(async {
        orders.shard(0).put("0");
        assert_eq!(number(&next(&mut records).await), 0);
    });
}
