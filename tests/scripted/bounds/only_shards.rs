//! Named shards: only these are read, and the stream ends with them.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::testing::{Kinesis, Outcome, WrongListing};
use kinestream::{
    CheckpointOn, ConsumerBuilder, EndingPosition, ErrorKind, MemoryStore, ShardId,
    StartingPosition,
};
use tokio::time::{Instant, sleep, timeout};

use super::endings::{LONG, NOTHING, SECOND, rest};
use crate::fleet::fleets::{Fleet, LEASE};
use crate::lease_access::LeaseAccess;
use crate::{assert_silent, calls, consumer, next, number, orders, shard_of};

fn id(number: usize) -> ShardId {
    format!("shardId-{number:012}").parse().unwrap()
}

fn only(kinesis: &Kinesis, numbers: &[usize]) -> ConsumerBuilder {
    consumer(kinesis).only_shards(numbers.iter().copied().map(id))
}

async fn stored(store: &MemoryStore) -> BTreeSet<ShardId> {
    let table = store.table(&Scope::new("default", "orders")).await.unwrap();
    table.leases.into_keys().collect()
}

#[tokio::test(start_paused = true)]
async fn other_shards_are_neither_read_nor_stored() {
    let (kinesis, orders) = orders(3);
    for shard in 0..3 {
        orders.shard(shard).put(shard.to_string());
    }
    let store = MemoryStore::new();
    let consumer = only(&kinesis, &[1]).store(store.clone()).build().unwrap();
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 1);
    assert_silent(&mut records).await;
    assert_eq!(stored(&store).await, [id(1)].into());
    let read = calls(&kinesis, "GetRecords");
    assert!(read.iter().all(|call| call.shard_id == Some(id(1))));
    consumer.seek(StartingPosition::TrimHorizon).await.unwrap();
    assert_eq!(number(&next(&mut records).await), 1);
    assert_eq!(stored(&store).await, [id(1)].into());
}

#[tokio::test(start_paused = true)]
async fn stream_ends_with_the_named_shards_and_reads_no_other_child() {
    let (kinesis, orders) = orders(2);
    orders.shard(0).put("0");
    let [left, right] = orders.shard(0).split();
    left.put("2");
    right.put("3");
    for (named, expected) in [(vec![0], vec![0]), (vec![0, 3], vec![0, 3]), (vec![3], vec![3])] {
        // Shard 3 is open, so only an ending position ends it.
        let builder = only(&kinesis, &named).ending_position(EndingPosition::Latest);
        let store = MemoryStore::new();
        let mut records = builder.store(store.clone()).build().unwrap().records();
        assert_eq!(rest(&mut records).await, expected);
        let named: BTreeSet<ShardId> = named.into_iter().map(id).collect();
        assert_eq!(stored(&store).await, named);
    }
    // Without an ending position, the end of the shard ends the stream.
    let mut records = only(&kinesis, &[0]).build().unwrap().records();
    assert_eq!(rest(&mut records).await, [0]);
    let mut records = only(&kinesis, &[0, 2]).build().unwrap().records();
    for expected in [0, 2] {
        assert_eq!(number(&next(&mut records).await), expected);
    }
    assert_silent(&mut records).await;
}

