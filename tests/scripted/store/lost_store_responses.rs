//! Exchanges that the store carries out, with lost responses.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::{Checkpoint, CheckpointStore, ErrorKind, Event, Events, OnTrimmed, Records};
use tokio::time::{Instant, timeout, timeout_at};

use crate::store::faulty_store::FaultyStore;
use crate::{assert_silent, calls, consumer, next, number, orders, read_first};

const INTERVAL: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

fn gaps(events: &mut Events) -> usize {
    let all = std::iter::from_fn(|| events.next().now_or_never().flatten());
    all.filter(|event| matches!(event, Event::Gap { .. })).count()
}

/// Counts the errors of kind `Trimmed` within five minutes.
async fn losses(records: &mut Records) -> usize {
    let mut losses = 0;
    let until = Instant::now() + 5 * MINUTE;
    while let Ok(Some(next)) = timeout_at(until, records.next()).await {
        losses += usize::from(next.is_err_and(|error| error.kind() == ErrorKind::Trimmed));
    }
    losses
}

/// A position of an expired shard appears in the store while the worker reads.
#[tokio::test(start_paused = true)]
async fn loss_is_reported_once_if_the_response_that_stored_it_was_lost() {
    for on_trimmed in [OnTrimmed::Fail, OnTrimmed::TrimHorizon] {
        for lost_answers in 0..3 {
            let (kinesis, orders) = orders(1);
            let store = FaultyStore::default();
            let consumer = consumer(&kinesis)
                .store(store.clone())
                .discovery_interval(INTERVAL)
                .on_trimmed(on_trimmed)
                .build()
                .unwrap();
            let mut events = consumer.events();
            let mut records = consumer.records();
            let sequence_number = orders.shard(0).put("0");
            assert_eq!(number(&next(&mut records).await), 0);
            assert_silent(&mut records).await;
            let position =
                Checkpoint::AfterSequenceNumber { sequence_number, sub_sequence_number: None };
            let gone = "shardId-000000000099".parse().unwrap();
            store.save(&Scope::new("default", "orders"), &[(gone, position)]).await.unwrap();
            store.lost_answers.store(lost_answers, Ordering::SeqCst);
            let found = losses(&mut records).await + gaps(&mut events);
            assert_eq!(found, 1, "{on_trimmed:?}, {lost_answers} answers lost");
            // A change that has been stored is not requested again.
            store.lost_answers.store(0, Ordering::SeqCst);
            assert_eq!(losses(&mut records).await + gaps(&mut events), 0, "{on_trimmed:?}");
        }
    }
}

/// A worker starts with the position of an earlier stream of the same name.
#[tokio::test(start_paused = true)]
async fn replaced_position_is_reported_once_if_the_response_that_stored_it_was_lost() {
    for on_trimmed in [OnTrimmed::Fail, OnTrimmed::TrimHorizon] {
        for lost_answers in 0..2 {
            let (kinesis, before) = orders(1);
            let store = FaultyStore::default();
            let (first, records) = read_first(&kinesis, &before, &store.stored).await;
            drop(records);
            first.close().await.unwrap();
            kinesis.delete_stream("orders");
            kinesis.create_stream("orders", 1);
            store.lost_answers.store(lost_answers, Ordering::SeqCst);
            let consumer = consumer(&kinesis).store(store).on_trimmed(on_trimmed).build().unwrap();
            let mut events = consumer.events();
            let mut records = consumer.records();
            let found = losses(&mut records).await + gaps(&mut events);
            assert_eq!(found, 1, "{on_trimmed:?}, {lost_answers} answers lost");
        }
    }
}

/// Only a listing shows the children of the first shard, which is finished in the store. The
/// listing completes while the store fails. So does the second shard, and its end names its
/// children.
#[tokio::test(start_paused = true)]
async fn listing_is_not_lost_when_other_children_are_stored_before_it() {
    let (kinesis, orders) = orders(2);
    let store = FaultyStore::default();
    let finished = [(orders.shard(0).id(), Checkpoint::ShardEnd)];
    store.save(&Scope::new("default", "orders"), &finished).await.unwrap();
    let consumer = consumer(&kinesis)
        .store(store.clone())
        .discovery_interval(MINUTE)
        .lease_duration(MINUTE)
        .build()
        .unwrap();
    let mut records = consumer.records();
    let quiet = timeout(Duration::from_secs(50), records.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    store.fails.store(true, Ordering::SeqCst);
    for shard in 0..2 {
        orders.shard(shard).split()[0].put(shard.to_string());
    }
    let listings = calls(&kinesis, "ListShards").len();
    let quiet = timeout(Duration::from_secs(15), records.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert!(
        calls(&kinesis, "ListShards").len() > listings,
        "expected a listing while the store fails"
    );
    store.fails.store(false, Ordering::SeqCst);
    let mut read = Vec::new();
    let before_next_listing = Instant::now() + Duration::from_secs(50);
    for _ in 0..2 {
        let record = timeout_at(before_next_listing, records.next()).await;
        read.push(number(
            &record.expect("records of both children before the next listing").unwrap().unwrap(),
        ));
    }
    read.sort_unstable();
    assert_eq!(read, [0, 1]);
}
