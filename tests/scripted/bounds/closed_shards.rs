//! Closed shards and their children in bounded readings.

use std::time::SystemTime;

use kinestream::testing::Outcome;
use kinestream::{
    Checkpoint, CheckpointOn, EndingPosition, MemoryStore, ShardOrdering, ShardState,
};
use tokio::time::sleep;

use super::endings::{NOTHING, SECOND, position, rest, to_the_tip, until};
use crate::{assert_silent, calls, consumer, next, number, orders, shards};

#[tokio::test(start_paused = true)]
async fn children_of_a_closed_shard_are_read_and_end_in_the_same_way() {
    for (ordering, names_children) in [
        (ShardOrdering::ParentFirst, true),
        (ShardOrdering::ParentFirst, false),
        (ShardOrdering::Unordered, true),
    ] {
        let (kinesis, orders) = orders(1);
        kinesis.set_child_shards(names_children);
        orders.shard(0).put("0");
        let [left, right] = orders.shard(0).split();
        sleep(SECOND).await;
        left.put("1");
        let end = kinesis.now();
        sleep(SECOND).await;
        left.put("2");
        // All records of this child are later.
        right.put("3");
        let store = MemoryStore::new();
        let builder = || until(&kinesis, end).store(store.clone()).ordering(ordering);
        let job = builder().build().unwrap();
        assert_eq!(rest(&mut job.records()).await, [0, 1], "{ordering:?}, {names_children}");
        job.close().await.unwrap();
        let stored = position(&store, &orders.shard(0).id()).await;
        assert_eq!(stored, Some(Checkpoint::ShardEnd));
        let again = builder().build().unwrap();
        assert_eq!(rest(&mut again.records()).await, NOTHING);
        again.close().await.unwrap();
        let mut rest = consumer(&kinesis).store(store.clone()).build().unwrap().records();
        let mut read = [number(&next(&mut rest).await), number(&next(&mut rest).await)];
        read.sort_unstable();
        assert_eq!(read, [2, 3]);
    }
}

/// A shard that has caught up may be closed, and its children may have records of the time.
#[tokio::test(start_paused = true)]
async fn shard_at_its_tip_is_read_to_its_end_if_it_is_closed() {
    for (fan_out, names_children) in [(false, true), (false, false), (true, true)] {
        for position in [EndingPosition::Latest, EndingPosition::AtTimestamp(SystemTime::now())] {
            let (kinesis, orders) = orders(2);
            kinesis.set_child_shards(names_children);
            orders.shard(0).put("0");
            orders.shard(1).put("1");
            let merged = orders.shard(0).merge(&orders.shard(1));
            merged.put("2");
            let [_, right] = merged.split();
            right.put("3");
            let position = match position {
                EndingPosition::AtTimestamp(_) => EndingPosition::AtTimestamp(kinesis.now()),
                position => position,
            };
            sleep(10 * SECOND).await;
            let builder = consumer(&kinesis).ending_position(position);
            let builder = if fan_out { builder.fan_out("billing") } else { builder };
            let mut records = builder.build().unwrap().records();
            let case = (fan_out, names_children, position);
            assert_eq!(rest(&mut records).await, [0, 1, 2, 3], "{case:?}");
        }
    }
}

/// The shard has caught up, and is closed while the next response is under way.
#[tokio::test(start_paused = true)]
async fn shard_that_is_closed_at_its_tip_is_read_to_its_end() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let store = MemoryStore::new();
    let job = to_the_tip(&kinesis).store(store.clone()).build().unwrap();
    let mut records = job.records();
    assert_eq!(number(&next(&mut records).await), 0);
    kinesis.next_calls("GetRecords", 1, Outcome::Delayed(10 * SECOND));
    let closing = tokio::spawn({
        let shard = orders.shard(0);
        async move {
            sleep(5 * SECOND).await;
            shard.split();
        }
    });
    assert_eq!(rest(&mut records).await, NOTHING);
    closing.await.unwrap();
    job.close().await.unwrap();
    let stored = position(&store, &orders.shard(0).id()).await;
    assert_eq!(stored, Some(Checkpoint::ShardEnd));
}

/// A server that names a next position in many responses of a closed shard.
#[tokio::test(start_paused = true)]
async fn closed_shard_whose_end_comes_late_is_read_to_its_end() {
    let (kinesis, orders) = orders(1);
    kinesis.set_responses_before_end(20);
    orders.shard(0).put("0");
    let [left, right] = orders.shard(0).split();
    left.put("1");
    right.put("2");
    let mut records = to_the_tip(&kinesis).build().unwrap().records();
    assert_eq!(rest(&mut records).await, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn child_that_waits_for_an_acknowledgement_keeps_the_stream_open() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let [left, _] = orders.shard(0).split();
    left.put("1");
    let job = to_the_tip(&kinesis).checkpoint_on(CheckpointOn::Ack).build().unwrap();
    let mut records = job.records();
    let held = next(&mut records).await;
    assert_silent(&mut records).await;
    held.ack();
    let child = next(&mut records).await;
    assert_eq!(number(&child), 1);
    assert_eq!(rest(&mut records).await, NOTHING);
}

#[tokio::test(start_paused = true)]
async fn child_of_a_reached_shard_is_not_read() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let end = kinesis.now();
    sleep(SECOND).await;
    orders.shard(0).put("1");
    let [left, right] = orders.shard(0).split();
    left.put("2");
    right.put("3");
    let job = until(&kinesis, end).build().unwrap();
    let mut records = job.records();
    assert_eq!(rest(&mut records).await, [0]);
    let read = calls(&kinesis, "GetRecords");
    assert!(read.iter().all(|call| call.shard_id == Some(orders.shard(0).id())));
    let states = shards(&job).await;
    assert_eq!(states[&left.id()].state, ShardState::Waiting);
    assert_eq!(states[&orders.shard(0).id()].state, ShardState::EndingReached);
}
