//! The end of a shard in stores that fail or lose it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::store::lease::{Change, HeartbeatRequest};
use kinestream::testing::Stream;
use kinestream::{Checkpoint, CheckpointOn, CheckpointStore, Event, MemoryStore, Record, Records};
use tokio::time::{sleep, timeout};

use crate::gated::{Gated, GatedCall};
use crate::lease_access::LeaseAccess;
use crate::store::recording_store::RecordingStore;
use crate::{assert_silent, consumer, next, number, orders};

const SECOND: Duration = Duration::from_secs(1);

/// Reads record 0, the last one of its shard, which has two children with records 1 and 2.
async fn read_to_the_end(orders: &Stream, records: &mut Records) -> Record {
    orders.shard(0).put("0");
    let last = next(records).await;
    for (child, number) in orders.shard(0).split().iter().zip(1..) {
        child.put(number.to_string());
    }
    assert_silent(records).await;
    last
}

/// After a crash, the records of the parent would be delivered again, after those of its children.
#[tokio::test(start_paused = true)]
async fn child_is_not_read_before_a_store_without_leases_has_the_end_of_its_parent() {
    let (kinesis, orders) = orders(1);
    let store = RecordingStore::default();
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).store(store.clone());
    let mut records = builder.max_unflushed(600 * SECOND).build().unwrap().records();
    let last = read_to_the_end(&orders, &mut records).await;
    store.set_down(true);
    last.ack();
    assert_silent(&mut records).await;
    store.set_down(false);
    let record = next(&mut records).await;
    assert_ne!(number(&record), 0);
    assert_eq!(store.position(0).await.as_deref(), Some("SHARD_END"));
}

/// The store fails over to a replica that lacks the last save. The writer does not save again what
/// the store has confirmed, and the next listing is an hour away.
#[tokio::test(start_paused = true)]
async fn end_of_a_shard_that_the_store_has_confirmed_and_lost_is_restored() {
    let (kinesis, orders) = orders(1);
    let (store, are_exchanges_held) = (MemoryStore::new(), Arc::new(AtomicBool::new(false)));
    let gated = Gated::new(store.clone(), {
        let are_exchanges_held = Arc::clone(&are_exchanges_held);
        move |call| {
            let are_exchanges_held = Arc::clone(&are_exchanges_held);
            async move {
                while call == GatedCall::Exchange && are_exchanges_held.load(Ordering::SeqCst) {
                    sleep(SECOND / 10).await;
                }
                Ok(())
            }
            .boxed()
        }
    });
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).store(gated);
    let consumer = builder.discovery_interval(3600 * SECOND).build().unwrap();
    let (mut events, mut records) = (consumer.events(), consumer.records());
    let last = read_to_the_end(&orders, &mut records).await;
    let replica = store.replica();
    are_exchanges_held.store(true, Ordering::SeqCst);
    last.ack();
    sleep(SECOND).await;
    let (scope, shard) = (Scope::new("default", "orders"), orders.shard(0).id());
    let position = async || store.load(&scope).await.unwrap().get(&shard).cloned();
    assert_eq!(position().await, Some(Checkpoint::ShardEnd));
    store.replace_with_copy_of(&replica);
    assert_ne!(position().await, Some(Checkpoint::ShardEnd));
    are_exchanges_held.store(false, Ordering::SeqCst);
    let child = timeout(10 * SECOND, records.next()).await.expect("a record of a child");
    assert_ne!(number(&child.unwrap().unwrap()), 0);
    assert_eq!(position().await, Some(Checkpoint::ShardEnd));
    let events = std::iter::from_fn(|| events.next().now_or_never().flatten());
    let finished = events.filter(|event| matches!(event, Event::ShardFinished { .. })).count();
    assert_eq!(finished, 1);
}

#[tokio::test(start_paused = true)]
async fn shard_whose_end_is_stored_is_no_longer_held() {
    let (kinesis, orders) = orders(1);
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).store(MemoryStore::new());
    let consumer = builder.build().unwrap();
    let mut records = consumer.records();
    let last = read_to_the_end(&orders, &mut records).await;
    assert_eq!(consumer.health().leases_held, 1);
    last.ack();
    next(&mut records).await;
    sleep(30 * SECOND).await;
    assert_eq!(consumer.health().leases_held, 2, "the children are held");
}

/// Another process stores the end of the shard in the epoch of this worker, which has the last
/// record in flight.
#[tokio::test(start_paused = true)]
async fn end_that_another_process_stores_is_reported_once() {
    let (kinesis, orders) = orders(1);
    let store = MemoryStore::new();
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).store(store.clone());
    let consumer = builder.build().unwrap();
    let (mut events, mut records) = (consumer.events(), consumer.records());
    let last = read_to_the_end(&orders, &mut records).await;
    let shard = orders.shard(0).id();
    let mut request = HeartbeatRequest::new("other", 1, SECOND);
    request.leaving = true;
    request.changes = vec![Change::Finish { shard: shard.clone(), epoch: last.epoch() }];
    store.heartbeat(&Scope::new("default", "orders"), &request).await.unwrap();
    let child = timeout(30 * SECOND, records.next()).await.expect("a record of a child");
    assert_ne!(number(&child.unwrap().unwrap()), 0);
    let mut ends = || {
        let events = std::iter::from_fn(|| events.next().now_or_never().flatten());
        let ends = events.filter(|event| {
            let is_end = matches!(event, Event::ShardFinished { .. } | Event::LeaseLost { .. });
            is_end && event.shard_id() == Some(&shard)
        });
        ends.collect::<Vec<Event>>()
    };
    assert_eq!(ends(), [Event::ShardFinished { shard_id: shard.clone() }]);
    last.ack();
    sleep(10 * SECOND).await;
    assert_eq!(ends(), []);
}
