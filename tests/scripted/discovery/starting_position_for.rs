//! `starting_position_for`: the starting positions of named shards and of their descendants.

use std::collections::BTreeSet;
use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures::{FutureExt, StreamExt};
use kinestream::testing::{Call, Kinesis, Shard, Stream, aggregate};
use kinestream::{
    Checkpoint, CheckpointOn, ConsumerBuilder, Error, ErrorKind, MemoryStore, Records,
    ShardPosition, ShardState, StartingPosition,
};
use tokio::time::{sleep, timeout};

use crate::gated::{Gated, GatedCall};
use crate::{assert_silent, calls, consumer, next, number, orders, shards};

/// Longer than the precision of `Latest`.
const EARLIER: Duration = Duration::from_secs(5);

fn latest(kinesis: &Kinesis) -> ConsumerBuilder {
    consumer(kinesis).starting_position(StartingPosition::Latest)
}

async fn read(records: &mut Records, count: usize) -> BTreeSet<usize> {
    let mut read = BTreeSet::new();
    for _ in 0..count {
        let record = next(records).await;
        record.ack();
        assert!(read.insert(number(&record)), "expected {record:?} once");
    }
    assert_silent(records).await;
    read
}

fn put_aggregate(shard: &Shard, numbers: std::ops::Range<usize>) {
    shard.put(aggregate(numbers.map(|number| (format!("key-{number}"), number.to_string()))));
}