#[tokio::test(start_paused = true)]
async fn fan_out_subscribes_to_the_named_shards_only() {
    for names_children in [true, false] {
        let (kinesis, orders) = orders(3);
        kinesis.set_child_shards(names_children);
        for shard in 0..3 {
            orders.shard(shard).put(shard.to_string());
        }
        let [left, right] = orders.shard(0).split();
        left.put("3");
        right.put("4");
        // Without an ending position, the ends of the shards end the stream.
        let store = MemoryStore::new();
        let builder = |named: &[usize]| only(&kinesis, named).fan_out("billing");
        let closed = builder(&[0]).store(store.clone()).build().unwrap();
        assert_eq!(rest(&mut closed.records()).await, [0], "{names_children}");
        closed.close().await.unwrap();
        // The child continues after its parent, in the same application.
        let child = builder(&[0, 4]).store(store.clone()).build().unwrap();
        let mut records = child.records();
        assert_eq!(number(&next(&mut records).await), 4);
        assert_silent(&mut records).await;
        drop(records);
        child.close().await.unwrap();
        let open = builder(&[2]).ending_position(EndingPosition::Latest);
        assert_eq!(rest(&mut open.build().unwrap().records()).await, [2]);
        let subscribed = calls(&kinesis, "SubscribeToShard").into_iter();
        let subscribed: BTreeSet<ShardId> = subscribed.filter_map(|call| call.shard_id).collect();
        assert_eq!(subscribed, [0, 2, 4].map(id).into());
        assert!(calls(&kinesis, "GetRecords").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn stream_of_a_closed_shard_ends_with_records_in_flight() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    orders.shard(0).split();
    let builder = only(&kinesis, &[0]).checkpoint_on(CheckpointOn::Ack);
    let consumer = builder.build().unwrap();
    let mut records = consumer.records();
    let held = next(&mut records).await;
    assert_eq!(rest(&mut records).await, NOTHING);
    held.ack();
    consumer.close().await.unwrap();
    let states = crate::shards(&consumer).await;
    assert_eq!(states[&id(0)].state, kinestream::ShardState::Finished);
}

#[tokio::test(start_paused = true)]
async fn unknown_name_is_an_error_and_the_other_shards_are_read() {
    let (kinesis, orders) = orders(2);
    orders.shard(1).put("1");
    let mut records = only(&kinesis, &[1, 7]).build().unwrap().records();
    let (mut read, began) = (0, Instant::now());
    let error = loop {
        match records.next().await.unwrap() {
            Ok(_) => read += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind(), error.shard_id()), (ErrorKind::NotFound, Some(&id(7))));
    assert!(error.to_string().contains("only_shards"), "{error}");
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    if read == 0 {
        assert_eq!(number(&next(&mut records).await), 1);
    }
    assert!(timeout(LONG, records.next()).await.is_err(), "the error is reported once");
    // With no shard to read, the stream ends.
    let mut records = only(&kinesis, &[7]).build().unwrap().records();
    assert_eq!(records.next().await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    assert!(timeout(LONG, records.next()).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn listing_that_lacks_a_named_shard_for_a_while_is_no_error() {
    let (kinesis, orders) = orders(2);
    let [left, _] = orders.shard(0).split();
    left.put("2");
    let lacks = || Outcome::Mislisted(WrongListing::Stale(1));
    kinesis.next_calls("ListShards", 3, lacks());
    let mut records = only(&kinesis, &[2]).build().unwrap().records();
    assert_eq!(number(&next(&mut records).await), 2);
}

#[tokio::test(start_paused = true)]
async fn named_shard_of_a_begun_application_starts_at_the_starting_position() {
    let (kinesis, orders) = orders(3);
    let store = MemoryStore::new();
    for shard in 0..3 {
        orders.shard(shard).put(shard.to_string());
    }
    sleep(2 * SECOND).await;
    let start = |numbers: &[usize], start| {
        let builder = only(&kinesis, numbers).store(store.clone());
        builder.starting_position(start).build().unwrap()
    };
    let first = start(&[0], StartingPosition::TrimHorizon);
    let mut records = first.records();
    assert_eq!(number(&next(&mut records).await), 0);
    let second = start(&[1], StartingPosition::Latest);
    let mut others = second.records();
    assert_silent(&mut others).await;
    // The child of a shard that the application has read starts at its first record.
    let [left, _] = orders.shard(0).split();
    left.put("3");
    sleep(2 * SECOND).await;
    assert!(timeout(LONG, records.next()).await.unwrap().is_none());
    first.close().await.unwrap();
    let third = start(&[3], StartingPosition::Latest);
    assert_eq!(number(&next(&mut third.records()).await), 3);
}

/// Starts workers that read these shards, and returns the shards that each delivers from.
async fn shares(sets: &[&[usize]], shards: usize) -> Vec<BTreeSet<usize>> {
    let fleet = Fleet::new(shards);
    let mut workers = Vec::new();
    for (number, set) in sets.iter().enumerate() {
        let builder = fleet.builder(&format!("worker-{number}"));
        let consumer = builder.only_shards(set.iter().copied().map(id)).build().unwrap();
        workers.push((consumer.records(), consumer));
        // All workers join within the first listing.
        sleep(Duration::from_millis(100)).await;
    }
    let mut readers = Vec::new();
    for (mut records, consumer) in workers {
        readers.push(tokio::spawn(async move {
            let mut seen = Vec::new();
            let end = Instant::now() + 20 * LEASE;
            while let Ok(Some(record)) = tokio::time::timeout_at(end, records.next()).await {
                let record = record.unwrap();
                seen.push((Instant::now(), shard_of(&record), record.epoch()));
            }
            (seen, consumer)
        }));
    }
    let putting = fleet.put_continuously(Duration::from_millis(200));
    sleep(10 * LEASE).await;
    let settled = Instant::now();
    let mut read = Vec::new();
    let mut epochs = std::collections::BTreeMap::new();
    for reader in readers {
        let (seen, _consumer) = reader.await.unwrap();
        let late = seen.into_iter().filter(|(at, ..)| *at > settled);
        let mut share = BTreeSet::new();
        for (_, shard, epoch) in late {
            share.insert(shard);
            let known = *epochs.entry(shard).or_insert(epoch);
            assert_eq!(known, epoch, "shard {shard} moved in a settled fleet");
        }
        read.push(share);
    }
    drop(putting);
    read
}

#[tokio::test(start_paused = true)]
async fn workers_with_disjoint_sets_read_their_own_shards() {
    let shares = shares(&[&[0, 1, 2], &[3]], 5).await;
    assert_eq!(shares, [[0, 1, 2].into(), BTreeSet::from([3])]);
}

/// The first worker lists for the fleet, and does not look for the shards that only others name.
#[tokio::test(start_paused = true)]
async fn named_shards_of_a_later_worker_are_read() {
    let fleet = Fleet::new(6);
    for shard in 0..6 {
        fleet.orders.shard(shard).put(shard.to_string());
    }
    let start = |name: &str, set: &[usize]| {
        let builder = fleet.builder(name).starting_position(StartingPosition::TrimHorizon);
        builder.only_shards(set.iter().copied().map(id)).build().unwrap()
    };
    let first = start("first", &[0, 1, 2, 3]);
    let mut of_first = first.records();
    for _ in 0..4 {
        next(&mut of_first).await;
    }
    assert!(timeout(10 * LEASE, of_first.next()).await.is_err());
    let first = tokio::spawn(async move { while of_first.next().await.is_some() {} });
    let second = start("second", &[3, 4]);
    let mut of_second = second.records();
    let record = timeout(20 * LEASE, next(&mut of_second)).await.expect("shard 4 is read");
    assert_eq!(number(&record), 4);
    first.abort();
}

#[tokio::test(start_paused = true)]
async fn workers_with_the_same_set_share_it_evenly() {
    let set: &[usize] = &[0, 1, 2, 3, 4];
    let shares = shares(&[set, set, set], 6).await;
    let all: BTreeSet<usize> = shares.iter().flatten().copied().collect();
    assert_eq!(all, (0..5).collect());
    let counts: Vec<usize> = shares.iter().map(BTreeSet::len).collect();
    assert_eq!(counts.iter().sum::<usize>(), 5);
    assert!(counts.iter().all(|count| (1..=2).contains(count)), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn workers_with_overlapping_sets_leave_no_shard_unread() {
    let shares = shares(&[&[0, 1, 2, 3], &[2, 3], &[3, 4]], 6).await;
    let all: BTreeSet<usize> = shares.iter().flatten().copied().collect();
    assert_eq!(all, (0..5).collect());
    assert!(shares[1].iter().all(|shard| [2, 3].contains(shard)), "{shares:?}");
    assert!(shares[2].iter().all(|shard| [3, 4].contains(shard)), "{shares:?}");
    assert_eq!(shares.iter().map(BTreeSet::len).sum::<usize>(), 5);
}