#[tokio::test(start_paused = true)]
async fn checkpoint_of_record_starts_after_it() {
    let (kinesis, orders) = orders(1);
    let shard = orders.shard(0);
    shard.put("0");
    put_aggregate(&shard, 1..4);
    put_aggregate(&shard, 4..5);
    shard.put("5");
    let mut all = consumer(&kinesis).build().unwrap().records();
    let mut checkpoints = Vec::new();
    for expected in 0..6 {
        let record = next(&mut all).await;
        assert_eq!(number(&record), expected);
        checkpoints.push(record.checkpoint());
    }
    let after = |number: &str| format!("AFTER_SEQUENCE_NUMBER:{number}");
    let numbers = shard.sequence_numbers();
    let texts: Vec<String> = checkpoints.iter().map(Checkpoint::to_string).collect();
    let expected = [
        after(numbers[0].as_str()),
        format!("{}:0", after(numbers[1].as_str())),
        format!("{}:1", after(numbers[1].as_str())),
        after(numbers[1].as_str()),
        after(numbers[2].as_str()),
        after(numbers[3].as_str()),
    ];
    assert_eq!(texts, expected);
    for (last, text) in texts.iter().enumerate() {
        for start in [StartingPosition::Latest, StartingPosition::TrimHorizon] {
            let checkpoint: Checkpoint = text.parse().unwrap();
            let builder = consumer(&kinesis).starting_position(start);
            let consumer = builder.starting_position_for(shard.id(), checkpoint).build().unwrap();
            let rest = read(&mut consumer.records(), 5 - last).await;
            assert!(rest.into_iter().eq(last + 1..6), "after {text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_checkpoint_is_a_starting_position() {
    let kinesis = Kinesis::at(SystemTime::now() - Duration::from_secs(3600));
    let orders = kinesis.create_stream("orders", 1);
    let shard = orders.shard(0);
    shard.put("0");
    sleep(EARLIER).await;
    let middle = kinesis.now();
    shard.put("1");
    for (checkpoint, expected) in [
        (Checkpoint::TrimHorizon, vec![0, 1]),
        (Checkpoint::AtTimestamp(middle), vec![1]),
        (Checkpoint::ShardEnd, vec![]),
    ] {
        let start = ShardPosition::from(checkpoint.clone());
        let consumer = latest(&kinesis).starting_position_for(shard.id(), start).build().unwrap();
        let rest = read(&mut consumer.records(), expected.len()).await;
        assert!(rest.into_iter().eq(expected), "{checkpoint}");
    }
}

/// Splits a shard and then its left child, and puts records into the four shards before the start.
async fn resharded(orders: &Stream) -> [Shard; 4] {
    let parent = orders.shard(0);
    parent.put("0");
    parent.put("1");
    let [left, right] = parent.split();
    left.put("2");
    right.put("3");
    let [grandchild, _] = left.split();
    grandchild.put("4");
    sleep(EARLIER).await;
    [parent, left, right, grandchild]
}

#[tokio::test(start_paused = true)]
async fn descendants_of_named_shard_start_at_trim_horizon() {
    for child_shards in [true, false] {
        let (kinesis, orders) = orders(1);
        kinesis.set_child_shards(child_shards);
        let [parent, ..] = resharded(&orders).await;
        let first = Checkpoint::AfterSequenceNumber {
            sequence_number: parent.sequence_numbers()[0].clone(),
            sub_sequence_number: None,
        };
        for (checkpoint, expected) in
            [(first, vec![1, 2, 3, 4]), (Checkpoint::ShardEnd, vec![2, 3, 4])]
        {
            let builder = latest(&kinesis).starting_position_for(parent.id(), checkpoint.clone());
            let mut records = builder.build().unwrap().records();
            let rest = read(&mut records, expected.len()).await;
            assert!(rest.into_iter().eq(expected), "{checkpoint}");
        }
    }
}

/// The caller names a shard that has expired together with its children, so its descendants are not
/// known.
#[tokio::test(start_paused = true)]
async fn descendant_of_expired_named_shard_starts_at_trim_horizon() {
    let (kinesis, orders) = orders(2);
    orders.shard(1).put("10");
    let parent = orders.shard(0);
    parent.put("0");
    let named = parent.sequence_numbers()[0].clone();
    let [left, right] = parent.split();
    let child = left.merge(&right);
    child.put("1");
    sleep(EARLIER).await;
    for expired in [&parent, &left, &right] {
        expired.expire();
    }
    let position = ShardPosition::AfterSequenceNumber(named);
    let builder = latest(&kinesis).starting_position_for(parent.id(), position);
    let mut records = builder.build().unwrap().records();
    let rest = read(&mut records, 1).await;
    assert!(rest.into_iter().eq([1]), "expected the other shard to start at the latest record");
}

#[tokio::test(start_paused = true)]
async fn child_named_latest_starts_at_first_poll() {
    let (kinesis, orders) = orders(1);
    let [parent, left, right, _] = resharded(&orders).await;
    let builder = latest(&kinesis)
        .starting_position_for(parent.id(), Checkpoint::TrimHorizon)
        .starting_position_for(right.id(), ShardPosition::Latest);
    let mut records = builder.build().unwrap().records();
    assert!(read(&mut records, 4).await.into_iter().eq([0, 1, 2, 4]));
    right.put("5");
    assert_eq!(number(&next(&mut records).await), 5);
    assert!(!left.is_open());
}

/// The application has read the parent, and learns of the children at its next start.
#[tokio::test(start_paused = true)]
async fn child_named_latest_in_known_stream_starts_at_first_poll() {
    for child_shards in [true, false] {
        let (kinesis, orders) = orders(1);
        kinesis.set_child_shards(child_shards);
        orders.shard(0).put("0");
        let store = MemoryStore::new();
        let builder = || consumer(&kinesis).store(store.clone());
        let reader = builder().build().unwrap();
        assert!(read(&mut reader.records(), 1).await.into_iter().eq([0]));
        reader.close().await.unwrap();
        let [left, right] = orders.shard(0).split();
        left.put("1");
        right.put("2");
        sleep(EARLIER).await;
        let builder = builder().starting_position_for(left.id(), ShardPosition::Latest);
        let mut records = builder.build().unwrap().records();
        assert!(read(&mut records, 1).await.into_iter().eq([2]));
        left.put("3");
        assert_eq!(number(&next(&mut records).await), 3);
    }
}

/// Returns the first child of a shard. The store knows the child, and nothing of it is read yet:
/// the parent holds an unacknowledged record, and the child a record from before the next start.
async fn store_unread_child(kinesis: &Kinesis, orders: &Stream, store: &MemoryStore) -> Shard {
    orders.shard(0).put("0");
    let reader = acknowledged(kinesis, store).build().unwrap();
    let mut records = reader.records();
    let held = next(&mut records).await;
    let [child, _] = orders.shard(0).split();
    child.put("1");
    assert_silent(&mut records).await;
    drop((held, records));
    reader.close().await.unwrap();
    sleep(EARLIER).await;
    child
}

fn acknowledged(kinesis: &Kinesis, store: &MemoryStore) -> ConsumerBuilder {
    consumer(kinesis).store(store.clone()).checkpoint_on(CheckpointOn::Ack)
}

#[tokio::test(start_paused = true)]
async fn known_child_starts_at_position_named_later() {
    for (position, expected) in [
        (ShardPosition::Latest, vec![0, 2]),
        (ShardPosition::TrimHorizon, vec![0, 1, 2]),
        (ShardPosition::ShardEnd, vec![0]),
    ] {
        let (kinesis, orders) = orders(1);
        let store = MemoryStore::new();
        let child = store_unread_child(&kinesis, &orders, &store).await;
        let builder = acknowledged(&kinesis, &store);
        let reader = builder.starting_position_for(child.id(), position.clone()).build().unwrap();
        let mut records = reader.records();
        let first = next(&mut records).await;
        child.put("2");
        first.ack();
        let mut rest = read(&mut records, expected.len() - 1).await;
        rest.insert(number(&first));
        assert!(rest.into_iter().eq(expected), "{position:?}");
        let status = &shards(&reader).await[&child.id()];
        let is_finished = status.state == ShardState::Finished;
        assert_eq!(is_finished, position == ShardPosition::ShardEnd, "{status:?}");
    }
}

/// Each start resolves the position again, like a program that names the latest record or a time
/// relative to the present. The first reader stops before the child is read, or before any record
/// of it is acknowledged.
#[tokio::test(start_paused = true)]
async fn known_child_keeps_start_relative_to_now_across_restarts() {
    let latest = |_now| ShardPosition::Latest;
    for (resolve, is_fetched) in [latest, ShardPosition::AtTimestamp]
        .into_iter()
        .flat_map(|resolve| [true, false].map(|is_fetched| (resolve, is_fetched)))
    {
        // Times by the clock of Kinesis are in the past by the host's clock.
        let kinesis = Kinesis::at(SystemTime::now() - Duration::from_secs(3600));
        let orders = kinesis.create_stream("orders", 1);
        let store = MemoryStore::new();
        let child = store_unread_child(&kinesis, &orders, &store).await;
        let start = || {
            let position = resolve(kinesis.now());
            let builder = acknowledged(&kinesis, &store);
            builder.starting_position_for(child.id(), position).build().unwrap()
        };
        let first = start();
        let mut records = first.records();
        let held = next(&mut records).await;
        if is_fetched {
            held.ack();
        }
        assert_silent(&mut records).await;
        let fetched = calls(&kinesis, "GetRecords");
        let fetched = fetched.iter().any(|call| call.shard_id == Some(child.id()));
        assert_eq!(fetched, is_fetched);
        let checkpoint = shards(&first).await[&child.id()].position.clone();
        assert!(
            matches!(checkpoint, Some(Checkpoint::AtTimestamp(_) | Checkpoint::CaughtUp { .. })),
            "{checkpoint:?}"
        );
        drop(records);
        drop(first);
        child.put("2");
        sleep(EARLIER).await;
        let mut records = start().records();
        if !is_fetched {
            let held = next(&mut records).await;
            assert_eq!(number(&held), 0);
            held.ack();
        }
        assert!(read(&mut records, 1).await.into_iter().eq([2]));
    }
}

/// An earlier reader, without a named start, received a record of the child and did not acknowledge
/// it.
#[tokio::test(start_paused = true)]
async fn child_is_not_fetched_before_its_start_is_stored() {
    let (kinesis, orders) = orders(1);
    let store = MemoryStore::new();
    let child = store_unread_child(&kinesis, &orders, &store).await;
    let earlier = acknowledged(&kinesis, &store).build().unwrap();
    let mut records = earlier.records();
    next(&mut records).await.ack();
    let held = next(&mut records).await;
    assert_eq!(held.shard_id(), &child.id());
    drop((held, records));
    earlier.close().await.unwrap();
    sleep(EARLIER).await;
    let is_failing = Arc::new(AtomicBool::new(true));
    let gated = Gated::new(store.clone(), {
        let is_failing = Arc::clone(&is_failing);
        move |call| {
            let fails = call == GatedCall::Save && is_failing.load(Ordering::Relaxed);
            let refusal = || {
                Error::new(ErrorKind::StoreUnavailable, "the store is down")
                    .with_source("injected by the test")
            };
            future::ready(if fails { Err(refusal()) } else { Ok(()) }).boxed()
        }
    });
    let builder = consumer(&kinesis).store(gated).checkpoint_on(CheckpointOn::Ack);
    let builder = builder.starting_position_for(child.id(), ShardPosition::Latest);
    let reader = builder.build().unwrap();
    let mut records = reader.records();
    let fetches = || {
        let is_of_child = |call: &Call| call.shard_id == Some(child.id());
        calls(&kinesis, "GetRecords").into_iter().filter(is_of_child).count()
    };
    let before = fetches();
    assert!(timeout(Duration::from_secs(50), records.next()).await.is_err());
    let lease = shards(&reader).await[&child.id()].clone();
    assert!(lease.owner.is_some() && lease.position.is_none(), "{lease:?}");
    assert_eq!(fetches(), before);
    child.put("2");
    is_failing.store(false, Ordering::Relaxed);
    assert_eq!(number(&next(&mut records).await), 2);
}

/// The worker that started the child stops without a last call to the store, and another worker
/// takes the lease over.
#[tokio::test(start_paused = true)]
async fn child_taken_over_keeps_the_start_of_the_crashed_worker() {
    let (kinesis, orders) = orders(1);
    let store = MemoryStore::new();
    let child = store_unread_child(&kinesis, &orders, &store).await;
    let has_crashed = Arc::new(AtomicBool::new(false));
    let crashing = Gated::new(store.clone(), {
        let has_crashed = Arc::clone(&has_crashed);
        move |_call| {
            if has_crashed.load(Ordering::Relaxed) {
                future::pending().boxed()
            } else {
                future::ready(Ok(())).boxed()
            }
        }
    });
    let start = |builder: ConsumerBuilder| {
        let builder = builder.checkpoint_on(CheckpointOn::Ack);
        builder.starting_position_for(child.id(), ShardPosition::Latest).build().unwrap()
    };
    let first = start(consumer(&kinesis).store(crashing).worker_id("first"));
    let mut records = first.records();
    next(&mut records).await.ack();
    child.put("2");
    let held = next(&mut records).await;
    assert_eq!(number(&held), 2);
    has_crashed.store(true, Ordering::Relaxed);
    drop((held, records, first));
    child.put("3");
    sleep(EARLIER).await;
    let second = start(consumer(&kinesis).store(store).worker_id("second"));
    let mut records = second.records();
    assert!(read(&mut records, 2).await.into_iter().eq([2, 3]));
}
